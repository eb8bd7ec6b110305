"""One disk on its way to a lease of an import, over a connection of its own. Blocking; for one thread at a time."""

from __future__ import annotations

from http.client import HTTPException

from connectors.errors import ReadFailed, TransportFailed, WriteFailed
from connectors.vsphere.export_lease import Lease
from connectors.vsphere.nfc_line import NfcLine
from connectors.vsphere.vmdk_writer import StreamPlan, StreamWriter

ANSWER_SECONDS = 3600.0
"""How long a host may take to say that it has a disk: it may zero what is left of a thick one first."""


class Upload:
    """A BlockingWriter that sends a disk as a stream: in the order of the disk, nothing twice, the planned all."""

    def __init__(self, line: NfcLine, lease: Lease, plan: StreamPlan) -> None:
        self.capacity_bytes = plan.capacity_bytes
        self._line = line
        self._lease = lease
        self._stream = StreamWriter(plan, self._send, line.where)

    def begin(self) -> None:
        """Connect, verify, and announce the disk. Raises TransportFailed."""
        line, http = self._line, self._line.http
        line.connect()
        try:
            http.putrequest("POST", line.path, skip_accept_encoding=True)
            http.putheader("Content-Type", "application/x-vnd.vmware-streamVmdk")
            http.putheader("Content-Length", str(self._stream.plan.length))
            http.putheader("Overwrite", "t")
            http.endheaders()
        except (OSError, HTTPException) as error:
            raise line.refused("take the disk", error) from error
        try:
            self._stream.begin()
        except WriteFailed as error:
            raise TransportFailed(error.what, where=line.where) from error

    def write(self, offset: int, view: memoryview) -> None:
        """Send all of view, which lies behind what was sent before. WriteFailed when the host or vCenter has enough."""
        if self._lease.trouble:
            raise WriteFailed(self._lease.trouble, where=self._line.where)
        self._stream.write(offset, view)
        self._lease.advance(view.nbytes)

    def read_into(self, offset: int, view: memoryview) -> None:
        """What was sent cannot be read: ReadFailed."""
        raise ReadFailed("a disk that is being imported cannot be read", where=self._line.where)

    def flush(self) -> None:
        """Nothing is durable before the end."""

    def finish(self) -> None:
        """Send the end, and wait until the host has the disk. Raises WriteFailed."""
        self._stream.finish()
        line = self._line
        line.http.sock.settimeout(ANSWER_SECONDS)
        try:
            answer = line.http.getresponse()
            said = answer.read(1000)
        except (OSError, HTTPException) as error:
            raise self._broke(error) from error
        if answer.status not in (200, 201, 204):
            raise WriteFailed(_refused(line.host, answer.status, answer.reason, said), where=line.where)

    def close(self) -> None:
        """End the connection. Idempotent."""
        self._line.close()

    def _send(self, data: memoryview) -> None:
        try:
            self._line.http.send(data)
        except (OSError, HTTPException) as error:
            raise self._broke(error) from error

    def _broke(self, error: BaseException) -> WriteFailed:
        """A host that refuses says so before it closes, and often before all is sent."""
        line = self._line
        try:
            line.http.sock.settimeout(1.0)
            answer = line.http.getresponse()
            said = answer.read(1000)
        except (OSError, HTTPException, AttributeError):
            return WriteFailed(
                f"host {line.host} broke the import off: {error or type(error).__name__}", where=line.where
            )
        return WriteFailed(_refused(line.host, answer.status, answer.reason, said), where=line.where)


def _refused(host: str, status: int, reason: str, said: bytes) -> str:
    text = " ".join(said.decode(errors="replace").split())
    shown = f": {text}" if text.isprintable() and text and "<" not in text else ""
    return f"host {host} refuses the disk (HTTP {status} {reason}{shown})"
