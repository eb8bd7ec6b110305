"""What can go wrong at the edges. Each error says what happened, where, what to do, and whether to try again."""

from __future__ import annotations

from collections.abc import Sequence


class ConnectorError(Exception):
    """A hypervisor, a disk or the bus did not do what was asked.

    `retry` tells whether the same call may succeed later; `hint` tells an operator what to do.
    """

    retry = False

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.what}{hint}"


class Unreachable(ConnectorError):
    """The other side does not answer or closed the connection."""

    retry = True


class LoginRefused(ConnectorError):
    """User name, password, token or certificate was not accepted."""


class NotPermitted(ConnectorError):
    """The account lacks a privilege, which the message names."""


class Gone(ConnectorError):
    """The object is not there any more."""


class Rejected(ConnectorError):
    """The other side refused the call as it was put; putting it again the same way will not help."""


class AlreadyThere(Rejected):
    """What is to be made has the name or the identity of something that is there, which stays as it is."""


class NotOurs(ConnectorError):
    """What looked like a left-over belongs to somebody else, and stays."""


class Busy(ConnectorError):
    """Another task holds the object; later it will not."""

    retry = True


class SnapshotFailed(ConnectorError):
    """No snapshot could be made."""

    retry = True


class Unconsolidated(ConnectorError):
    """A snapshot is gone, but the disks that it left are not merged yet: they grow until somebody merges them."""

    retry = True


class NoRoom(ConnectorError):
    """A datastore has too little free space for a snapshot."""

    retry = True


class TrackingUnusable(ConnectorError):
    """Changed block tracking cannot be trusted for this disk: read it in full."""


class TransportFailed(ConnectorError):
    """This way to the disk does not work; the next one may."""

    retry = True


class NoTransport(TransportFailed):
    """No way to the disk works. `reasons` are pairs of a transport and why it does not."""

    reasons: tuple[tuple[str, str], ...] = ()

    @classmethod
    def because(cls, reasons: Sequence[tuple[str, str]], *, where: str = "", hint: str = "") -> NoTransport:
        """The error that tells each reason."""
        told = "; ".join(f"{transport}: {why}" for transport, why in reasons) or "none is allowed"
        error = cls(f"no transport works: {told}", where=where, hint=hint)
        error.reasons = tuple(reasons)
        return error


class ReadFailed(ConnectorError):
    """A disk could not be read at an offset."""

    retry = True


class WriteFailed(ConnectorError):
    """A disk could not be written at an offset."""

    retry = True


class BadMessage(ConnectorError):
    """A message on the bus is not one of ours."""
