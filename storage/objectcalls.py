"""One request to an object store: asked again with growing pauses where that can help, and told in our words where not.

What obstore raises stops here. Its texts hold addresses and whole answers, so that only status and code are passed on.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from storage.errors import (
    AccessRefused,
    AlreadyExists,
    Changed,
    Damaged,
    Missing,
    NoRepository,
    NoSpace,
    StorageError,
    StoreFailed,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XAmzStorageFull"})
_BRIEF = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request is tried again. A store that never answered yet is more likely a wrong address."""

    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 8.0
    give_up_seconds: float = 120.0
    give_up_at_first_seconds: float = 15.0


class Again(Exception):
    """The same request may succeed later. `why` is told when it never does."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Calls:
    """Requests to one store, counted by kind, retries included. Thread-safe."""

    def __init__(self, place: str, patience: Patience | None = None) -> None:
        self._place = place
        self._patience = patience or Patience()
        self._lock = threading.Lock()
        self._answered = False
        self.counts: Counter[str] = Counter()

    def ask(self, kind: str, key: str, act: Callable[[bool], T]) -> T:
        """What `act` gives. It is told whether an earlier try failed in a way that may have had its effect."""
        begun = time.monotonic()
        pause = self._patience.first_pause_seconds
        tries = 0
        while True:
            tries += 1
            with self._lock:
                self.counts[kind] += 1
            try:
                result = act(tries > 1)
            except Again as again:
                why = again.why
            except StorageError:
                self._answered = True
                raise
            except Exception as error:  # obstore's own, and ValueError or FileNotFoundError from it
                found = translated_error(error, self._place, key)
                if isinstance(found, StorageError):
                    raise found from None
                why = found.why
            else:
                self._answered = True
                return result
            limit = self._patience.give_up_seconds if self._answered else self._patience.give_up_at_first_seconds
            spent = time.monotonic() - begun
            if spent + pause > limit:
                raise StoreFailed(
                    f"the store does not answer: {why} ({tries} tries in {spent:.0f} s)",
                    where=f"{self._place}: {key}" if key else self._place,
                    hint="trying again later can help; check endpoint and network",
                ) from None
            log.info("store asked again", extra={"object": key, "why": why, "tries": tries})
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, self._patience.longest_pause_seconds)


def translated_error(error: Exception, place: str, key: str) -> StorageError | Again:
    """Ours for what obstore raised; Again when the same request may succeed later."""
    from obstore import exceptions as foreign

    said, _, detail = str(error).partition("\n\nDebug source")
    status = int(found[1]) if (found := _STATUS.search(said)) else 0
    code = found[1] if (found := _CODE.search(said)) else ""
    where = f"{place}: {key}" if key else place
    answer = f"{status} {code}".strip()
    if code == "NoSuchBucket":
        return NoRepository("there is no such bucket", where=place, hint="make the bucket first, or check its name")
    if code in _FULL or status == 507:
        return NoSpace("the store has no room", where=where, hint="free some space, then run again")
    if status == 409:
        return Again("409, as another request for this object is under way")
    if status == 416:
        return Damaged("this blob is shorter than what was written", where=key)
    if isinstance(error, FileNotFoundError):
        return Missing("this blob is missing", where=key)
    if isinstance(error, foreign.AlreadyExistsError):
        return AlreadyExists("this blob is there already", where=key)
    if isinstance(error, foreign.PreconditionError):
        return Changed("another writer changed this meanwhile", where=key, hint="run it again")
    if status in (401, 403) or isinstance(error, foreign.PermissionDeniedError | foreign.UnauthenticatedError):
        return AccessRefused(f"the store refused the login or the right: {answer}", where=where, hint=_login_hint(code))
    if status >= 500 or status in _BRIEF:
        return Again(answer)
    if status:
        return StoreFailed(f"the store refused the request: {answer}", where=where)
    if "certificate" in detail.lower():
        return AccessRefused(
            "the store's certificate is not trusted", where=place, hint="set ca_file to the authority that signed it"
        )
    if "HTTP error" in said:
        return Again("no connection" if "kind: Connect" in detail else "the connection broke or took too long")
    if isinstance(error, foreign.GenericError) and not isinstance(error, ValueError):
        return Again("no credentials or no answer")
    return AccessRefused(f"the store's settings cannot be used: {type(error).__name__}", where=place)


def _login_hint(code: str) -> str:
    if code == "RequestTimeTooSkewed":
        return "set the clock of this machine right"
    return "check access key, secret key, and what they may do"
