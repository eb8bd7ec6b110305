"""backstay copy FROM TO"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from engine.cli.options import Json, Parameter, PassphraseFile
from engine.cli.output import printable, say, show, show_json
from engine.cli.progress import Steps, progress
from engine.cli.reach import locate, place_of, refuse_engine, utc_now
from engine.failures import BadInput, Exit
from engine.plain import point_row
from engine.units import show_size
from policies.facts import PointId
from policies.units import counted
from storage.copies import CopyPlan, copy_points, plan_copy
from storage.errors import WrongKey
from storage.repository import Repository, open_repository


def copy(
    source: Annotated[str, Parameter(name="FROM", help="The repository that has the restore points.")],
    target: Annotated[str, Parameter(name="TO", help="The repository that gets them; make it with: repo init.")],
    /,
    *,
    point: Annotated[tuple[str, ...], Parameter(help="Only this restore point: an id or NAME@latest.")] = (),
    vm: Annotated[tuple[str, ...], Parameter(help="Only restore points of this VM, by name or id.")] = (),
    plan: Annotated[bool, Parameter(help="Only show; ends with 3 when something is missing.")] = False,
    passphrase_file: PassphraseFile = None,
    to_passphrase_file: Annotated[
        Path | None, Parameter(help="File that holds the passphrase of TO, where it is another one.")
    ] = None,
    json: Json = False,
) -> int:
    """Copy the restore points that another repository lacks, without reading their VMs again.

    A restore point keeps its id, its holds and its locks, and is verified as it is read. What was interrupted goes on
    where it stopped. What retention expired in TO is copied again only where --point names it. The two repositories
    may differ in encryption and block size. One that a running engine has open is refused: the engine copies by
    itself where its configuration and a policy say so.
    """
    if place_of(source) == place_of(target):
        raise BadInput("source and target are the same repository", where=target)
    with ExitStack() as stack, progress(quiet=json) as bar:
        here = stack.enter_context(_open(source, passphrase_file, "--passphrase-file"))
        there = stack.enter_context(_open(target, to_passphrase_file or passphrase_file, "--to-passphrase-file"))
        asked = [here.find(reference) for reference in point]
        work = plan_copy(here, there, _chosen(here, asked, vm), again=asked)
        if plan:
            _show_plan(work, json)
            return Exit.PARTIAL if work.missing else Exit.DONE
        bar.begin("copy", sum(one.disk_bytes for one in work.missing))
        outcome = copy_points(here, there, work, now=utc_now, progress=Steps(bar))
    if json:
        show_json(outcome)
    else:
        for failed, why in outcome.failed:
            show(printable(f"{failed}: {why}"))
        say(
            f"Copied {counted(len(outcome.copied), 'restore point')}, {outcome.there} there already: read"
            f" {show_size(outcome.moved_bytes)}, stored {show_size(outcome.stored_bytes)}.{_away(outcome.expired)}"
        )
    return Exit.DAMAGED if outcome.failed else Exit.DONE


def _open(text: str, passphrase_file: Path | None, option: str) -> Repository:
    where, passphrase = locate(text, None, passphrase_file)
    refuse_engine(where)
    try:
        return open_repository(where, passphrase=passphrase, now=utc_now, owner="backstay copy")
    except WrongKey as error:  # of two repositories
        raise WrongKey(error.what, where=str(where), hint=f"{option} or BACKSTAY_PASSPHRASE") from None


def _chosen(repository: Repository, asked: list[PointId], vms: tuple[str, ...]) -> list[PointId] | None:
    if not asked and not vms:
        return None
    chosen = list(asked)
    points = repository.points()
    for vm in vms:
        found = [one.id for one in points if vm in (one.vm, one.vm_name)]
        if not found:
            raise BadInput(
                f"there is no restore point of {vm}", where=str(repository.location), hint="see: backstay points"
            )
        chosen += found
    return chosen


def _show_plan(work: CopyPlan, json: bool) -> None:
    if json:
        show_json({"missing": [point_row(one) for one in work.missing], "there": work.there, "expired": work.expired})
        return
    for one in work.missing:
        show(printable(f"{one.id}  {one.vm_name}  {show_size(one.disk_bytes)}"))
    missing = counted(len(work.missing), "restore point")
    say(f"{missing} would be copied, {work.there} there already.{_away(work.expired)}")


def _away(expired: int) -> str:
    if not expired:
        return ""
    return f" {counted(expired, 'restore point')} expired there and left out; --point asks for one anyway."
