"""Disks over the network: nbdkit with VMware's VDDK in its own process, read and written by our NBD client."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from connectors.diagnosis import NbdTools
from connectors.errors import ConnectorError, TransportFailed
from connectors.nbd import NbdDisk, open_nbd
from connectors.nbd_protocol import UnixAddress
from connectors.vsphere.nbdkit import Launch, Spot, serving
from connectors.vsphere.session import Session
from connectors.vsphere.transport_settings import TransportSettings

log = logging.getLogger(__name__)

GET_VDDK = "VMware's VDDK is on its developer site for who has an account there; unpack it and name it as libdir"
GET_BOTH = (
    "Fedora, RHEL and Ubuntu package nbdkit with its vddk plugin, Debian without it (build nbdkit there with "
    f"--enable-vddk, or use hot-add); {GET_VDDK}"
)

_SECTOR_BYTES = 512
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class NetworkDisk:
    """Which disk to open. With a snapshot it is read-only; without one it is the live disk of a powered-off VM."""

    vm_moref: str
    file_name: str
    run: str
    snapshot_moref: str = ""


def refusal(settings: TransportSettings) -> str:
    """Why this machine cannot use NBD at all; empty when it can."""
    if shutil.which(settings.nbdkit) is None:
        return f"{settings.nbdkit} is not installed"
    if settings.plugin == ("vddk",) and not settings.libdir:
        return "no VDDK library is configured; VMware's VDDK has to be downloaded and its folder named"
    if settings.libdir and not Path(settings.libdir).is_dir():
        return f"the folder of the VDDK library, {settings.libdir}, is not there"
    return ""


async def tools(settings: TransportSettings) -> NbdTools:
    """What there is for NBD here, as nbdkit itself tells it. Never raises."""
    if why := refusal(settings):
        return NbdTools(why, GET_BOTH)
    code, version, said = await _told([settings.nbdkit, "--version"], settings)
    if code:
        return NbdTools(f"nbdkit does not start: {said or version}", GET_BOTH)
    nbdkit = version.strip()
    libdir = [f"libdir={settings.libdir}"] if settings.libdir else []
    code, dump, said = await _told([settings.nbdkit, *settings.plugin, "--dump-plugin", *libdir], settings)
    if code:
        return NbdTools(f"nbdkit does not load its {settings.plugin[0]} plugin: {said or dump}", GET_BOTH, nbdkit)
    fields = dict(line.split("=", 1) for line in dump.splitlines() if "=" in line)
    library = fields.get("vddk_library_version", "")
    if not library:
        where = settings.libdir or fields.get("vddk_default_libdir", "its own place")
        return NbdTools(f"VDDK cannot be loaded from {where}", GET_VDDK, nbdkit)
    return NbdTools("", "", nbdkit, f"VDDK {library}")


async def _told(arguments: Sequence[str], settings: TransportSettings) -> tuple[int, str, str]:
    """(exit code, output, first error) of a short command of nbdkit's."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), **settings.environment}
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        out, err = await asyncio.wait_for(process.communicate(), settings.ready_seconds)
    except OSError as exc:
        return 1, "", exc.strerror or str(exc)
    except TimeoutError:
        process.kill()
        await process.wait()
        return 1, "", f"no answer within {settings.ready_seconds:g} s"
    lines = [line for line in err.decode("utf-8", "replace").splitlines() if line.strip()]
    return process.returncode or 0, out.decode("utf-8", "replace"), lines[0] if lines else ""


def command(disk: NetworkDisk, session: Session, settings: TransportSettings, thumbprint: str, spot: Spot) -> list[str]:
    """The argument list for nbdkit. The password is only named by its descriptor."""
    # The filter that is named first is the nearest to the client: retry has to sit next to the plugin.
    filters, parameters = (
        ["blocksize", "retry"],
        [f"minblock={_SECTOR_BYTES}", f"maxdata={settings.limits.request_bytes}"],
    )
    parameters += [f"retries={settings.retries}", "retry-delay=1"]
    if settings.stats_folder is not None:
        filters.append("stats")
        parameters.append(f"statsfile={settings.stats_folder / _stats_name(disk)}")
    server = [f"libdir={settings.libdir}"] if settings.libdir else []
    server += [f"server={session.settings.host}", f"user={session.settings.user}"]
    server += [f"port={session.settings.port}"] if session.settings.port != 443 else []
    which = [f"vm=moref={disk.vm_moref}", f"file={disk.file_name}"]
    which += [f"snapshot={disk.snapshot_moref}"] if disk.snapshot_moref else []
    return [
        settings.nbdkit,
        "-f",
        *(["-r"] if disk.snapshot_moref else []),
        "--exit-with-parent",
        "-U",
        str(spot.socket),
        "-P",
        str(spot.pid_file),
        *(f"--filter={name}" for name in filters),
        *settings.plugin,
        *server,
        f"password=-{spot.password_fd}",
        f"thumbprint={thumbprint}",
        *which,
        f"transports={settings.vddk_transports}",
        *([f"compression={settings.compression}"] if settings.compression else []),
        *parameters,
    ]


@asynccontextmanager
async def open_network_disk(session: Session, disk: NetworkDisk, settings: TransportSettings) -> AsyncIterator[NbdDisk]:
    """The disk over NBD, open until the block ends; then its nbdkit has stopped. Raises TransportFailed."""
    where = f"NBD to {disk.file_name}"
    if why := refusal(settings):
        raise TransportFailed(why, where=where)
    try:
        thumbprint = await session.call(_thumbprint, session)
    except ConnectorError as exc:
        raise TransportFailed(f"the certificate of vCenter could not be read: {exc}", where=where) from exc
    launch = Launch(
        command=lambda spot: command(disk, session, settings, thumbprint, spot),
        password=await asyncio.to_thread(session.settings.password),
        where=where,
        environment=settings.environment,
        scratch=settings.scratch,
        ready_seconds=settings.ready_seconds,
        stop_seconds=settings.stop_seconds,
    )
    async with serving(launch) as (path, process), AsyncExitStack() as stack:
        try:
            opened = await stack.enter_async_context(
                open_nbd(UnixAddress(str(path)), limits=settings.limits, writable=not disk.snapshot_moref)
            )
        except TransportFailed as exc:
            raise TransportFailed(f"{exc.what}; nbdkit says: {process.last_words() or 'nothing'}", where=where) from exc
        try:
            yield opened
        except ConnectorError as exc:
            if words := process.last_words():
                exc.add_note(f"nbdkit says: {words}")
                log.warning("nbdkit reported errors", extra={"disk": disk.file_name, "said": words})
            raise


def _thumbprint(session: Session) -> str:
    """SHA-1 of the certificate that vCenter shows now, verified like every other connection. Blocking."""
    settings = session.settings
    with (
        socket.create_connection((settings.host, settings.port), timeout=settings.answer_seconds) as plain,
        session.tls.wrap_socket(plain, server_hostname=settings.host) as secured,
    ):
        digest = hashlib.sha1(secured.getpeercert(binary_form=True), usedforsecurity=False).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


def _stats_name(disk: NetworkDisk) -> str:
    readable: Sequence[str] = (disk.run, disk.vm_moref, Path(disk.file_name.partition("] ")[2]).stem)
    return re.sub(r"[^A-Za-z0-9._-]", "_", "-".join((*readable, str(next(_numbers))))) + ".stats"
