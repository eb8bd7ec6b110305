"""How the engine, and commands that visit a vCenter without one, connect to what the configuration names.

Apart from `engine.service`, as a command that connects needs neither the engine's state nor its API.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from connectors.diagnosis import NbdTools
from connectors.errors import LoginRefused
from connectors.gates import GateLimits, Gates
from connectors.nats_login import BusSettings
from connectors.vsphere import vddk
from connectors.vsphere.hypervisor import VCenter, VCenterSettings
from connectors.vsphere.session import SessionSettings
from connectors.vsphere.tracking_defects import parse_defect
from connectors.vsphere.transport_settings import AttachIntent, TransportSettings, ignore_intent
from engine import sections
from engine.config import Config
from engine.credentials import Secret
from engine.failures import BadInput


async def connect(
    name: str,
    vcenter: sections.VCenter,
    config: Config,
    *,
    on_intent: Callable[[AttachIntent], None] = ignore_intent,
) -> VCenter:
    """Log in to one vCenter; LoginRefused or Unreachable."""
    settings = VCenterSettings(
        session=SessionSettings(
            host=vcenter.host,
            port=vcenter.port,
            user=vcenter.user,
            password=password_of(vcenter.password),
            engine_id=engine_id(config),
            ca_file=vcenter.ca_file,
            gates=Gates(gate_limits(config)),
        ),
        transports=transports_of(config, on_intent),
        defects=tuple(parse_defect(text) for text in vcenter.distrusted_builds),
    )
    return await VCenter.connect(settings)


def transports_of(config: Config, on_intent: Callable[[AttachIntent], None] = ignore_intent) -> TransportSettings:
    """The ways to disks as the configuration names them."""
    transport = config.transport
    if len(transport.nbdkit) != 1:
        raise BadInput("names a program without arguments", where="transport.nbdkit", hint="put them into plugin")
    return TransportSettings(
        order=transport.order,
        hotadd=transport.hotadd,
        compression=transport.compression or "",
        nbdkit=transport.nbdkit[0],
        plugin=transport.plugin,
        libdir=str(transport.libdir or ""),
        proxy=transport.proxy,
        device_folder=transport.device_folder,
        stats_folder=_stats_folder(),
        environment=_for_nbdkit(),
        on_intent=on_intent,
    )


async def nbd_tools(config: Config) -> NbdTools:
    """What there is for NBD on this machine."""
    return await vddk.tools(transports_of(config))


def password_of(secret: Secret) -> Callable[[], str]:
    """Reads the password at each login. A place that was readable once is waited for: it ends no running engine."""
    known = False

    def read() -> str:
        nonlocal known
        try:
            password = secret.read()
        except BadInput as error:
            if known:
                raise LoginRefused(f"the password cannot be read now: {error}") from error
            raise
        known = True
        return password

    return read


def _stats_folder() -> Path | None:
    named = os.environ.get("BACKSTAY_NBDKIT_STATS")
    return Path(named) if named else None


def _for_nbdkit() -> dict[str, str]:
    """What nbdkit's plugin may see of our environment: where a stand-in for VMware's library finds its lab."""
    return {name: value for name, value in os.environ.items() if name == "BACKSTAY_LAB_ROOT"}


def bus_settings(bus: sections.Bus) -> BusSettings:
    """What the connector needs of `[bus]`; BadInput where a secret is not in a file."""
    for name, secret in (("password", bus.password), ("token", bus.token)):
        if secret is not None and secret.kind != "file":
            raise BadInput("must be read from a file", where=f"bus.{name}", hint=f'write {name} = "file:/path"')
    return BusSettings(
        servers=bus.servers,
        site=bus.site,
        user=bus.user,
        password_file=Path(bus.password.place) if bus.password is not None else None,
        token_file=Path(bus.token.place) if bus.token is not None else None,
        nkey_file=bus.nkey_file,
        credentials_file=bus.credentials,
        tls_ca=bus.ca_file,
        tls_certificate=bus.certificate,
        tls_key=bus.key,
        monitor_url=bus.monitor_url,
        ack_wait_seconds=bus.ack_wait.total_seconds(),
        max_deliver=bus.max_deliver,
    )


def engine_id(config: Config) -> str:
    """How this engine marks what it makes in vCenter: the same after every start, in letters that vSphere keeps."""
    return re.sub(r"[^A-Za-z0-9._]", "_", config.name)


def gate_limits(config: Config) -> GateLimits:
    """How much may happen at once in one vCenter, as configured."""
    own = config.limits
    return GateLimits(own.snapshots_per_vcenter, own.removals_per_vcenter, own.removals_per_datastore, own.nbd_per_host)
