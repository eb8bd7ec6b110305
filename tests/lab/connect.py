"""How tests reach the lab with Backstay's own vCenter connector."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from connectors.vsphere.events import FollowSettings
from connectors.vsphere.hypervisor import VCenter, VCenterSettings
from connectors.vsphere.making import SnapshotSettings
from connectors.vsphere.removal import RemovalSettings
from connectors.vsphere.session import SessionSettings
from connectors.vsphere.transport_settings import TransportSettings
from tests.lab.vcenter import Lab

QUICK_EVENTS = FollowSettings(idle_seconds=0.05, heartbeat_seconds=0.2, stall_seconds=1.0)
QUICK_SNAPSHOTS = SnapshotSettings(
    create_seconds=30,
    removal=RemovalSettings(seconds=30, attempts=8, first_pause=0.05, longest_pause=0.2),
)


def session_settings(
    lab: Lab, *, password: str | None = None, ca_file: Path | None = None, host: str = "", engine_id: str = "e1"
) -> SessionSettings:
    secret = lab.password if password is None else password
    return SessionSettings(
        host=host or lab.host,
        port=lab.port,
        user=lab.user,
        password=lambda: secret,
        engine_id=engine_id,
        ca_file=ca_file or lab.ca_file,
        answer_seconds=20.0,
    )


def vcenter_settings(
    lab: Lab, *, engine_id: str = "e1", transports: TransportSettings | None = None
) -> VCenterSettings:
    return VCenterSettings(
        session=session_settings(lab, engine_id=engine_id),
        transports=transports or TransportSettings(order=("nbd",)),
        snapshots=QUICK_SNAPSHOTS,
        events=QUICK_EVENTS,
        tags_every_seconds=0.5,
    )


@asynccontextmanager
async def connected(
    lab: Lab, *, engine_id: str = "e1", transports: TransportSettings | None = None
) -> AsyncIterator[VCenter]:
    """The lab's vCenter as the engine would have it, with short waits."""
    vcenter = await VCenter.connect(vcenter_settings(lab, engine_id=engine_id, transports=transports))
    try:
        yield vcenter
    finally:
        await vcenter.aclose()


async def until(holds: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Wait for something that the lab does in its own time."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - the lab is another process and has no event to wait for
            await asyncio.sleep(0.02)
