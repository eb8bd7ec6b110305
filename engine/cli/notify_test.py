"""backstay notify test NAME"""

from __future__ import annotations

import asyncio

from engine.cli.options import Config as ConfigFile
from engine.cli.options import Json
from engine.cli.output import printable, say, show_json
from engine.cli.reach import utc_now
from engine.client import Engine
from engine.config import Config, load


def notify_test(target: str, /, *, config: ConfigFile = None, json: Json = False) -> None:
    """Send a trial message to a target of notices, in one attempt, and tell the outcome.

    A running engine sends it, with the secrets that it has; else this command does. Ends with 6 when the target
    cannot be reached or refuses the login, with 2 when it does not take the message.

    Parameters
    ----------
    target
        NAME of [notify.NAME] in the configuration.
    """
    loaded = load(config)
    engine = Engine(loaded.socket)
    if engine.listens():
        said = str(engine.post("/v1/notify/test", {"target": target})["said"])
    else:
        said = _send(loaded, target)
    if json:
        show_json({"target": target, "said": said})
        return
    say(printable(f"A trial message is on its way to {target}: {said}."))


def _send(config: Config, target: str) -> str:
    from engine.outbox import try_out

    return asyncio.run(try_out(config, target, utc_now()))
