"""Whether a statement may run: exactly one SELECT over the views, told from its syntax tree before anything runs."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

import duckdb

from engine.failures import BadInput

LONGEST_QUERY = 64 * 1024
"""Characters of a statement. The parser's memory grows faster than the text."""

_ROW_MAKERS = frozenset({"range", "generate_series", "unnest"})

_FORBIDDEN_FUNCTIONS = frozenset(
    {
        "current_connection_id",
        "current_query",
        "current_query_id",
        "current_setting",
        "currval",
        "getenv",
        "getvariable",
        "nextval",
        "query",
        "query_table",
        "set_config",
        "setseed",
        "setval",
        "sleep_ms",
        "write_log",
    }
)

_FORBIDDEN_PREFIXES = (
    "read_",
    "duckdb_",
    "pragma_",
    "pg_",
    "parquet_",
    "http_",
    "json_execute",
    "which_",
    "glob",
    "scan_",
)

_QUERY_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE", "VALUES_NODE"})
_SPECIAL_TABLES = frozenset({"SHOW_REF", "DELIM_GET", "CTE", "COLUMN_DATA", "BOUND_TABLE_REF", "INVALID"})


def named_views(query: str, available: Iterable[str]) -> frozenset[str]:
    """The views that a permitted statement names; BadInput says what is not permitted."""
    if len(query) > LONGEST_QUERY:
        raise BadInput(f"the statement is longer than {LONGEST_QUERY} characters", where="sql")
    if any("\ud800" <= letter <= "\udfff" for letter in query):
        raise BadInput("the statement is not UTF-8", where="sql")
    with closing(duckdb.connect(":memory:", config={"enable_external_access": False, "threads": 1})) as connection:
        _refuse_all_but_select(connection, query)
        row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchone()
    tree = json.loads(row[0]) if row else {"error": True}
    if tree.get("error"):
        raise BadInput(str(tree.get("error_message", "this cannot be read as a SELECT")), where="sql")
    return frozenset(_check(tree["statements"], {name.casefold(): name for name in available}))


def first_line(error: duckdb.Error) -> str:
    """What DuckDB says, without the drawing of the statement."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _refuse_all_but_select(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    try:
        statements = connection.extract_statements(query)
    except duckdb.Error as error:
        raise BadInput(first_line(error), where="sql") from None
    if len(statements) != 1:
        raise BadInput(f"write exactly one SELECT statement; this is {len(statements) or 'none'}", where="sql")
    if statements[0].type != duckdb.StatementType.SELECT:
        kind = statements[0].type.name.replace("_", " ")
        raise BadInput(f"only SELECT is possible here, not {kind}", where="sql", hint="the views are read-only")


def _check(tree: object, views: Mapping[str, str]) -> Iterator[str]:
    """Refuse what is not permitted; yield the views that are named."""
    defined = {name.casefold() for node in _nodes(tree) for name in _defined_names(node)}
    for node in _nodes(tree):
        kind = str(node.get("type", ""))
        if kind == "BASE_TABLE":
            name = node["table_name"]
            plain = not node.get("catalog_name") and node.get("schema_name", "").casefold() in ("", "main")
            if plain and name.casefold() in views:
                yield views[name.casefold()]
            elif not plain or name.casefold() not in defined:
                raise BadInput(_unknown(node, views), where="sql")
        elif kind == "TABLE_FUNCTION":
            name = node["function"]["function_name"]
            if name.casefold() not in _ROW_MAKERS:
                raise BadInput(f"the function {name} is not available here; only views can be read", where="sql")
        elif kind in _SPECIAL_TABLES:
            raise BadInput(
                "DESCRIBE, SHOW and SUMMARIZE are not available here",
                where="sql",
                hint="see backstay sql --views",
            )
        elif kind.endswith("_NODE") and kind not in _QUERY_NODES:
            raise BadInput("only SELECT is possible here; the views are read-only", where="sql")
        if node.get("class") == "FUNCTION" or "function_name" in node:
            _check_function(node)


def _check_function(node: Mapping[str, Any]) -> None:
    name = str(node.get("function_name", "")).casefold()
    foreign = str(node.get("schema", "")).casefold() not in ("", "main") or bool(node.get("catalog"))
    if foreign or name in _FORBIDDEN_FUNCTIONS or name.startswith(_FORBIDDEN_PREFIXES):
        raise BadInput(f"the function {name} is not available here; only views can be read", where="sql")


def _defined_names(node: Mapping[str, Any]) -> Iterator[str]:
    """The names that common table expressions give in this node."""
    for entry in (node.get("cte_map") or {}).get("map", []):
        yield str(entry["key"])
    if isinstance(node.get("cte_name"), str):
        yield node["cte_name"]


def _unknown(node: Mapping[str, Any], views: Mapping[str, str]) -> str:
    parts = [node.get("catalog_name", ""), node.get("schema_name", ""), node["table_name"]]
    name = ".".join(part for part in parts if part)
    near = difflib.get_close_matches(node["table_name"].casefold(), views, n=1)
    meant = f'; did you mean "{views[near[0]]}"?' if near else ""
    return f'there is no view "{name}"{meant or "; there are " + ", ".join(sorted(views.values()))}'


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    """Every object of the syntax tree."""
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
