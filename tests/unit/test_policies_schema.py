"""The JSON schema accepts what the policies accept, and refuses what has a wrong form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tomli

from policies.facts import PowerState
from policies.schema import policy_json_schema
from policies.tables import TERM_PATTERN
from policies.terms import PROPERTIES

ROOT = Path(__file__).parents[2]
SCHEMA = policy_json_schema()
GOOD = [*sorted((ROOT / "examples/policies").glob("*.toml")), *sorted((ROOT / "tests/policies/valid").glob("*.toml"))]
BAD = sorted((ROOT / "tests/policies/invalid").glob("*.toml"))

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str, datetime),
    "integer": (int,),
    "boolean": (bool,),
}
KNOWN = {
    "$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "description", "enum", "examples", "format",
    "items", "maxItems", "maxLength", "maximum", "minItems", "minLength", "minimum", "pattern", "properties",
    "propertyNames", "required", "title", "type",
}  # fmt: skip
"""What `wrong` below understands; an editor understands more."""


def wrong(value: Any, schema: Any, path: str = "") -> Iterator[str]:
    """Where the value does not fit the schema."""
    assert set(schema) <= KNOWN, set(schema) - KNOWN
    if "$ref" in schema:
        yield from wrong(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], path)
    if "anyOf" in schema and not any(not list(wrong(value, one, path)) for one in schema["anyOf"]):
        yield f"{path}: none of the choices"
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, bool))):
        yield f"{path}: no {kind}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{path}: not {schema['const']}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: none of {schema['enum']}"
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{path}: {value} does not look right"
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9):
            yield f"{path}: too short or long"
    if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{path}: out of bounds"
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9):
            yield f"{path}: too few or many"
        for number, one in enumerate(value):
            yield from wrong(one, schema.get("items", {}), f"{path}[{number}]")
    if isinstance(value, dict):
        yield from (f"{path}: no {name}" for name in schema.get("required", ()) if name not in value)
        for name, one in value.items():
            yield from wrong(name, schema.get("propertyNames", {}), f"{path}.{name}")
            others = schema.get("additionalProperties", {})
            inner = schema.get("properties", {}).get(name, others)
            if inner is False:
                yield f"{path}: unknown {name}"
            else:
                yield from wrong(one, inner, f"{path}.{name}")


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_the_schema_accepts_what_is_valid(file: Path) -> None:
    assert list(wrong(tomli.loads(file.read_text()), SCHEMA)) == []


FORMS = {
    "unknown_key", "unknown_key_of_a_sub_table", "unknown_key_of_a_trigger", "unknown_event", "unknown_level",
    "unknown_power_state", "term_without_property", "term_of_unknown_property", "tag_without_category",
    "relative_folder", "bad_duration", "duration_as_a_number", "missing_schema", "newer_schema", "missing_on",
    "name_with_a_space", "priority_beyond", "text_for_a_number", "table_for_a_list", "cron_with_seconds",
}  # fmt: skip
"""Mistakes of form. What policies say of each other, and whether a date is one, only Backstay knows."""


def test_the_schema_refuses_what_has_a_wrong_form() -> None:
    readable = {}
    for file in BAD:
        try:
            readable[file.stem] = tomli.loads(file.read_text())
        except tomli.TOMLDecodeError:
            continue
    refused = {name for name, data in readable.items() if list(wrong(data, SCHEMA))}
    assert refused >= FORMS
    assert len(refused) > len(readable) / 3


def tables(schema: Any = SCHEMA) -> Iterator[tuple[str, str, Any]]:
    for name, table in (("the file", schema), *schema["$defs"].items()):
        for key, one in table.get("properties", {}).items():
            yield name, key, one


@pytest.mark.parametrize(("table", "key", "one"), [*tables()], ids=lambda one: one if isinstance(one, str) else "")
def test_every_key_has_a_description_and_an_example_that_fits(table: str, key: str, one: Any) -> None:
    assert one["description"]
    assert "default" not in one and "title" not in one
    if "$ref" not in str(one):
        assert one["examples"]
    for example in one.get("examples", ()):
        assert list(wrong(example, one)) == []


def test_the_schema_knows_no_null() -> None:
    assert "null" not in str(SCHEMA)


@pytest.mark.parametrize("name", PROPERTIES)
def test_the_pattern_of_terms_has_every_property(name: str) -> None:
    value = {"folder": "/a", "tag": "a=b", "attribute": "a=b", "power": "On", "template": "yes"}.get(name, "x")
    value = ">= 5" if name in ("size", "disks") else value
    assert re.match(TERM_PATTERN, f"{name}:{value}")
    assert not re.match(TERM_PATTERN, f"{name}x:{value}")


@pytest.mark.parametrize("state", PowerState)
def test_the_pattern_of_terms_has_every_power_state(state: PowerState) -> None:
    assert re.match(TERM_PATTERN, f"power:{state}")
    assert not re.match(TERM_PATTERN, "power:idle")
