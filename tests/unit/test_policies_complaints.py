"""Every table of a policy file says what was meant by a key that it does not have."""

from __future__ import annotations

import pytest

from policies.complaints import _TABLES, _names
from policies.errors import PolicyError
from policies.loading import load_texts

LONG = [
    (known, name)
    for known in _TABLES
    for name in _names(known.model)
    if len(name) > 4 and known.path and known.path[0] != "template"
]


def header(path: tuple[str, ...], many: bool) -> str:
    """Of a table, whatever it is called; lists of tables get their first one, also on the way to a deeper one."""
    arrays = {known.path for known in _TABLES if known.many}
    lines = [f"[[{'.'.join(path[:n])}]]" for n in range(1, len(path)) if path[:n] in arrays]
    name = ".".join(path).replace("NAME", "gold")
    return "\n".join([*lines, f"[[{name}]]" if many else f"[{name}]"])


def first_problem(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        load_texts({"a.toml": f"schema = 1\n{text}\n"})
    return next(str(one) for one in caught.value.problems if "unknown key" in one.what)


@pytest.mark.parametrize(("known", "name"), LONG, ids=lambda one: one if isinstance(one, str) else ".".join(one.path))
def test_a_misspelt_key_of_any_table_gets_the_right_one(known: object, name: str) -> None:
    path, many = known.path, known.many  # type: ignore[attr-defined]
    typo = name[:-3] + name[-2] + name[-3] + name[-1] if name[-2] != name[-3] else name[:-1]
    said = first_problem(f"{header(path, many)}\n{typo} = 1")
    assert f'unknown key "{typo}"' in said
    assert said.endswith(f'write "{name}"'), said


@pytest.mark.parametrize(
    ("table", "key", "where"),
    [
        ("[policy.gold]", "keep_daily", "[policy.gold.retention]"),
        ("[policy.gold]", "keep_dialy", '"keep_daily" in [policy.gold.retention]'),
        ("[policy.gold]", "settle", "[[policy.gold.trigger]]"),
        ("[policy.gold]", "fallback", "[policy.gold.consistency]"),
        ("[policy.gold]", "max_vms_losing_protection", "[guard]"),
        ("[template.t]", "keep_last", "[template.t.retention]"),
        ("[policy.gold.select]", "rpo", "[policy.gold]"),
        ("[[policy.gold.trigger]]", "keep_last", "[policy.gold.retention]"),
        ("[guard]", "rpo", "[template.NAME]"),
        ("[guard]", "schema", "at the top of the file"),
        ("[[test]]", "backup_by", "[test.expect.NAME]"),
        ("[[test]]", "folder", "[[test.vm]]"),
        ("[[test]]\n[test.expect.sql9]", "damaged", "[[test.point]]"),
    ],
)
def test_a_key_of_another_table_says_which(table: str, key: str, where: str) -> None:
    said = first_problem(f"{table}\n{key} = 1")
    assert (
        said.endswith(f"write it in {where}") or said.endswith(f"write {where}") or said.endswith(f"write it {where}")
    )
