"""What a plan starts from: a state file, the running engine, or, without one, vCenter, the repository and its state."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.cli.output import say
from engine.cli.reach import reach, running
from engine.client import Engine
from engine.failures import BadInput, NotReachable, RemoteFailure
from engine.statefile import Standing, pieces, read_standing
from storage.errors import StorageError


@dataclass(frozen=True, slots=True)
class Sources:
    """Where to ask, as the command line says it."""

    state: Path | None
    repo: str | None
    config: Path | None
    passphrase_file: Path | None


def standing(sources: Sources) -> Standing:
    """Facts and the policies in force. Switches the collection of circles off for the rest of the command.

    A large fleet is millions of values, none in a circle: looking for circles among them takes half of the time.
    """
    gc.disable()
    if sources.state is not None:
        return read_standing(read_file(sources.state), str(sources.state))
    engine = _engine(sources)
    if engine is not None:
        return read_standing(engine.fetch("/v1/policies/facts"), "the engine's state")
    return _without_engine(sources)


def standing_bytes(sources: Sources) -> bytes:
    """The same as a document."""
    engine = _engine(sources)
    if engine is not None:
        return engine.fetch("/v1/policies/facts")
    found = _without_engine(sources)
    return b"".join(pieces(found.facts, found.policies))


def freed_by(sources: Sources, points: Sequence[str]) -> int | None:
    """The stored bytes that these restore points hold alone; None, with a message, when the repository cannot tell."""
    try:
        engine = _engine(sources)
        if engine is not None:
            return int(engine.post("/v1/policies/sole-bytes", {"points": list(points)})["bytes"])
        with reach(sources.repo, sources.config, sources.passphrase_file, command="policy plan") as place:
            if isinstance(place, Engine):
                return int(place.post("/v1/policies/sole-bytes", {"points": list(points)})["bytes"])
            from storage.sole import sole_bytes

            wanted = set(points)
            return sole_bytes(place, [point.id for point in place.points() if point.id in wanted])
    except (StorageError, BadInput, RemoteFailure) as error:
        say(f"Bytes to be freed are an upper estimate: {error}")
        return None


def read_file(path: Path) -> bytes:
    """What a file named on the command line holds; BadInput when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}", where=str(path)) from None


def _engine(sources: Sources) -> Engine | None:
    try:
        return running(sources.repo, sources.config)
    except NotReachable:
        return None


def _without_engine(sources: Sources) -> Standing:
    from engine.cli.offline import found_offline

    return found_offline(sources.repo, sources.config, sources.passphrase_file)
