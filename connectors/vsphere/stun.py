"""How long the guest of a VM stood still, as its host writes it into the VM's own log whenever it goes on.

vCenter's API does not tell it. The host adds to `vmware.log` beside the VM for each time ("stun") a line such as
`2015-10-27T22:01:42.149Z| vcpu-0| I120: Checkpoint_Unstun: vm stopped for 188405 us` (KB 1002836): at the making and
at the removal of a snapshot, and at a vMotion, with which a new log begins. It is read over vCenter's /folder, or over
that of the VM's own host, where vCenter asks another one that cannot open it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from connectors.errors import ConnectorError, Gone, NotPermitted
from connectors.hypervisor import Stuns
from connectors.vsphere.folder_files import FolderFile, Part, ServerFailed, below, datacenter_of_host, read_part
from connectors.vsphere.host_files import read_part_at
from connectors.vsphere.session import Session
from policies.facts import PowerState, Vm

log = logging.getLogger(__name__)

LOG_NAME = "vmware.log"

LOOK_SECONDS = 5.0
"""No look at a log holds a run up for longer, and one that would have is the last of its run."""

MOST_BYTES = 2 << 20
"""Of what a log has gained since the last look only so much is read, the newest; a run adds some KiB."""

_BEGINNING_BYTES = 256
"""Enough for the first line of a log, whose time and process tell it from the log before."""

_UNSTUN = re.compile(
    rb"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d)"
    rb"(?:\| [\w.-]{1,64}\| (?:[A-Z]\d{1,4}: )?| [A-Z][a-z]\(\d{1,4}\) [\w.-]{1,64} - )"
    rb"Checkpoint_Unstun: vm stopped for (\d{1,12}) us\r?$",
    re.MULTILINE,
)
"""A line of ESXi 5 to 7, or of 8. All of it, as guests have lines of their own in there, which begin otherwise."""


def parse(data: bytes) -> tuple[tuple[float, ...], int]:
    """The stuns, in seconds, of the lines that are whole, and how many bytes these are. Pure."""
    whole = data.rfind(b"\n") + 1
    return tuple(int(found[1]) / 1e6 for found in _UNSTUN.finditer(data, 0, whole)), whole


@dataclass(frozen=True, slots=True)
class _Mark:
    """Up to where which log was read; logs are told apart by how they begin."""

    beginning: bytes
    upto: int

    def is_of(self, seen: Part) -> bool:
        """Whether this is still the log that begins so, rather than a new one."""
        return seen.size >= self.upto and seen.data.startswith(self.beginning)


class StunClock:
    """Tells how long the guest of one VM stood still between two looks. Nothing is asked for a VM that does not run."""

    def __init__(self, session: Session, vm: Vm) -> None:
        self._session = session
        self._vm = vm
        self._managed = session.managed(vim.VirtualMachine, vm.address.moref)
        self._mark: _Mark | None = None
        self._over = vm.power is not PowerState.ON
        self._told = False
        self._at_host = False

    async def look(self) -> Stuns | None:
        """The stuns since the last look; None at the first one, and where they cannot be told. Raises nothing."""
        if self._over:
            return None
        mark, self._mark = self._mark, None
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return await self._since(mark)
        except TimeoutError:
            self._over = True
            self._tell(f"no answer within {LOOK_SECONDS:g} s")
        except ConnectorError as error:
            self._over = isinstance(error, NotPermitted)
            self._tell(str(error))
        return None

    async def _since(self, mark: _Mark | None) -> Stuns | None:
        name, host = await self._place()
        seen = await self._read(name, host, 0, _BEGINNING_BYTES)
        if mark is None:
            self._mark = _Mark(seen.data, seen.size)
            return None
        start = mark.upto if mark.is_of(seen) else 0
        begin = max(start, seen.size - MOST_BYTES)
        data = b""
        if seen.size > begin:
            data = (await self._read(name, host, begin, seen.size - begin)).data
        if begin > start:
            cut = data.find(b"\n") + 1
            begin, data = begin + cut, data[cut:]
        stuns, whole = parse(data)
        self._mark = _Mark(seen.data, begin + whole)
        return Stuns(stuns)

    async def _read(self, name: str, host: Any, start: int, length: int) -> Part:
        """By vCenter; where it cannot by the VM's host, and by that first for as long as that works."""
        if not self._at_host:
            try:
                file = FolderFile(name, await datacenter_of_host(self._session, host))
                return await read_part(self._session, file, start, length)
            except ServerFailed as error:
                log.debug("the log of the VM is asked of its host", extra={"vm": self._vm.name, "why": str(error)})
        self._at_host = False
        part = await read_part_at(self._session, host, name, start, length)
        self._at_host = True
        return part

    async def _place(self) -> tuple[str, Any]:
        """The log and the VM's host, as they are now: a move of storage takes it along, or begins a new one there."""
        told = await self._session.properties(self._managed, ["config.files.logDirectory", "runtime.host"])
        folder, host = str(told.get("config.files.logDirectory") or ""), told.get("runtime.host")
        if host is None:
            raise Gone("the VM has no host", where=self._vm.name)
        return below(folder, LOG_NAME), host

    def _tell(self, why: str) -> None:
        if not self._told:
            log.debug("how long the guest stands still is not known", extra={"vm": self._vm.name, "why": why})
        self._told = True
