"""backstay policy explain VM"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from engine.cli.options import Config, Json, Parameter, PassphraseFile, Repo
from engine.cli.output import printable, show, show_json
from engine.cli.reach import running
from engine.cli.standing import Sources, standing
from engine.client import Engine
from engine.failures import BadInput, Exit, NotReachable, RemoteFailure
from policies.explanation import explain
from policies.facts import Facts, Vm
from policies.loading import load
from policies.policyset import PolicySet
from policies.staying import explain_point, find_point

_POINT = re.compile(r"[0-9]{8}t|.*@latest$")
"""What is a restore point rather than a VM, where no VM is called so."""


def policy_explain(
    vm: str = "",
    /,
    *,
    point: Annotated[
        str, Parameter(help="Explain this restore point: its id, the beginning of it, or NAME@latest.")
    ] = "",
    state: Annotated[Path | None, Parameter(help="State that `policy state` wrote; else as it is now.")] = None,
    policies: Annotated[Path | None, Parameter(help="Under the files of this directory; else as in force.")] = None,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Why a VM is protected as it is, or why a restore point is kept and until when.

    Of a VM: which policies select it, clause by clause, which of them decides each setting, what was decided lately and
    what came of it, when the next run is due and why then, and what keeps it from running now. Of a restore point: the
    rules and guards that keep it, when it would expire, and how it came about.

    Where no engine runs, vCenter, the repository and the engine's state are read.

    Parameters
    ----------
    vm
        Name or id of a VM; or the id of a restore point.
    """
    if not (vm or point):
        raise BadInput("nothing was named", hint="name a VM, or a restore point with --point")
    said = _ask(vm, point, policies, Sources(state, repo, config, passphrase_file))
    if json:
        show_json({key: value for key, value in said.items() if key != "text"})
        return
    for line in [*str(said["text"]).splitlines(), *_lately(said.get("decisions", ()))]:
        show(printable(line))


def _ask(vm: str, point: str, policies: Path | None, sources: Sources) -> Mapping[str, Any]:
    engine = None if sources.state is not None or policies is not None else _engine(sources)
    if engine is None:
        known = standing(sources)
        in_force = load(policies) if policies is not None else known.policies
        if in_force is None:
            raise BadInput("it is not known which policies are in force", where="--state", hint="give --policies DIR")
        return _explained(vm, point, in_force, known.facts)
    if not point:
        try:
            return dict(engine.get("/v1/policies/explain", {"vm": vm}))
        except RemoteFailure as error:
            if error.verdict.exit_code is not Exit.USAGE or not _POINT.match(vm):
                raise
    return dict(engine.get("/v1/policies/explain-point", {"reference": point or vm}))


def _engine(sources: Sources) -> Engine | None:
    try:
        return running(sources.repo, sources.config)
    except NotReachable:
        if sources.repo is not None:
            raise
    return None


def _explained(vm: str, point: str, policies: PolicySet, facts: Facts) -> Mapping[str, Any]:
    found = [one for one in facts.vms.values() if vm and vm in (one.name, one.id, one.address.moref, one.instance_uuid)]
    if point or (not found and find_point(facts, vm)):
        return _one_point(point or vm, policies, facts)
    said = explain(policies, _only(found, vm), facts)
    return {**said.as_json(), "text": said.render(), "rehearsal": {}, "decisions": []}  # an engine alone knows these


def _only(found: list[Vm], name: str) -> Vm:
    if not found:
        raise BadInput(f"no VM is called {name}", hint="see: backstay look")
    if len(found) > 1:
        raise BadInput(
            f"{len(found)} VMs are called {name}: {', '.join(one.id for one in found)}", hint="name one by its id"
        )
    return found[0]


def _one_point(reference: str, policies: PolicySet, facts: Facts) -> Mapping[str, Any]:
    found = find_point(facts, reference)
    if not found:
        raise BadInput(f"there is no restore point {reference}", hint="see: backstay points")
    if len(found) > 1:
        raise BadInput(f"{len(found)} restore points begin with {reference}", hint="write more of the id")
    said = explain_point(policies, found[0][1], facts)
    return {**said.as_json(), "recorded": {}, "text": said.render()}


def _lately(decisions: Any) -> Iterator[str]:
    """What was decided lately, what led to it and what came of it."""
    if decisions:
        yield from ("", "lately decided:")
    for one in decisions:
        where = f"{one['policy']} {one['rule']}".strip()
        yield f"  {_time(one['at'])}  {one['kind']}  {where}: {one['reason']}"
        if one.get("event_type"):
            cause = f" ({one['cause']})" if one["cause"] else ""
            hosts = f" {one['from_host']} → {one['to_host']}" if one["from_host"] and one["to_host"] else ""
            yield f"      after {one['event_type']}{cause}{hosts} at {_time(one['event_at'])}"
        if one.get("job"):
            yield f"      job {one['job']}: {_outcome(one)}"


def _outcome(one: Mapping[str, Any]) -> str:
    state = one.get("outcome") or "not known any more"
    ended = f" at {_time(one['settled_at'])}" if one.get("settled_at") else ""
    made = f", restore point {one['point']}" if one.get("point") else ""
    tried = f" after {one['attempts']} attempts" if (one.get("attempts") or 0) > 1 else ""
    why = f": {one['last_error']}" if one.get("last_error") else ""
    return f"{state}{tried}{ended}{made}{why}"


def _time(at: object) -> str:
    return f"{str(at)[:19].replace('T', ' ')} UTC"
