"""One writer as a process: python -m tests.stores.writing URL STATE_DIR VM COUNT makes and prints restore points."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from storage.places import parse_place
from storage.repository import open_repository
from tests.storage_kit import back_up, image


def disk_of(vm: str, number: int) -> bytearray:
    """What this writer's n-th restore point holds. The first half of it is the same for every VM."""
    return image(number, 100) + image(sum(vm.encode()) * 100 + number, 100)


def main(url: str, state_dir: str, vm: str, count: str) -> None:
    """Make `count` restore points, each in full, and print each id when it is committed."""
    place = parse_place(url, Path(state_dir))
    with open_repository(place, now=lambda: datetime.now(UTC), owner=f"writer {vm}") as repository:
        for number in range(int(count)):
            point = back_up(repository, disk_of(vm, number), vm=vm, name=vm, at=datetime.now(UTC))
            print(point.id, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
