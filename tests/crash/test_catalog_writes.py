"""DuckDB's own writes to the catalog and its log fail: what was told holds, or it was refused, and the next open mends.

strace makes the system calls fail that DuckDB makes on these two files, or the process may not let a file grow.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.crash.aftermath import after_a_crash
from tests.crash.recording import ACKS, check_tracing, python
from tests.crash.scenes import SCENES
from tests.crash.stages import Stage, fresh_copy

CATALOG, LOG = "catalog.duckdb", "catalog.duckdb.wal"
WRITES, SYNCS = "write,pwrite64,writev,pwritev", "fsync,fdatasync"

TO_THE_LOG = (
    (WRITES, "ENOSPC", "1+"),
    (WRITES, "EIO", "1+"),
    (WRITES, "ENOSPC", "1"),
    (WRITES, "EIO", "1"),
    (SYNCS, "EIO", "1+"),
    (SYNCS, "EIO", "1"),
    (SYNCS, "ENOSPC", "1+"),
)
"""(calls, error, which of each thread's)"""

TO_A_NEW_CATALOG = (
    (WRITES, "ENOSPC", "1+"),
    (WRITES, "EIO", "2+"),
    (WRITES, "ENOSPC", "4+"),
    (SYNCS, "EIO", "1+"),
    ("ftruncate,fallocate," + SYNCS, "ENOSPC", "2+"),
)
"""(calls, error, from which of each thread's on): how DuckDB spreads them over its threads differs from run to run."""


def played(location: Path, calls: str, error: str, when: str) -> list[str] | None:
    """What a process was told whose DuckDB met these errors; None when none of its threads made so many calls."""
    check_tracing()
    trace = location.with_name("trace")
    command = ["strace", "-f", "-qq", "-y", "-o", str(trace), "-P", str(location / CATALOG), "-P", str(location / LOG)]
    command += ["-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={when}"]
    subprocess.run([*command, *python("tests.crash.duckdb_victim", str(location))], check=True)
    struck = [line for line in trace.read_text().splitlines() if "(INJECTED)" in line]
    assert all(CATALOG in line or "resumed" in line for line in struck)
    return _told(location) if struck else None


def _told(location: Path) -> list[str]:
    told = location.with_name(ACKS).read_text().splitlines()
    assert told[-1] == "done"
    assert any(said.startswith(("committed ", "refused: ")) for said in told)
    return [said for said in told if not said.startswith("refused: ")]


def look(location: Path, stage: Stage, told: list[str]) -> None:
    """Fail unless what was told holds and all goes on."""
    committed = sum(said.startswith("committed ") for said in told)
    after_a_crash(location, stage, SCENES["hinted"], least=committed, most=1, told=told)


@pytest.mark.parametrize(("calls", "error", "when"), TO_THE_LOG)
def test_a_catalog_whose_log_cannot_be_written_costs_no_restore_point(
    trials: Path, stages: dict[str, Stage], calls: str, error: str, when: str
) -> None:
    location = fresh_copy(stages["plain"], trials / "trial")
    told = played(location, calls, error, when)
    assert told is not None
    assert any(said.startswith("committed ") for said in told), "the catalog is not the truth, so nothing is refused"
    assert error != "ENOSPC" or not list(location.glob("*.corrupt-*")), "it is set aside for damage only"
    look(location, stages["plain"], told)


@pytest.mark.parametrize(("calls", "error", "when"), TO_A_NEW_CATALOG)
def test_a_catalog_that_cannot_be_made_again_costs_no_restore_point(
    trials: Path, stages: dict[str, Stage], calls: str, error: str, when: str
) -> None:
    for call in range(int(when.removesuffix("+")), 0, -1):
        location = fresh_copy(stages["plain"], trials / f"from-{call}" / "trial")
        for name in (CATALOG, LOG):
            (location / name).unlink(missing_ok=True)
        told = played(location, calls, error, f"{call}+")
        if told is not None:
            return look(location, stages["plain"], told)
    raise AssertionError("DuckDB made no such call")


@pytest.mark.parametrize("room", [0, 100, 1000])
def test_a_log_that_may_not_grow_costs_no_restore_point(trials: Path, stages: dict[str, Stage], room: int) -> None:
    """Whatever else is written is smaller than the log is already, so only DuckDB meets the limit."""
    location = fresh_copy(stages["plain"], trials / "trial")
    limit = (location / LOG).stat().st_size + room
    subprocess.run(python("tests.crash.duckdb_victim", str(location), str(limit)), check=True)
    told = _told(location)
    assert any(said.startswith("committed ") for said in told)
    assert (location / LOG).stat().st_size <= limit
    assert not list(location.glob("*.corrupt-*")), "it is set aside for damage only"
    look(location, stages["plain"], told)
