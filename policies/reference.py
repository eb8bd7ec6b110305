"""The key reference of `docs/policies.md`, made from the schema so that it cannot say anything else."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from policies.fixture_tables import (
    DiskFixture,
    EventFixture,
    Expectation,
    Fixture,
    PlanExpectation,
    PointFixture,
    VmFixture,
)
from policies.quiescing import ConsistencyTable
from policies.retention_tables import CopyTable, RetentionTable
from policies.schema import (
    DisksTable,
    GuardTable,
    LimitsTable,
    PolicyFile,
    PolicyTable,
    SelectTable,
    TriggerTable,
)

_TABLES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The file", PolicyFile),
    ("`[policy.NAME]` and `[template.NAME]`", PolicyTable),
    ("`[policy.NAME.select]`", SelectTable),
    ("`[[policy.NAME.trigger]]`", TriggerTable),
    ("`[policy.NAME.consistency]`", ConsistencyTable),
    ("`[policy.NAME.retention]`", RetentionTable),
    ("`[policy.NAME.copy.COPY]`", CopyTable),
    ("`[policy.NAME.disks]`", DisksTable),
    ("`[policy.NAME.limits]`", LimitsTable),
    ("`[guard]`", GuardTable),
    ("`[[test]]`", Fixture),
    ("`[[test.vm]]`", VmFixture),
    ("`[[test.vm.disks]]`", DiskFixture),
    ("`[[test.point]]`", PointFixture),
    ("`[[test.event]]`", EventFixture),
    ("`[test.expect.VM]`", Expectation),
    ("`[test.plan]`", PlanExpectation),
)


def key_reference() -> str:
    """Markdown: one table of keys for each table of a policy file."""
    return "\n".join(_table(title, model) for title, model in _TABLES)


def _table(title: str, model: type[BaseModel]) -> str:
    lines = [f"### {title}", "", (model.__doc__ or "").strip(), "", "| key | example | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        example = f"`{_toml(field.examples[0])}`" if field.examples else "a table"
        lines.append(f"| `{field.alias or name}` | {example} | {field.description} |")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
