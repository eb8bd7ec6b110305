"""backstay policy plan [DIR]"""

from __future__ import annotations

import json as json_text
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from engine.cli.durations import duration
from engine.cli.options import Config, Json, Parameter, PassphraseFile, Repo
from engine.cli.output import printable, say, show, show_json
from engine.cli.reach import configured_policies
from engine.cli.standing import Sources, freed_by, standing
from engine.cli.writing import write_file
from engine.config import find
from engine.config import load as load_config
from engine.failures import BadInput, Exit
from engine.revisions import policy_texts
from engine.statefile import Standing
from engine.units import show_size
from policies.errors import PolicyError
from policies.forecast import Bytes, ChangePlan, plan
from policies.loading import load, load_texts
from policies.naming import unknown_names
from policies.planfile import plan_file
from policies.planwords import plan_words
from policies.policyset import PolicySet
from policies.units import counted

MANY_POINTS = 50_000
"""From so many restore points on a plan takes seconds, and says that it is at work."""

WEIGHED_POINTS = 20_000
"""Up to so many restore points the repository is asked unbidden: it reads the manifest of each, which takes seconds."""


def policy_plan(
    directory: Path | None = None,
    /,
    *,
    against: Annotated[Path | None, Parameter(help="Directory to compare with; else the policies in force.")] = None,
    from_: Annotated[str | None, Parameter(name="--from", help="Git revision of DIR to compare with.")] = None,
    to: Annotated[str | None, Parameter(help="Git revision of DIR to plan; else its files.")] = None,
    state: Annotated[Path | None, Parameter(help="State that `policy state` wrote; else as it is now.")] = None,
    out: Annotated[Path | None, Parameter(help="Write the plan for `policy apply --plan`.")] = None,
    horizon: Annotated[str, Parameter(help="How far ahead expiries are told, such as 30d.")] = "30d",
    all: Annotated[bool, Parameter(help="List each VM with its clauses, and each restore point.")] = False,
    exact_bytes: Annotated[
        bool, Parameter(help="Ask a large repository, too, what would be freed; it reads all its maps for that.")
    ] = False,
    exit_code: Annotated[
        bool, Parameter(help="End with 3 where anything would change, with 5 where a guard refuses it.")
    ] = False,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> int:
    """What a change of policies does to each VM and each restore point, before it does.

    Shows who gains, loses or changes protection and why, the next runs and how consistent they would be, which restore
    points would expire and when, the bytes that frees, the snapshots that would be open at once, and what the guards
    say. Where the configuration is known, it names what policies ask for that is not there, such as a second copy.
    Changes nothing.

    Parameters
    ----------
    directory
        Where the new files are; else the configuration names it.
    """
    ahead = duration(horizon, "--horizon")
    if against is not None and from_ is not None:
        raise BadInput("--against and --from both say what to compare with", hint="give one of them")
    place = directory or configured_policies(config)
    new = _revision(place, to) if to is not None else load(place)
    sources = Sources(state, repo, config, passphrase_file)
    known = standing(sources)
    old = load(against) if against is not None else _revision(place, from_) if from_ is not None else _in_force(known)
    if not known.facts.vms:
        say("No VM is known there: what the change takes away cannot be told.")
    points = sum(len(several) for several in known.facts.points.values())
    if points >= MANY_POINTS:
        say(f"Planning for {counted(len(known.facts.vms), 'VM')} with {counted(points, 'restore point')}.")
    found = plan(old, new, known.facts, ahead)
    if directory is None or config is not None or (state is None and repo is None and find().exists()):
        found = replace(found, not_configured=_not_configured(new, config))
    if found.expiring and state is None and (exact_bytes or points <= WEIGHED_POINTS):
        found = _weighed(found, sources)
    if out is not None:
        write_file(out, json_text.dumps(plan_file(found), ensure_ascii=False).encode())
    if json:
        show_json(found.as_json())
    else:
        for line in plan_words(found, everything=all, size=show_size).splitlines():
            show(printable(line))
    if not exit_code:
        return Exit.DONE
    if found.reload.refusals:
        return Exit.REFUSED
    return Exit.DONE if found.reload.empty else Exit.PARTIAL


def _not_configured(policies: PolicySet, config: Path | None) -> tuple[str, ...]:
    """What the policies name and the configuration does not have."""
    loaded = load_config(config)
    return unknown_names(policies, targets=loaded.notify, destinations=loaded.repositories, copies=loaded.copies)


def _revision(directory: Path, revision: str) -> PolicySet:
    """The policies of a revision; their problems are told with its name."""
    try:
        return load_texts(policy_texts(directory, revision))
    except PolicyError as error:
        raise PolicyError(replace(one, file=f"{revision}:{one.file}") for one in error.problems) from None


def _in_force(known: Standing) -> PolicySet:
    if known.policies is None:
        raise BadInput(
            "it is not known which policies are in force",
            where="--state",
            hint="give --against DIR or --from REVISION, or a state that `backstay policy state` wrote",
        )
    return known.policies


def _weighed(found: ChangePlan, sources: Sources) -> ChangePlan:
    exact = freed_by(sources, [one.point for one in found.expiring if not one.copy])
    return found if exact is None else replace(found, bytes=Bytes(exact, exact=True))
