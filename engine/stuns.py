"""How long a guest stood still for its snapshot: what a restore point keeps of it, and what is told of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from connectors.hypervisor import Stuns

CREATION, REMOVAL = "creation", "removal"

LONG_SECONDS = 5.0
"""A stun that is longer is told with the run: clusters take a node for dead that is silent for so long.

Windows failover clusters do after 5 s within a subnet up to Windows Server 2012 R2 and after 10 s since then, others
after times of that order; what fails over then does so in the middle of the backup.
"""

_WHEN = {CREATION: "when its snapshot was made", REMOVAL: "when its snapshot was removed"}


def kept_with_point(stood: Mapping[str, Stuns]) -> dict[str, str]:
    """The attributes of a restore point, "stun_creation" and "stun_removal", as far as they are known."""
    return {f"stun_{when}": json.dumps(figures(stuns)) for when, stuns in stood.items()}


def figures(stuns: Stuns) -> dict[str, Any]:
    """How often, how long at most and how long in all."""
    return {
        "count": len(stuns.seconds),
        "longest_seconds": round(stuns.longest, 6),
        "total_seconds": round(stuns.total, 6),
    }


def remarks(stood: Mapping[str, Stuns]) -> list[str]:
    """What people should know of it; nothing where no stun was long."""
    return [
        f"the guest stood still for {stuns.longest:.1f} s {_WHEN[when]}, which is long for clusters"
        for when, stuns in stood.items()
        if stuns.longest > LONG_SECONDS
    ]
