"""Terms of a selection: one glob on one property of a VM, such as "name:web-*" or "tag:env=prod".

Letter case does not count. In a glob `*` stands for any characters, `?` for one, `[ab]` for one of several; in a
folder `*` and `?` stay within one level and `**` crosses levels, so "/Prod/**" is /Prod and all below it. `size` and
`disks` compare: "size:>500GiB" is what all disks of the VM can hold together, "disks:<=8" their number.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter, ge, gt, le, lt
from unicodedata import normalize

from policies.closest import closest
from policies.errors import Unusable, quoted
from policies.facts import PowerState, Vm
from policies.units import parse_size, size

_SEVERAL = {"tag", "attribute"}
_COMPARED: dict[str, Callable[[str], int]] = {"size": parse_size, "disks": int}
_COMPARISON = re.compile(r"(>=|<=|>|<) ?(.+)", re.ASCII)
_OPERATORS: dict[str, Callable[[int, int], bool]] = {">=": ge, "<=": le, ">": gt, "<": lt}

_VALUES: dict[str, Callable[[Vm], tuple[str, ...]]] = {
    "name": lambda vm: (vm.name,),
    "folder": lambda vm: (vm.folder,),
    "tag": lambda vm: tuple(sorted(vm.tags)),
    "datacenter": lambda vm: (vm.datacenter,),
    "cluster": lambda vm: (vm.cluster,),
    "host": lambda vm: (vm.host,),
    "resource_pool": lambda vm: (vm.resource_pool,),
    "datastore": lambda vm: vm.datastores,
    "network": lambda vm: vm.networks,
    "attribute": lambda vm: tuple(f"{name}={value}" for name, value in sorted(vm.attributes.items())),
    "power": lambda vm: (vm.power.value,),
    "guest_os": lambda vm: (vm.guest_os,),
    "size": lambda vm: (str(sum(disk.capacity_bytes for disk in vm.disks)),),
    "disks": lambda vm: (str(len(vm.disks)),),
    "template": lambda vm: ("yes" if vm.template else "no",),
}

_SOURCES: dict[str, Callable[[Vm], Hashable]] = {
    name: attrgetter(field)
    for name, field in {
        "name": "name", "folder": "folder", "tag": "tags", "datacenter": "datacenter", "cluster": "cluster",
        "host": "host", "resource_pool": "resource_pool", "datastore": "datastores", "network": "networks",
        "power": "power", "guest_os": "guest_os", "template": "template",
    }.items()
}  # fmt: skip

PROPERTIES = tuple(_VALUES)
"""What a term may look at."""

_ANY = "*"

LONGEST_GLOB = 500
"""Characters. Nothing in vSphere has a longer name, and a longer pattern would take long."""


@dataclass(frozen=True, slots=True)
class Term:
    """One term; `property` is "" for the term "*", which every VM matches."""

    text: str
    property: str
    matches: Callable[[str], bool] = field(compare=False, repr=False)


def parse_term(text: str) -> Term:
    """One term as a policy writes it; raises Unusable."""
    if text == _ANY:
        return Term(text, "", lambda value: True)
    name, colon, glob = text.partition(":")
    if not colon:
        raise Unusable(
            f"term {quoted(text)} does not say which property it looks at",
            f"write {quoted(f'name:{text}')} or the like",
        )
    if name not in _VALUES:
        raise Unusable(f"term {quoted(text)} looks at an unknown property", lambda: _meant(name, glob))
    if not glob or len(glob) > LONGEST_GLOB:
        raise Unusable(
            f"term {quoted(text)} needs a value of 1 to {LONGEST_GLOB} characters", f'write "{name}:…" with a value'
        )
    _check(name, glob, text)
    if name in _COMPARED:
        return Term(text, name, _comparison(name, glob, text))
    return Term(text, name, _folder(glob) if name == "folder" else _glob(glob))


def _meant(name: str, glob: str) -> str:
    close = closest(name, PROPERTIES)
    return f"write {quoted(f'{close}:{glob}')}" if close else f"write one of {', '.join(PROPERTIES)}"


def _check(name: str, glob: str, text: str) -> None:
    if name in _SEVERAL and "=" not in glob:
        instead = f"tag:*={glob}" if name == "tag" else f"attribute:{glob}=*"
        raise Unusable(
            f"term {quoted(text)} needs {'category' if name == 'tag' else 'name'}=value", f"write {quoted(instead)}"
        )
    if name == "folder" and not glob.startswith(("/", "*")):
        raise Unusable(f"term {quoted(text)} is not a path from the root", f"write {quoted(f'folder:/{glob}')}")
    if name == "power" and glob.casefold() not in set(PowerState):
        raise Unusable(f"term {quoted(text)} is not a power state", "write power:on, power:off or power:suspended")
    if name == "template" and glob.casefold() not in ("yes", "no"):
        raise Unusable(f"term {quoted(text)} is neither yes nor no", "write template:yes or template:no")


def values(vm: Vm, name: str) -> tuple[str, ...]:
    """What the VM has for a property; several for tags, datastores, networks and attributes."""
    return _VALUES[name](vm)


def source(name: str) -> Callable[[Vm], Hashable]:
    """What the values of a property are made of: of two VMs for which it is equal, the values are."""
    return _SOURCES.get(name) or _VALUES[name]


def shown(vm: Vm, name: str) -> tuple[str, ...]:
    """The same for people."""
    found = values(vm, name)
    return tuple(size(int(value)) for value in found) if name == "size" else found


def glob_matches(glob: str, value: str) -> bool:
    """Whether a plain glob, as in a trigger's filter, matches the whole value."""
    return _glob(glob)(value)


@lru_cache(maxsize=4096)
def _glob(glob: str) -> Callable[[str], bool]:
    wanted = _plain(glob)
    if not any(c in wanted for c in "*?["):
        return lambda value: _plain(value) == wanted
    if wanted[-1] == "*" and not any(c in wanted[:-1] for c in "*?["):
        return lambda value: _plain(value).startswith(wanted[:-1])
    compiled: list[re.Pattern[str]] = []  # when first asked: a file of a thousand globs is read in no time

    def matches(value: str) -> bool:
        if not compiled:
            compiled.append(re.compile(fnmatch.translate(wanted)))
        return compiled[0].match(_plain(value)) is not None

    return matches


@lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    """Without letter case, an accented letter as one character however it was typed."""
    return normalize("NFC", text.casefold())


def _comparison(name: str, compared: str, text: str) -> Callable[[str], bool]:
    found = _COMPARISON.fullmatch(compared)
    example = f'write "{name}:>{"500GiB" if name == "size" else "8"}" or the like, with >, >=, < or <='
    if found is None:
        raise Unusable(f"term {quoted(text)} does not compare", example)
    if name == "disks" and not re.fullmatch("[0-9]{1,4}", found[2], re.ASCII):
        raise Unusable(f"term {quoted(text)} does not compare with a number", example)
    than, holds = _COMPARED[name](found[2]), _OPERATORS[found[1]]
    return lambda value: holds(int(value), than)


def _folder(glob: str) -> Callable[[str], bool]:
    """Levels matched one by one, so that no glob takes exponential time."""
    parts = tuple(None if part == "**" else _glob(part) for part in glob.strip("/").split("/") if part)

    def matches(value: str) -> bool:
        levels = [level for level in value.split("/") if level]
        reachable = {0}
        for part in parts:
            if part is None:
                reachable = set(range(min(reachable), len(levels) + 1)) if reachable else set()
            else:
                reachable = {i + 1 for i in reachable if i < len(levels) and part(levels[i])}
        return len(levels) in reachable

    return matches
