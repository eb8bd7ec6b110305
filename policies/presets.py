"""Sets of retention numbers by name, for who does not want to choose numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

PresetName = Literal["few", "more", "many"]

PRESETS: Mapping[str, Mapping[str, int]] = {
    "few": {"keep_daily": 7, "keep_weekly": 4, "keep_monthly": 3},
    "more": {"keep_daily": 14, "keep_weekly": 8, "keep_monthly": 6, "keep_quarterly": 4, "keep_yearly": 1},
    "many": {"keep_daily": 30, "keep_weekly": 12, "keep_monthly": 12, "keep_quarterly": 8, "keep_yearly": 3},
}
"""What each preset writes. Never change a number: restore points of those who chose it would expire."""


def spelled_out(retention: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a retention table with the preset's numbers in place of its name; a key that is there wins."""
    written = {name: value for name, value in retention.items() if name != "preset"}
    return {**PRESETS[retention["preset"]], **written} if "preset" in retention else written
