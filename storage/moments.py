"""How a moment and a text are written in the objects of a repository."""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(moment: datetime) -> str:
    """A moment in one form everywhere: UTC, microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def moment(text: str) -> datetime:
    """What `stamp` wrote; ValueError, also where the time zone is missing, as such a time compares with no other."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return found


def legible(text: str) -> str:
    """The text as Unicode can be written, which bytes of a command line or an escape in JSON need not be."""
    return text.encode("utf-8", "backslashreplace").decode()
