"""backstay policy lint [DIR]"""

from __future__ import annotations

from engine.cli.options import Config, Json
from engine.cli.output import say, show, show_json
from engine.cli.reach import policy_place
from policies.linting import lint
from policies.loading import load
from policies.units import counted


def policy_lint(directory: str | None = None, /, *, config: Config = None, json: Json = False) -> None:
    """Check policy files. Ends with 2 and file:line:column of every mistake; advice alone ends with 0.

    Parameters
    ----------
    directory
        Where the files are; else the configuration names it.
    """
    place = policy_place(directory, config)
    policies = load(place)
    advice = lint(policies)
    if json:
        show_json({"policies": [policy.name for policy in policies.policies], "advice": list(advice)})
        return
    for one in advice:
        show(str(one))
    say(f"{counted(len(policies.policies), 'policy')} in {place}: valid, {len(advice) or 'no'} advice.")
