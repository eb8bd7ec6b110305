"""From texts to policies: TOML, keys, templates. Collects every problem with its place. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from policies.blackouts import is_calendar
from policies.calendars import Calendar
from policies.closest import closest
from policies.complaints import complaint
from policies.errors import PolicyError, Problem, Unusable, quoted
from policies.facts import CONSISTENCY_ORDER
from policies.fixture_tables import Fixture
from policies.hours import closes_always
from policies.parsing import File, parse_file
from policies.policy import Policy, Source, compile_policy
from policies.policyset import DEFAULT_ADD_UP_OVER, DEFAULT_MAX_EXPIRE_SHARE, Guard, PolicySet
from policies.schema import NAME_PATTERN, GuardTable, PolicyFile
from policies.units import parse_duration, parse_share

MOST_PROBLEMS = 20
"""So many are told of one file: who made more has made one mistake many times."""

MOST_TEMPLATES = 16
"""Templates of templates that one policy may go through."""

Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Named:
    file: File
    name: str
    keys: dict[str, Any]


def read_texts(texts: Mapping[str, str | bytes]) -> PolicySet:
    """One policy set from all files; raises PolicyError with every problem of every file."""
    problems: list[Problem] = []
    files = [file for name, text in _written(texts) if (file := parse_file(name, text, problems))]
    valid = [file for file in files if _check(file, problems)]
    calendars = _calendars(valid, texts, problems)
    templates = _collect(files, "template", problems)
    named = _collect(files, "policy", problems)
    guard = _guard(valid, problems)
    policies = [
        policy
        for one in named.values()
        if one.file in valid and (policy := _compile(one, templates, valid, calendars, problems)) is not None
    ]
    for kind, tables in (("template", templates), ("policy", named)):
        for table in tables.values():
            _chain(table, templates, problems, kind)
    if problems:
        raise PolicyError(_told(problems))
    kept = {file.name: file.text for file in files} | {name: _text(texts[name]) for name in calendars}
    return PolicySet(tuple(policies), guard, kept)


def _told(problems: Iterable[Problem]) -> list[Problem]:
    """Of each file the first problems."""
    told: list[Problem] = []
    counts: Counter[str] = Counter()
    for one in sorted(set(problems)):
        counts[one.file] += 1
        if counts[one.file] <= MOST_PROBLEMS:
            told.append(one)
        elif counts[one.file] == MOST_PROBLEMS + 1:
            told.append(replace(one, what="here and below are more problems", instead="correct those above first"))
    return told


def _written(texts: Mapping[str, str | bytes]) -> list[tuple[str, str | bytes]]:
    """The texts that are policies; the others are calendars."""
    return [(name, text) for name, text in sorted(texts.items()) if not is_calendar(name)]


def _text(text: str | bytes) -> str:
    return text.decode("utf-8") if isinstance(text, bytes) else text


@dataclass(frozen=True, slots=True)
class WrittenTest:
    """One `[[test]]` as it is written, and where each of its keys stands."""

    file: str
    table: Fixture
    place: Callable[[tuple[str | int, ...]], Source]


def read_tests(texts: Mapping[str, str | bytes]) -> tuple[WrittenTest, ...]:
    """The tests of files that `read_texts` accepts, in the order of files and lines."""
    problems: list[Problem] = []
    found: list[WrittenTest] = []
    for name, text in _written(texts):
        file = parse_file(name, text, problems)
        if file is None or "test" not in file.data or not _check(file, problems):
            continue
        tables = PolicyFile.model_validate({"schema": 1, "test": file.data["test"]}).test
        found += [WrittenTest(name, table, _places(file, number)) for number, table in enumerate(tables or ())]
    if problems:
        raise PolicyError(_told(problems))
    return tuple(found)


def _places(file: File, number: int) -> Callable[[tuple[str | int, ...]], Source]:
    def place(path: tuple[str | int, ...]) -> Source:
        found = file.places.key(("test", number, *path))
        return Source(file.name, found.line, found.column)

    return place


def _check(file: File, problems: list[Problem]) -> bool:
    """Whether the keys and values of one file are usable."""
    before = len(problems)
    try:
        PolicyFile.model_validate(file.data)
    except ValidationError as error:
        for one in error.errors(include_url=False)[: MOST_PROBLEMS + 1]:
            said = complaint(one)
            problems.append(file.problem(said.path, said.what, said.instead, value=said.at_value))
    for kind in ("template", "policy"):
        problems.extend(
            file.problem(
                (kind, name),
                f"{quoted(name)} is not a name for a {kind}",
                "write 1 to 63 letters, digits, dots, dashes or underscores, a letter or digit first",
            )
            for name in _tables(file.data.get(kind))
            if not re.fullmatch(NAME_PATTERN, name)
        )
    return len(problems) == before


def _calendars(files: Iterable[File], texts: Mapping[str, str | bytes], problems: list[Problem]) -> dict[str, Calendar]:
    """The calendars that policies and templates name. What is wrong with one is told wherever it is named."""
    outcomes: dict[str, Calendar | Unusable] = {}
    for file in files:
        for kind in ("template", "policy"):
            for name, keys in _tables(file.data.get(kind)).items():
                for path, text in _blackouts(keys):
                    if not is_calendar(text):
                        continue
                    if text not in outcomes:
                        outcomes[text] = _calendar(text, texts)
                    found = outcomes[text]
                    if isinstance(found, Unusable):
                        problems.append(file.problem((kind, name, *path), found.what, found.instead, value=True))
    return {name: found for name, found in outcomes.items() if isinstance(found, Calendar)}


def _blackouts(keys: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """Each blackout of a policy with its place below the policy."""
    written = keys.get("blackout", [])
    if isinstance(written, str):
        return [(("blackout",), written)]
    return [(("blackout", index), text) for index, text in enumerate(written)]


def _calendar(name: str, texts: Mapping[str, str | bytes]) -> Calendar | Unusable:
    text = texts.get(name)
    if text is None:
        close = closest(name, [known for known in texts if is_calendar(known)])
        instead = f'write "{close}"' if close else "put the file into the directory of policies"
        return Unusable(f"there is no calendar {quoted(name)}", instead)
    # It loads icalendar, which takes longer than most policies: only where one names a calendar.
    from policies.calendarfile import parse_calendar

    try:
        return parse_calendar(name, _text(text))
    except UnicodeDecodeError:
        return Unusable(f"calendar {quoted(name)} is not UTF-8 text", "save the file as UTF-8")
    except Unusable as error:
        return error


def _tables(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _collect(files: Iterable[File], kind: str, problems: list[Problem]) -> dict[str, _Named]:
    """Policies or templates of all files by name; one name twice is a problem that names both places."""
    found: dict[str, _Named] = {}
    for file in files:
        for name, keys in _tables(file.data.get(kind)).items():
            if name in found:
                first = found[name].file
                place = first.places.key((kind, name))
                problems.append(
                    file.problem(
                        (kind, name),
                        f"{kind} {quoted(name)} is already defined at {first.name}:{place.line}:{place.column}",
                        "write another name or remove one of them",
                    )
                )
            else:
                found[name] = _Named(file, name, _tables(keys))
    return found


def _guard(files: Iterable[File], problems: list[Problem]) -> Guard:
    guarded = [file for file in files if "guard" in file.data]
    if not guarded:
        return Guard()
    first, *others = guarded
    place = first.places.key(("guard",))
    problems.extend(
        file.problem(
            ("guard",), f"[guard] is already defined at {first.name}:{place.line}:{place.column}", "keep one of them"
        )
        for file in others
    )
    table = GuardTable.model_validate(first.data["guard"])
    share = table.max_expire_share
    return Guard(
        max_vms_losing_protection=table.max_vms_losing_protection or 0,
        max_expire_share=DEFAULT_MAX_EXPIRE_SHARE if share is None else parse_share(share),
        add_up_over=parse_duration(table.add_up_over) if table.add_up_over else DEFAULT_ADD_UP_OVER,
    )


def _chain(one: _Named, templates: Mapping[str, _Named], problems: list[Problem], kind: str) -> list[_Named] | None:
    """The table and its templates, nearest first; None when one is missing or they go in a circle.

    A template's own problems are told for it alone, not again for each table that uses it.
    """
    chain, names = [one], [one.name] if kind == "template" else []
    while (wanted := chain[-1].keys.get("template")) is not None:
        if not isinstance(wanted, str):
            return None
        if wanted not in templates:
            if len(chain) == 1:
                close = closest(wanted, templates) if len(problems) < MOST_PROBLEMS else ""
                instead = f'write "{close}"' if close else f"define [template.{wanted[:40]}] or leave the key out"
                what = f"there is no template {quoted(wanted)}"
                problems.append(one.file.problem((kind, one.name, "template"), what, instead, value=True))
            return None
        if len(chain) > MOST_TEMPLATES:
            what = f"{kind} {quoted(one.name)} has more than {MOST_TEMPLATES} templates of templates"
            problems.append(one.file.problem((kind, one.name, "template"), what, "use fewer", value=True))
            return None
        if wanted in names:
            if wanted == one.name and kind == "template":
                circle = " → ".join([*names, wanted])
                what = f"templates go in a circle ({circle})"
                path = (kind, one.name, "template")
                problems.append(one.file.problem(path, what, "remove one of the links", value=True))
            return None
        chain.append(templates[wanted])
        names.append(wanted)
    return chain


def _compile(
    one: _Named,
    templates: Mapping[str, _Named],
    valid: list[File],
    calendars: Mapping[str, Calendar],
    problems: list[Problem],
) -> Policy | None:
    chain = _chain(one, templates, problems, "policy")
    if chain is None or any(link.file not in valid for link in chain):
        return None
    merged: dict[str, Any] = {}
    for link in reversed(chain):
        merged = _merge(merged, link.keys)
    if any(is_calendar(text) and text not in calendars for _, text in _blackouts(merged)):
        return None
    place = one.file.places.key(("policy", one.name))
    policy = compile_policy(one.name, merged, Source(one.file.name, place.line, place.column), calendars)
    if closes_always(policy.timing.hours):
        what = f"the blackouts of policy {quoted(one.name)} leave no time for a run"
        problems.append(one.file.problem(("policy", one.name, "blackout"), what, "write fewer or shorter ones"))
        return None
    order = CONSISTENCY_ORDER
    if policy.want and order.index(policy.weakest_good) > order.index(policy.want):
        what = f"policy {quoted(one.name)} wants {policy.want} and falls back to more ({policy.weakest_good})"
        instead = f'write fallback = "{policy.want}"'
        problems.append(one.file.problem(("policy", one.name, "consistency"), what, instead))
        return None
    return policy


def _merge(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; any other value replaces the default."""
    merged = dict(defaults)
    for key, value in own.items():
        known = merged.get(key)
        merged[key] = _merge(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged
