"""The VMs that are there when the lab opens."""

from collections.abc import Sequence
from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A VM that is there when the lab opens. Disks in bytes; `independent` and `multi_writer` are indices into them.

    What comes after `guest_id` makes it a kind of its own: see kinds.go.
    """

    name: str
    disks: tuple[int, ...] = (64 * MIB,)
    folder: str = ""
    cluster: int = 0
    host: int = 0
    pool: str = ""
    datastore: str = "fast-1"
    independent: tuple[int, ...] = ()
    multi_writer: tuple[int, ...] = ()
    raw_mappings: int = 0
    power: str = "on"
    tools: bool = True
    tracking: bool = False
    template: bool = False
    guest_id: str = ""
    vapp: str = ""
    encrypted: bool = False
    vtpm: bool = False
    linked: bool = False
    passthrough: bool = False
    virtual_mappings: int = 0
    shared_bus: bool = False
    fault_tolerance: bool = False
    connection: str = ""
    question: str = ""
    adapter: str = ""
    free_slots: int | None = None
    no_disk_uuids: bool = False
    vss_writers: bool = False
    bare_manifest: bool = False
    tools_version: str = ""
    suspend_memory: bool = False
    content: bool = True


def company(count: int, *, disks: int | None, size: int, hosts: int, clusters: int, datastores: Sequence[str],
             tracking: bool, tools: bool, content: bool) -> list[Machine]:  # fmt: skip
    """A small company: every third VM has two disks, and VMs are spread over folders, pools, hosts and datastores."""
    width = max(2, len(str(count)))
    return [
        Machine(
            name=f"{('web', 'app', 'db')[n % 3]}-{n + 1:0{width}d}",
            disks=(size,) * (disks or (2 if n % 3 == 2 else 1)),
            folder=("prod/web", "test", "prod/db")[n % 3],
            cluster=n % clusters,
            host=(n // clusters) % hosts,
            pool=("gold", "")[n % 2],
            datastore=datastores[n % len(datastores)],
            tracking=tracking,
            tools=tools,
            content=content,
        )
        for n in range(count)
    ]
