"""One SELECT over the views, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.commands import QueryLimits
from engine.failures import BadInput, Declined
from engine.sql import columns_of, select

TAKEN = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
POINTS = pa.table({"id": ["a", "b", "c"], "vm": ["web", "web", "db"], "bytes": [1, 2, 3], "taken_at": [TAKEN] * 3})


class Counted:
    """Views that remember what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def sources(self) -> dict[str, Any]:
        def rows(name: str) -> Any:
            self.asked.append(name)
            return POINTS

        return {"restore_points": lambda: rows("restore_points"), "chunks": lambda: rows("chunks")}


@pytest.fixture
def views() -> dict[str, Any]:
    return Counted().sources()


def test_a_select_gives_columns_with_types_and_json_values(views: dict[str, Any]) -> None:
    answer = select(
        "SELECT vm, sum(bytes) AS total, max(taken_at) AS t FROM restore_points GROUP BY vm ORDER BY vm", views
    )
    assert answer.columns == (("vm", "VARCHAR"), ("total", "HUGEINT"), ("t", "TIMESTAMP WITH TIME ZONE"))
    assert answer.rows == (("db", 3, "2026-11-22T18:00:00Z"), ("web", 3, "2026-11-22T18:00:00Z"))
    assert not answer.truncated


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("WITH w AS (SELECT id FROM restore_points) SELECT count(*) FROM w", ((3,),)),
        ("select count(*) from restore_points p join chunks c using (id);", ((3,),)),
        ("FROM restore_points SELECT count(*)", ((3,),)),
        ("SELECT (SELECT max(bytes) FROM restore_points)", ((3,),)),
        ("SELECT * FROM range(2)", ((0,), (1,))),
        ("SELECT list_transform([1, 2], lambda x: x + 1)", (([2, 3],),)),
        ("SELECT id FROM restore_points UNION SELECT 'z' ORDER BY 1 DESC LIMIT 1", (("z",),)),
        (
            "SELECT 'INSTALL httpfs; COPY x TO y', NULL, 1.5, x'00ff'::BLOB",
            (("INSTALL httpfs; COPY x TO y", None, 1.5, "00ff"),),
        ),
    ],
)
def test_what_a_select_can_say_works(views: dict[str, Any], query: str, rows: object) -> None:
    assert select(query, views).rows == rows


def test_only_the_views_that_are_named_are_read() -> None:
    counted = Counted()
    select("SELECT count(*) FROM Restore_Points", counted.sources())
    assert counted.asked == ["restore_points"]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM read_json('/etc/passwd')",
        "SELECT * FROM read_parquet('/etc/passwd')",
        "SELECT * FROM parquet_scan('/etc/passwd')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM '/etc/hosts.csv'",
        "SELECT 1 WHERE EXISTS (FROM read_text('/etc/passwd'))",
        "SELECT * FROM restore_points LIMIT (SELECT count(*) FROM read_text('/etc/passwd'))",
        "SELECT id, (SELECT content FROM read_text('/etc/passwd')) FROM restore_points",
        "WITH x AS MATERIALIZED (SELECT * FROM read_csv('/etc/passwd')) SELECT * FROM x",
        "SELECT * FROM query('SELECT 1')",
        "SELECT * FROM query_table('restore_points')",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM pragma_table_info('restore_points')",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM sqlite_master",
        "SELECT * FROM other.main.restore_points",
        "SELECT getenv('HOME')",
        "SELECT system.getenv('HOME')",
        "SELECT current_setting('memory_limit')",
        "SELECT getvariable('x')",
        "SELECT nextval('x')",
        "SELECT write_log('x')",
        "COPY restore_points TO '/tmp/backstay-test.csv'",
        "COPY (SELECT 1) TO '/tmp/backstay-test.csv'",
        "EXPORT DATABASE '/tmp/backstay-test'",
        "IMPORT DATABASE '/tmp/backstay-test'",
        "ATTACH '/tmp/backstay-test.duckdb'",
        "DETACH memory",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 9",
        "RESET threads",
        "SET VARIABLE a = 1",
        "PRAGMA version",
        "CALL pragma_version()",
        "CHECKPOINT",
        "USE memory",
        "CREATE TABLE x (a INTEGER)",
        "CREATE SECRET (TYPE s3)",
        "INSERT INTO restore_points VALUES ('x')",
        "UPDATE restore_points SET id = 'x'",
        "DELETE FROM restore_points",
        "DROP VIEW restore_points",
        "WITH x AS (INSERT INTO restore_points VALUES ('x') RETURNING id) SELECT * FROM x",
        "EXPLAIN SELECT 1",
        "DESCRIBE restore_points",
        "SHOW TABLES",
        "SUMMARIZE '/etc/passwd'",
        "PREPARE x AS SELECT 1",
        "EXECUTE x",
        "BEGIN",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY restore_points TO '/tmp/backstay-test.csv'",
        "",
        "-- nothing",
        ";",
        "SELECT FROM WHERE",
        "SELECT nope FROM restore_points",
        "SELECT * FROM restore_point",
        "SELECT ?",
        "SELECT 'x'::INTEGER",
        "SELECT '" + "x" * 70_000 + "'",
    ],
)  # fmt: skip
def test_everything_else_is_bad_input_and_touches_no_file(views: dict[str, Any], query: str) -> None:
    with pytest.raises(BadInput) as caught:
        select(query, views)
    assert not isinstance(caught.value, Declined)
    assert str(caught.value).startswith("sql: ") and "\n" not in str(caught.value)
    assert not list(Path("/tmp").glob("backstay-test*"))


def test_a_misspelt_view_is_suggested(views: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match='did you mean "restore_points"'):
        select("SELECT * FROM restore_point", views)


def test_more_rows_than_the_limit_are_told(views: dict[str, Any]) -> None:
    answer = select("SELECT * FROM range(100000000)", views, QueryLimits(rows=5))
    assert len(answer.rows) == 5 and answer.truncated
    assert not select("SELECT * FROM range(5)", views, QueryLimits(rows=5)).truncated


def test_a_statement_that_takes_too_long_is_stopped(views: dict[str, Any]) -> None:
    with pytest.raises(Declined, match=r"longer than 0\.5 s"):
        select("SELECT count(*) FROM range(100000000000) a, range(1000) b", views, QueryLimits(seconds=0.5))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT repeat('x', 100000000) FROM range(10000)",
        "SELECT list(a) FROM range(500000000) t(a)",
        "SELECT string_agg(repeat('x', 1000000), '') FROM range(100000)",
    ],
)
def test_a_statement_that_takes_too_much_memory_is_stopped(views: dict[str, Any], query: str) -> None:
    with pytest.raises(Declined, match="memory"):
        select(query, views, QueryLimits(memory_bytes=128 * 2**20))


def test_the_columns_of_the_views_can_be_listed(views: dict[str, Any]) -> None:
    assert columns_of(views)["restore_points"] == ["id", "vm", "bytes", "taken_at"]


def test_a_statement_that_is_no_unicode_is_bad_input(views: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="not UTF-8"):
        select("SELECT '\udcff'", views)
