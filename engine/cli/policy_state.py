"""backstay policy state"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Annotated

from engine.cli.options import Config, Parameter, PassphraseFile, Repo
from engine.cli.output import say
from engine.cli.standing import Sources, standing_bytes
from engine.cli.writing import write_file
from engine.units import show_size


def policy_state(
    *,
    out: Annotated[Path | None, Parameter(help="File to write; compressed when it ends with .gz. Else stdout.")] = None,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Write what policies look at now as one JSON document: for plans, simulations and tests without a vCenter.

    It holds the VMs, the restore points, what the engine remembers of runs, and the policies in force. Where no engine
    runs, vCenter, the repository and the engine's state are read.
    """
    document = standing_bytes(Sources(None, repo, config, passphrase_file))
    if out is None:
        sys.stdout.buffer.write(document)
        return
    write_file(out, gzip.compress(document, 6, mtime=0) if out.suffix == ".gz" else document)
    say(f"{out}: {show_size(len(document))}.")
