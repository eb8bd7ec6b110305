"""backstay sql "SELECT …\""""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import duckdb

from engine.cli.options import Config, Json, Parameter, PassphraseFile, Repo
from engine.cli.output import say, show, show_json, show_table
from engine.cli.reach import configured_state_dir, further_named, reach
from engine.client import Engine
from engine.commands import QueryAnswer, QueryLimits
from engine.failures import BadInput, Exit
from engine.repository_views import repository_views
from engine.sql import columns_of, select
from engine.state_schema import TABLES
from engine.state_views import VIEWS, open_views
from policies.units import counted
from storage.repository import Repository

Sources = Mapping[str, Callable[[], Any]]


def sql(
    query: str | None = None,
    /,
    *,
    views: Annotated[bool, Parameter(help="List the views and their columns instead.")] = False,
    rows: Annotated[int, Parameter(help="At most so many rows.")] = QueryLimits().rows,
    seconds: Annotated[float, Parameter(help="At most so long.")] = QueryLimits().seconds,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> int:
    """Ask the catalog and the engine's journal: exactly one SELECT over the views, read-only.

    Ends with 3 when there were more rows than the limit.

    Parameters
    ----------
    query
        One SELECT in DuckDB's SQL.
    """
    if (query is None) is not views:
        raise BadInput("write one SELECT, or --views", where="sql")
    if not 1 <= rows <= 10_000_000 or not 0 < seconds <= 86_400:
        raise BadInput("a limit is not possible", where="--rows, --seconds", hint="at least 1 row and some time")
    with reach(repo, config, passphrase_file, command="sql") as place:
        if isinstance(place, Engine) and further_named(place, repo):
            raise BadInput("a running engine answers for its own repository alone", where="--repo")
        if query is None:
            _show_views(_columns(place, repo, config), json)
            return Exit.DONE
        answer = _answer(place, query, QueryLimits(rows=rows, seconds=seconds), repo, config)
    names = [name for name, _ in answer.columns]
    if json:
        show_json([dict(zip(names, row, strict=True)) for row in answer.rows])
    else:
        show_table(names, answer.rows)
    if answer.truncated:
        say(f"There are more than {counted(rows, 'row')}; use --rows for more.")
    return Exit.PARTIAL if answer.truncated else Exit.DONE


def _answer(
    place: Repository | Engine, query: str, limits: QueryLimits, repo: str | None, config: Path | None
) -> QueryAnswer:
    if isinstance(place, Engine):
        said = place.post("/v1/sql", {"query": query, "rows": limits.rows, "seconds": limits.seconds})
        columns = tuple((name, kind) for name, kind in said["columns"])
        return QueryAnswer(columns, tuple(tuple(row) for row in said["rows"]), said["truncated"])
    return select(query, _sources(place, repo, config), limits)


def _columns(place: Repository | Engine, repo: str | None, config: Path | None) -> Mapping[str, list[str]]:
    if isinstance(place, Engine):
        return dict(place.get("/v1/views"))
    return columns_of(_sources(place, repo, config))


def _sources(repository: Repository, repo: str | None, config: Path | None) -> Sources:
    """The repository's views, and the journal's: of the state that the configuration names, else empty."""
    state_dir = configured_state_dir(config) if repo is None or config is not None else None
    journal = open_views(state_dir) if state_dir is not None else {}
    return {**repository_views(repository), **(journal or _empty_views())}


def _empty_views() -> Sources:
    return {name: partial(_empty, statement) for name, statement in VIEWS.items()}


def _empty(statement: str) -> Any:
    with duckdb.connect(":memory:") as connection:
        for table in TABLES:
            connection.execute(table)
        return connection.sql(statement).to_arrow_table()


def _show_views(columns: Mapping[str, list[str]], json: bool) -> None:
    if json:
        show_json(columns)
        return
    for name, its_columns in columns.items():
        show(f"{name}: {', '.join(its_columns)}")
