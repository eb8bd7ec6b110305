"""backstay policy journal"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

from engine.cli.durations import duration
from engine.cli.options import Config, Parameter, Repo
from engine.cli.output import say
from engine.cli.reach import configured_state_dir, running, utc_now
from engine.cli.writing import write_file
from engine.failures import BadInput, NotReachable
from engine.units import show_size


def policy_journal(
    *,
    since: Annotated[str, Parameter(help="How far back, such as 30d.")] = "30d",
    out: Annotated[Path | None, Parameter(help="File to write; else stdout.")] = None,
    repo: Repo = None,
    config: Config = None,
) -> None:
    """Write the events that the engine handled, one JSON object a line, for `policy simulate --events`.

    Where no engine runs, its state is read.
    """
    lines = journal(utc_now() - duration(since, "--since"), repo, config)
    if out is None:
        for part in lines:
            sys.stdout.buffer.write(part)
        return
    content = b"".join(lines)
    write_file(out, content)
    say(f"{out}: {show_size(len(content))}.")


def journal(since: datetime, repo: str | None, config: Path | None) -> Iterator[bytes]:
    """The recorded events as lines, from the running engine or from what the last one left."""
    try:
        engine = running(repo, config)
    except NotReachable:
        if repo is not None:
            raise
        yield from _left_behind(since, config)
        return
    yield engine.fetch(f"/v1/policies/journal?since={since:%Y-%m-%dT%H:%M:%SZ}")


def _left_behind(since: datetime, config: Path | None) -> Iterator[bytes]:
    from engine.replaying import journal_lines
    from engine.state import State

    place = configured_state_dir(config)
    with State.read_only(place) as state:
        if state is None:
            raise BadInput("no engine ever ran here: there is no journal", where=str(place))
        beyond: int | None = -1
        while beyond is not None:
            page, beyond = state.recorded(since, beyond)
            yield journal_lines(page)
