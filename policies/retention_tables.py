"""The keys of a retention, of a policy or of one of its second copies, as a file says them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from policies.presets import PresetName
from policies.tables import Count, Duration, Table
from policies.tables import key as _key


class RetentionTable(Table):
    """What to keep. The rules are a union; without any rule everything is kept."""

    preset: PresetName | None = _key(
        None, "Numbers for the rules by name: `few`, `more` or `many`; a rule that is written wins.", "more"
    )
    keep_last: Count | None = _key(None, "The newest restore points.", 6)
    keep_hourly: Count | None = _key(None, "Hours that have a restore point; the newest of each.", 24)
    keep_daily: Count | None = _key(None, "Days that have a restore point; the newest of each.", 14)
    keep_weekly: Count | None = _key(None, "ISO weeks that have a restore point; the newest of each.", 8)
    keep_monthly: Count | None = _key(None, "Months that have a restore point; the newest of each.", 12)
    keep_quarterly: Count | None = _key(None, "Quarters that have a restore point; the newest of each.", 4)
    keep_yearly: Count | None = _key(None, "Years that have a restore point; the newest of each.", 3)
    keep_within: Duration | None = _key(
        None, "Everything taken at most this long before the newest good restore point.", "30d"
    )
    min_good: Annotated[int, Field(ge=1, le=100_000)] | None = _key(
        None, "Guard: so many of the newest good restore points stay whatever the rules say; `1` without this key.", 2
    )
    grace: Duration | None = _key(
        None,
        "Guard: how long a restore point that no rule keeps stays before it expires; `1d` without it.",
        "7d",
    )
    lock: Duration | None = _key(
        None,
        "Guard: for so long from when it was taken nobody can expire a restore point; not at all without it. It holds"
        " for restore points made under it and can never be shortened.",
        "14d",
    )


class CopyTable(Table):
    """A second copy of a policy: naming it here asks for it, as `copies` does."""

    retention: RetentionTable | None = _key(
        None,
        "What to keep in this copy in place of `retention`, with the same keys; without any rule everything. Without"
        " the table the policy's `retention` counts in the copy too.",
        {"keep_daily": 30, "keep_yearly": 7, "lock": "90d"},
    )
