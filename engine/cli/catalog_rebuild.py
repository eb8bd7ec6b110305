"""backstay catalog rebuild"""

from __future__ import annotations

from engine.cli.options import Config, Json, PassphraseFile, Repo
from engine.cli.output import say, show_json
from engine.cli.reach import locate, refuse_engine, utc_now
from policies.units import counted
from storage.rebuild import rebuild


def catalog_rebuild(
    *, repo: Repo = None, config: Config = None, passphrase_file: PassphraseFile = None, json: Json = False
) -> None:
    """Make the catalog again from the repository's packs and manifests.

    The catalog is never the truth: it can be deleted at any time, and comes out equal row for row. Ends with 11
    while an engine owns the repository.
    """
    directory, passphrase = locate(repo, config, passphrase_file)
    refuse_engine(directory)
    report = rebuild(directory, now=utc_now, passphrase=passphrase, owner="backstay catalog rebuild")
    if json:
        show_json(report)
    else:
        points, chunks = counted(report.points, "restore point"), counted(report.chunks, "chunk")
        say(f"The catalog holds {points}, {chunks} in {counted(report.packs, 'pack')}.")
