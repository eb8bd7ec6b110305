"""What the documents say about keys is what the schema says."""

from __future__ import annotations

import json
from pathlib import Path

from policies.loading import load_texts
from policies.reference import key_reference
from policies.schema import policy_json_schema

DOCS = Path(__file__).parents[2] / "docs"


def test_the_key_reference_in_the_docs_is_that_of_the_schema() -> None:
    text = (DOCS / "policies.md").read_text()
    reference = text.partition("<!-- reference -->\n")[2].partition("<!-- /reference -->")[0]
    assert reference == key_reference()


def test_the_json_schema_in_the_docs_is_that_of_the_code() -> None:
    assert json.loads((DOCS / "policies.schema.json").read_text()) == policy_json_schema()


def test_the_json_schema_names_every_key_of_the_largest_example() -> None:
    defined = policy_json_schema()["$defs"]
    assert {"select", "trigger", "retention", "window"} <= set(defined["PolicyTable"]["properties"])
    assert defined["PolicyTable"]["additionalProperties"] is False
    assert {"string", "array"} == {one["type"] for one in defined["PolicyTable"]["properties"]["schedule"]["anyOf"]}
    assert "vm.migrated" in json.dumps(defined["TriggerTable"]["properties"]["on"])


def test_the_example_in_the_docs_loads() -> None:
    text = (DOCS / "policies.md").read_text()
    example = text.partition("```toml\n")[2].partition("```")[0]
    assert load_texts({"docs.toml": example}).policy("gold") is not None
