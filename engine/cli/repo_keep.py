"""backstay repo keep DIR"""

from __future__ import annotations

import pwd
import signal
import threading
from pathlib import Path
from typing import Annotated

from engine.cli.options import Parameter
from engine.cli.output import say
from engine.failures import BadInput
from storage.keeper import Keeper, establish

SOCKET = "keeper.sock"


def repo_keep(
    directory: Path,
    /,
    *,
    writer: Annotated[str, Parameter(help="The user, by name or number, who may add to it: the engine's.")],
    socket: Annotated[
        Path | None, Parameter(help="Where to listen; keeper.sock in the repository's directory without it.")
    ] = None,
) -> None:
    """Keep a repository append-only: another user adds to it through this process and can change or remove nothing.

    Run it as the user who owns the directory, whose group is the writer's. Expiring, reclaiming and changing keys is
    then this user's alone, by the same commands as ever. Ends on SIGTERM.

    Parameters
    ----------
    directory
        The repository.
    """
    uid = _uid_of(writer)
    keeper = Keeper(directory, establish(directory.absolute(), (socket or directory / SOCKET).absolute(), uid))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: keeper.stop.set())
    threading.Thread(target=_tell, args=(keeper, writer), daemon=True).start()
    keeper.serve()
    say("The keeper ended.")


def _tell(keeper: Keeper, writer: str) -> None:
    keeper.ready.wait()
    say(f"Keeping {keeper.root}; {writer} adds through {keeper.terms.socket}.")


def _uid_of(user: str) -> int:
    try:
        return int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise BadInput(f"there is no user {user!r}", where="--writer") from None
