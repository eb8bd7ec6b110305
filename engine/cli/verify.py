"""backstay verify"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import Parameter

from engine.cli.options import Config, Json, PassphraseFile, Repo
from engine.cli.output import printable, say, show, show_json
from engine.cli.progress import Progress, Steps, progress
from engine.cli.reach import reach, utc_now
from engine.cli.tasks import follow
from engine.client import Engine
from engine.commands import Verify
from engine.failures import Exit
from engine.plain import plain
from engine.units import show_size
from storage import verify as storage_verify
from storage.repository import Repository


def verify(
    *points: Annotated[str, Parameter(help="Only what these restore points need: ids or NAME@latest.")],
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> int:
    """Read everything back and compare every hash; ends with 4 when damage is found.

    What was found is recorded with the restore points.
    """
    with reach(repo, config, passphrase_file, command="verify") as place, progress(quiet=json) as bar:
        report = _ask(place, points, bar) if isinstance(place, Engine) else _verify(place, points, bar)
    if json:
        show_json(report)
    else:
        _tell(report)
    return Exit.DAMAGED if report["damaged"] else Exit.DONE


def _ask(engine: Engine, references: tuple[str, ...], bar: Progress) -> dict[str, Any]:
    report = dict(follow(engine, Verify(references), bar))
    report.pop("exit_code", None)  # told as such
    return report


def _verify(repository: Repository, references: tuple[str, ...], bar: Progress) -> dict[str, Any]:
    points = [repository.find(reference) for reference in references] or None
    bar.begin("verify", repository.sizes().stored_bytes)
    report = storage_verify.verify(repository, now=utc_now(), points=points, progress=Steps(bar))
    return {**plain(report), "sound": report.sound}


def _tell(report: Mapping[str, Any]) -> None:
    for damage in report["damaged"]:
        points = ", ".join(damage["points"]) or "no restore point"
        show(printable(f"{damage['object']}: {damage['what']}; affects {points}"))
    found = len(report["damaged"])
    said = f"{found} damaged" if found else "all intact"
    say(
        f"Verified {report['checked_points']} restore points, {report['checked_chunks']} chunks,"
        f" {show_size(report['checked_bytes'])}: {said}."
    )
