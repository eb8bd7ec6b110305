"""The tables of the configuration file, each with what it takes and what it is for."""

from __future__ import annotations

import os
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, field_validator, model_validator

from engine.addresses import is_loopback, split_address
from engine.headroom import Mark, parse_mark
from engine.hours import OpenHours
from engine.stores import RepositorySection, SecretSource
from engine.stores import Section as _Section
from engine.units import parse_size
from policies.units import parse_duration


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    return parse_duration(value if isinstance(value, str) else repr(value))


def _size(value: object) -> int:
    return value if isinstance(value, int) else parse_size(value if isinstance(value, str) else repr(value))


def _argv(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(shlex.split(value))
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return tuple(value)
    raise ValueError("write a string or a list of strings")


Duration = Annotated[timedelta, BeforeValidator(_duration)]


def _zone(value: Any) -> Any:
    try:
        return ZoneInfo(value) if isinstance(value, str) else value
    except (ValueError, ZoneInfoNotFoundError):
        raise ValueError(f'"{value}" is no time zone; write for instance "Europe/Berlin"') from None


def _free_space(value: object) -> Mark:
    return value if isinstance(value, Mark) else parse_mark(value if isinstance(value, str) else repr(value))


TimeZone = Annotated[ZoneInfo, PlainValidator(_zone)]
Size = Annotated[int, BeforeValidator(_size)]
Argv = Annotated[tuple[str, ...], BeforeValidator(_argv)]
FreeSpace = Annotated[Mark, PlainValidator(_free_space), PlainSerializer(str, return_type=str)]
Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
TransportName = Literal["hotadd", "nbd", "export", "https"]


EsxiBuilds = Annotated[str, Field(pattern=r"^\d+(\.\d+)*( *< *\d+)?$")]


class Show(_Section):
    """`[vcenter.NAME.show]`: what people see of our work in that vCenter, where the account may show it.

    `attributes`: the last restore point, the policies and the state, as custom attributes of each VM; `events`: runs
    that succeed or fail, and VMs that nothing protects; `tasks`: runs that go on.
    """

    attributes: bool = False
    events: bool = False
    tasks: bool = False


class VCenter(_Section):
    """`[vcenter.NAME]`: one vCenter. Without ca_file the system's authorities are trusted; one is always checked.

    `distrusted_builds` are versions of ESXi whose change tracking is not believed, besides those that are known:
    "8.0.2" for all its builds, "8.0.2 < 22380479" for those below. `known_as` are other names of its host, as events
    that come by the bus may give them.
    """

    host: str = Field(min_length=1)
    user: str = Field(min_length=1)
    password: SecretSource
    port: Port = 443
    ca_file: Path | None = None
    distrusted_builds: tuple[EsxiBuilds, ...] = ()
    show: Show = Field(default_factory=Show)
    known_as: tuple[str, ...] = ()


class Copy(RepositorySection):
    """`[copies.NAME]`: a repository that gets a second copy of what policies name it for."""


class Api(_Section):
    """`[api]`: a Unix socket of mode 0600, and TCP with a bearer token where asked for.

    TCP beyond loopback needs a certificate. An empty socket stands for the default place.
    """

    socket: Path | None = None
    tcp: str = ""
    token: SecretSource | None = None
    certificate: Path | None = None
    key: Path | None = None

    @field_validator("tcp")
    @classmethod
    def _has_port(cls, value: str) -> str:
        if value:
            split_address(value)
        return value

    @model_validator(mode="after")
    def _is_guarded(self) -> Api:
        if self.tcp and self.token is None:
            raise ValueError('tcp needs a token; add token = "file:/path/to/token"')
        if self.tcp and self.certificate is None and not is_loopback(split_address(self.tcp)[0]):
            raise ValueError("tcp beyond loopback needs certificate and key; add them or listen on 127.0.0.1")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together; add the missing one")
        return self


class Metrics(_Section):
    """`[metrics]`: an address that serves only /metrics and /healthz, without a token; empty for none."""

    listen: str = ""

    @field_validator("listen")
    @classmethod
    def _has_port(cls, value: str) -> str:
        if value:
            split_address(value)
        return value


class Bus(_Section):
    """`[bus]`: NATS. Off loopback, TLS and one way to log in are required.

    `monitor_url` is the server's monitoring address, which alone tells whether it writes to disk before it
    acknowledges. A message comes again after `ack_wait` and is given up after `max_deliver` deliveries.
    """

    servers: tuple[str, ...] = Field(min_length=1)
    site: str = Field(default="main", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    user: str = ""
    password: SecretSource | None = None
    token: SecretSource | None = None
    nkey_file: Path | None = None
    credentials: Path | None = None
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    monitor_url: str = Field(default="", pattern=r"^(https?://[^/@]+/?)?$")
    ack_wait: Duration = timedelta(minutes=1)
    max_deliver: Count = 5

    @field_validator("servers", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("ack_wait")
    @classmethod
    def _is_long_enough(cls, value: timedelta) -> timedelta:
        if value < timedelta(seconds=1):
            raise ValueError('must be a second or longer; write for instance "60s"')
        return value

    @model_validator(mode="after")
    def _is_guarded(self) -> Bus:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together; add the missing one")
        if bool(self.user) != (self.password is not None):
            raise ValueError("user and password belong together; add the missing one")
        ways = [bool(self.user), *(way is not None for way in (self.token, self.nkey_file, self.credentials))]
        if sum(ways) > 1:
            raise ValueError("keep one way to log in: credentials, nkey_file, user and password, or token")
        for server in self.servers:
            scheme, _, rest = server.rpartition("://")
            if "@" in rest:
                raise ValueError("a server's address holds no password; use credentials, user and password, or token")
            host = rest.rpartition(":")[0] or rest
            if is_loopback(host.strip("[]")):
                continue
            if scheme != "tls":
                raise ValueError(f'"{server}" is not on this machine and needs TLS; write "tls://{rest}"')
            if not any(ways) and self.certificate is None:
                raise ValueError(
                    f'"{server}" is not on this machine: add credentials, nkey_file, user and password, token, '
                    "or certificate and key"
                )
        return self


class Transport(_Section):
    """`[transport]`: the ways to a disk, tried in order.

    `hotadd` is whether disks are attached to the VM that this engine runs in: "auto" as far as the edition of vSphere
    is known to allow it, "always" whatever the edition, "never" not at all. `proxy` names that VM (name or BIOS uuid).
    `nbdkit` and `plugin` are argument lists, to which the connector adds the parameters that the vddk plugin takes;
    `compression` is VDDK's between here and the ESXi host.
    """

    order: tuple[TransportName, ...] = ("hotadd", "nbd", "export", "https")
    hotadd: Literal["auto", "always", "never"] = "auto"
    proxy: str = ""
    device_folder: Path = Path("/dev/disk/by-id")
    nbdkit: Argv = ("nbdkit",)
    plugin: Argv = ("vddk",)
    libdir: Path | None = None
    compression: Literal["none", "zlib", "fastlz", "skipz"] | None = None


class Limits(_Section):
    """`[limits]`: how much may happen at once. Memory of reading is disks × lanes × 1 MiB.

    `total` to `per_repository` count backups. Other work in a repository (second copies, verification, reclaim)
    counts with those to it, but leaves them one place. Policies may have tighter limits of their own.
    `starts_per_minute` is for where many places are free at once: not all snapshots shall be made in one second.
    """

    total: Count = 4
    per_host: Count = 2
    per_datastore: Count = 4
    per_vcenter: Count | None = None
    per_repository: Count | None = None
    starts_per_minute: Count = 60
    snapshots_per_vcenter: Count = 10
    removals_per_vcenter: Count = 8
    removals_per_datastore: Count = 2
    nbd_per_host: Count = 8
    """Snapshots that are made, and that are removed, at a time, and disks that are read from one host over the
    network: what has to wait goes on by itself."""

    datastore_free: FreeSpace = Mark(share=0.10)
    """No snapshot is begun with less free on a datastore of the VM: a share such as "10%" or a size."""

    datastore_low: FreeSpace = Mark(share=0.05)
    """With less, a run that reads ends and its snapshot goes. What its deltas may come to is kept free above this."""

    foreign_snapshot_age: Duration = timedelta(hours=72)
    """Snapshots of others that are older are told."""

    rehearsals: Count = 1
    """Restore points that are restored into trial VMs at a time because policies want it."""

    disks_per_vm: Count = 2
    lanes: Count = 16
    threads: Count = Field(default_factory=lambda: max(2, min(os.cpu_count() or 2, 8)))

    @model_validator(mode="after")
    def _low_is_lower(self) -> Limits:
        free, low = self.datastore_free, self.datastore_low
        if (low.share > free.share and not free.fixed_bytes) or (low.fixed_bytes > free.fixed_bytes and not free.share):
            raise ValueError('datastore_low is above datastore_free; write for instance "5%" and "10%"')
        return self


class Timers(_Section):
    """`[timers]`: how often what runs by itself is looked at."""

    clock: Duration = timedelta(seconds=30)
    reconcile: Duration = timedelta(minutes=15)
    janitor: Duration = timedelta(minutes=10)
    retention: Duration = timedelta(hours=1)
    reclaim: Duration = timedelta(days=1)
    verify: Duration = timedelta(days=1)
    rehearsals: Duration = timedelta(minutes=1)
    copies: Duration = timedelta(minutes=15)
    locks: Duration = timedelta(days=1)
    policies: Duration = timedelta(seconds=2)
    notices: Duration = timedelta(minutes=3)
    """How long news is collected before it is told: what comes together is told together, what passes by is not."""

    @field_validator("*")
    @classmethod
    def _is_positive(cls, value: timedelta) -> timedelta:
        if value <= timedelta(0):
            raise ValueError('must be longer than nothing; write for instance "10m"')
        return value


class Maintenance(_Section):
    """`[maintenance]`: when what loads a repository's store runs, and the ages that keep reclaim away from what may
    still be needed."""

    orphan_pack: Duration = timedelta(hours=24)
    """Reclaim's safety age, longer than the longest backup can stay uncommitted: a younger pack is never condemned,
    and a condemned one is freed no sooner than this."""

    expiry_grace: Duration = timedelta(0)
    """How long a restore point stays marked before retention forgets it."""

    copy_wait: Duration = timedelta(days=30)
    """How long a restore point that nothing keeps any more stays for the second copies that lack it and would keep it;
    nothing for no wait."""

    max_expire: Count | None = None
    """At most so many restore points expire in one run of retention; None for no limit."""

    reread: Duration = timedelta(days=30)
    """Verification reads what was not read back for so long, and what is new since the last one."""

    window: OpenHours = ()
    """When verification, reclaim and rehearsals whose policy says nothing may run, such as "mon..fri 22:00-06:00";
    always when nothing is said. What people ask for runs at once, and so do backups, copies and retention."""

    verify_window: OpenHours = ()
    """When verification may read, in place of `window`."""

    timezone: TimeZone = Field(default_factory=lambda: ZoneInfo("UTC"))
    """Where the times of all windows are."""
