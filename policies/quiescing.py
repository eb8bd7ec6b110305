"""What a snapshot shall guarantee, and how patiently a guest is asked to hold still: `[policy.NAME.consistency]`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from policies.errors import Unusable, quoted
from policies.facts import USUAL_QUIESCING, Quiescing
from policies.tables import Duration, Table
from policies.tables import key as _key
from policies.units import parse_duration, span

Level = Literal["crash", "filesystem", "application"]

MOST_RETRIES = 10
RETRY_WAIT = (timedelta(seconds=1), timedelta(minutes=10))
QUIESCE_TIMEOUT = (timedelta(minutes=5), timedelta(minutes=240))
"""vSphere takes no other time limit (its type VirtualMachineGuestQuiesceSpec), and only whole minutes."""


def _between(least: timedelta, most: timedelta, *, minutes: bool = False) -> Callable[[str], str]:
    def check(text: str) -> str:
        length = parse_duration(text)
        if not least <= length <= most:
            bounds = (span(bound).replace(" ", "") for bound in (least, most))
            raise Unusable(f"{quoted(text)} is out of bounds", f"write {' to '.join(bounds)}")
        if minutes and length % timedelta(minutes=1):
            raise Unusable(f"{quoted(text)} is no whole number of minutes", "leave the seconds out")
        return text

    return check


class ConsistencyTable(Table):
    """What a snapshot shall guarantee."""

    want: Level | None = _key(None, "The level that is asked for first; `filesystem` without this key.", "application")
    fallback: Level | None = _key(
        None,
        "The weakest level that is accepted, and that makes a restore point a good one; `crash` without this key.",
        "filesystem",
    )
    retries: Annotated[int, Field(ge=0, le=MOST_RETRIES)] | None = _key(
        None,
        "How often a level is tried again when the guest could not be quiesced, before the next weaker one; `2` without"
        " this key.",
        3,
    )
    retry_wait: Annotated[Duration, AfterValidator(_between(*RETRY_WAIT))] | None = _key(
        None, "How long to wait before each retry, `1s` to `10m`; `1m` without this key.", "2m"
    )
    quiesce_timeout: Annotated[Duration, AfterValidator(_between(*QUIESCE_TIMEOUT, minutes=True))] | None = _key(
        None,
        "How long vSphere lets the guest take to hold still and the snapshot to be made, `5m` to `4h`; `15m` without"
        " this key.",
        "30m",
    )


def quiescing_of(table: ConsistencyTable | None) -> Quiescing | None:
    """What the table says of retries and times; None when it says nothing."""
    if table is None or (table.retries is None and not table.retry_wait and not table.quiesce_timeout):
        return None
    usual = USUAL_QUIESCING
    return Quiescing(
        retries=usual.retries if table.retries is None else table.retries,
        retry_wait=parse_duration(table.retry_wait) if table.retry_wait else usual.retry_wait,
        timeout=parse_duration(table.quiesce_timeout) if table.quiesce_timeout else usual.timeout,
    )


def most_patient(several: tuple[Quiescing, ...]) -> Quiescing:
    """The most retries, the longest wait and the longest time limit of all; the usual ones of none."""
    if not several:
        return USUAL_QUIESCING
    return Quiescing(
        max(one.retries for one in several),
        max(one.retry_wait for one in several),
        max(one.timeout for one in several),
    )


def less_patient(one: Quiescing, than: Quiescing) -> bool:
    """Whether a busy guest sooner ends at a weaker level."""
    return one.retries < than.retries or one.retry_wait < than.retry_wait or one.timeout < than.timeout


def quiescing_words(quiescing: Quiescing) -> str:
    """Such as "3 retries 2 m apart, quiesced within 30 m"."""
    within = f"quiesced within {span(quiescing.timeout)}"
    if not quiescing.retries:
        return f"no retry, {within}"
    tries = "1 retry after" if quiescing.retries == 1 else f"{quiescing.retries} retries"
    apart = "" if quiescing.retries == 1 else " apart"
    return f"{tries} {span(quiescing.retry_wait)}{apart}, {within}"
