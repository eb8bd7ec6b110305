"""backstay policy test [DIR]"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from engine.cli.options import Config, Json, Parameter
from engine.cli.output import printable, say, show, show_json
from engine.cli.reach import policy_place
from engine.failures import BadInput, Exit
from policies.facts import Facts
from policies.fixtures import Case, case_of, inventory_of
from policies.loading import load, load_tests
from policies.policyset import PolicySet
from policies.units import counted
from policies.verdicts import Verdict, judge


def policy_test(
    directory: str | None = None,
    /,
    *,
    pattern: Annotated[str, Parameter(name=("--pattern", "-k"), help="Only tests whose name contains this.")] = "",
    junit: Annotated[Path | None, Parameter(help="Write the outcome to this file, for CI systems.")] = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Run the tests that are written beside the policies, without a vCenter.

    Ends with 0 when all pass, 3 when one fails, 2 when a file is broken or there is no test.

    Parameters
    ----------
    directory
        Where the policy files are; else the configuration names it.
    """
    place = policy_place(directory, config)
    policies = load(place)
    outcomes: list[tuple[Verdict, float]] = []
    for case in _cases(place, policies, pattern):
        started = time.perf_counter()
        verdict = judge(case, policies)
        outcomes.append((verdict, time.perf_counter() - started))
        if not json:
            _tell(verdict)
    if junit is not None:
        from engine.cli.junit import write_junit

        write_junit(junit, outcomes)
    failed = sum(not verdict.passed for verdict, _ in outcomes)
    if json:
        show_json(_as_json(outcomes, failed))
    said = f"{counted(len(outcomes), 'test')} in {place}: {len(outcomes) - failed} passed"
    say(f"{said}, {failed} failed." if failed else f"{said}.")
    return Exit.PARTIAL if failed else Exit.DONE


def _cases(place: Path, policies: PolicySet, pattern: str) -> list[Case]:
    written = load_tests(place, policies)
    if not written:
        raise BadInput("no policy file has a [[test]]", where=str(place), hint="how to write one: docs/policies.md")
    wanted = [(test, inventory) for test, inventory in written if pattern.casefold() in test.table.name.casefold()]
    if not wanted:
        hint = f"{counted(len(written), 'test')} in all"
        raise BadInput(f'no test has "{printable(pattern)}" in its name', where="--pattern", hint=hint)
    known: dict[int, Facts] = {}
    for test, inventory in wanted:
        if inventory is not None and id(inventory) not in known:
            known[id(inventory)] = inventory_of(inventory, test.table.inventory or "")
    return [case_of(test, policies, known.get(id(inventory))) for test, inventory in wanted]


def _tell(verdict: Verdict) -> None:
    show(printable(f"{'ok  ' if verdict.passed else 'FAIL'}  {verdict.case.name}"))
    for one in verdict.differences:
        show(printable(f"      {one}"))
        for sentence in one.why:
            show(printable(f"        {sentence}"))


def _as_json(outcomes: Sequence[tuple[Verdict, float]], failed: int) -> dict[str, Any]:
    return {
        "passed": len(outcomes) - failed,
        "failed": failed,
        "tests": [
            {
                "name": verdict.case.name,
                "file": verdict.case.source.file,
                "line": verdict.case.source.line,
                "passed": verdict.passed,
                "seconds": round(seconds, 6),
                "backups": verdict.backups,
                "differences": [
                    {
                        "file": one.source.file,
                        "line": one.source.line,
                        "column": one.source.column,
                        "vm": one.vm,
                        "key": one.key,
                        "expected": one.expected,
                        "got": one.got,
                        "why": [*one.why],
                    }
                    for one in verdict.differences
                ],
            }
            for verdict, seconds in outcomes
        ],
    }
