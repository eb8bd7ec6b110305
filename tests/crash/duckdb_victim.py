"""The process whose DuckDB meets a bad disk: `python -m tests.crash.duckdb_victim FOLDER [LIMIT]`.

It backs up and holds in a stage's repository, and writes down what it was told, as lines of the file `acks` beside it.
With a limit no file of the process can become larger than so many bytes, once the repository is open.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from storage.errors import StorageError
from tests.crash.recording import ACKS
from tests.crash.stages import HINTED, WEB, at_work, disks
from tests.storage_kit import back_up, later


def main(location: Path, limit: int) -> None:
    """Do it, and tell."""
    with location.with_name(ACKS).open("a", buffering=1) as acks:
        try:
            with at_work(location, None) as repo:
                base = [point.id for point in repo.points() if point.vm == WEB][-1]
                if limit:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                point = back_up(repo, disks()["hinted"], base=base, blocks=HINTED, vm=WEB, at=later(hours=5))
                acks.write(f"committed {point.id}\n")
                repo.mark_hold(point.id, "court", later(hours=5))
                acks.write(f"held {point.id} court\n")
        except StorageError as error:
            acks.write(f"refused: {error}\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        acks.write("done\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
