"""The mark of a VM whose disks are being written by a restore: for this engine in its options, for people in its notes.

It stays when a restore is cut off, so that the VM is found again and nobody takes it for whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pyVmomi import vim

from connectors.vsphere.optionmarks import read_option

KEY = "backstay.restoring"

_LINE = re.compile(r"HALF RESTORED by Backstay [^\n]*\n?")


@dataclass(frozen=True, slots=True)
class RestoreMark:
    """Which engine restores which restore point into the VM, in which run. `safety` names its snapshot for safety.

    `added` is the place, controller and unit, of a disk that the restore has added for the restore point's `disk`.
    """

    engine: str
    point: str
    run: str
    safety: str = ""
    disk: str = ""
    added: str = ""


def option(mark: RestoreMark | None) -> Any:
    """The option that says it; without a mark the one that takes it away."""
    return vim.option.OptionValue(key=KEY, value=json.dumps(asdict(mark)) if mark is not None else "")


def read_mark(options: Iterable[Any]) -> RestoreMark | None:
    """The mark among a VM's options, if there is one of ours."""
    told = read_option(options, KEY)
    if told is None:
        return None
    return RestoreMark(*(str(told.get(name, "")) for name in RestoreMark.__dataclass_fields__))


def marked(notes: str, point: str) -> str:
    """A VM's notes with the warning on top."""
    return f"HALF RESTORED by Backstay from {point}: do not power on, run the same restore again\n{cleared(notes)}"


def warned(notes: str) -> bool:
    """Whether a VM's notes carry the warning."""
    return _LINE.search(notes) is not None


def cleared(notes: str) -> str:
    """A VM's notes without the warning."""
    return _LINE.sub("", notes)
