"""backstay policy explain VM"""

from __future__ import annotations

from engine.cli.options import Config, Json, Repo
from engine.cli.output import printable, show, show_json
from engine.cli.reach import running


def policy_explain(vm: str, /, *, repo: Repo = None, config: Config = None, json: Json = False) -> None:
    """Which policies select a VM, what they decide now and why, and what keeps each restore point.

    Parameters
    ----------
    vm
        Name or id.
    """
    said = running(repo, config).get("/v1/policies/explain", {"vm": vm})
    if json:
        show_json({key: value for key, value in said.items() if key != "text"})
        return
    for line in str(said["text"]).splitlines():
        show(printable(line))
    if said.get("decisions"):
        show("\nlately decided:")
    for one in said.get("decisions", ()):
        where = f"{one['policy']} {one['rule']}".strip()
        show(printable(f"  {str(one['at'])[:19].replace('T', ' ')}  {one['kind']}  {where}: {one['reason']}"))
