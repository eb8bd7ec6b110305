"""backstay policy lint [DIR]"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from engine.cli.options import Config, Json, Parameter, Repo
from engine.cli.output import say, show, show_json
from engine.cli.reach import policy_place, utc_now
from engine.failures import BadInput, Exit
from policies.advice import advice_lines
from policies.errors import PolicyError
from policies.facts import Facts
from policies.linting import lint
from policies.loading import load
from policies.naming import unknown_names
from policies.policyset import PolicySet
from policies.units import counted


def policy_lint(
    directory: str | None = None,
    /,
    *,
    state: Annotated[Path | None, Parameter(help="Look at the VMs of a file that `policy state` wrote, too.")] = None,
    live: Annotated[bool, Parameter(help="Look at the VMs of the running engine, or of vCenter, too.")] = False,
    strict: Annotated[bool, Parameter(help="End with 3 when there is a warning.")] = False,
    repo: Repo = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Check policy files: what is broken, and what its author hardly means.

    Ends with 2 and file:line:column of every mistake; with warnings alone with 0. With VMs to look at, it also tells
    which of them no policy selects, and which policies select or decide nothing.

    Parameters
    ----------
    directory
        Where the files are, or one file; else the configuration names it.
    """
    place = policy_place(directory, config)
    try:
        policies = load(place)
    except PolicyError as error:
        if json:
            show_json({"policies": [], "advice": [], "problems": list(error.problems)})
        raise
    if directory is None or config is not None:
        _check_names(policies, config)
    advice = lint(policies, _facts(state, live, repo, config), utc_now())
    if json:
        named = [policy.name for policy in policies.policies]
        show_json({"policies": named, "advice": list(advice), "problems": []})
    else:
        for line in advice_lines(advice):
            show(line)
    said = counted(len(advice), "warning") if advice else "no warnings"
    say(f"{counted(len(policies.policies), 'policy')} in {place}: valid, {said}.")
    if not policies.policies:
        say("No policy is there: is it the directory of policies?")
    return Exit.PARTIAL if strict and (advice or not policies.policies) else Exit.DONE


def _check_names(policies: PolicySet, config: Path | None) -> None:
    """BadInput where policies name targets of notices, repositories or copies that the configuration does not have."""
    from engine.config import load as load_config

    loaded = load_config(config)
    unknown = unknown_names(policies, targets=loaded.notify, destinations=loaded.repositories, copies=loaded.copies)
    if unknown:
        raise BadInput("\n".join(unknown), hint="add the table there, or correct the policy")


def _facts(state: Path | None, live: bool, repo: str | None, config: Path | None) -> Facts | None:
    if state is None and not live:
        return None
    from engine.cli.standing import Sources, standing

    return standing(Sources(state, repo, config, None)).facts
