"""Where a new VM goes: names of folders, pools, datastores, hosts and networks become managed objects.

A name that is not there is answered with those that are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pyVmomi import vim

from connectors.errors import Rejected
from connectors.hypervisor import RestoreTarget
from connectors.vsphere.session import Session

_PATHS: Mapping[Any, tuple[str, ...]] = {
    vim.Datacenter: ("name", "parent", "vmFolder"),
    vim.Folder: ("name", "parent"),
    vim.ComputeResource: ("name", "parent", "resourcePool", "datastore", "network", "environmentBrowser"),
    vim.ResourcePool: ("name", "parent"),
    vim.HostSystem: ("name", "parent", "datastore"),
    vim.Datastore: ("name", "parent"),
    vim.Network: ("name", "parent"),
}

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Place:
    """Where a VM is to be made.

    `networks` holds the backing of a network card for each network that its hosts offer, by name; `portgroups` the
    names of distributed port groups by their keys.
    """

    folder: Any
    pool: Any
    host: Any | None
    datastore: str
    networks: Mapping[str, Any]
    portgroups: Mapping[str, str]
    browser: Any | None


@dataclass(frozen=True, slots=True)
class _Node:
    managed: Any
    name: str
    told: Mapping[str, Any]

    @property
    def parent(self) -> str:
        parent = self.told.get("parent")
        return str(parent._moId) if parent is not None else ""


_Nodes = Mapping[str, _Node]


async def find_place(session: Session, target: RestoreTarget, remembered_datastore: str) -> Place:
    """The place that the target names, completed by what fits; Rejected names what exists where a name is wrong."""
    nodes = await _read(session)
    datacenters = _of(nodes, vim.Datacenter)
    compute, host = _compute(nodes, target)
    datastore = _datastore(nodes, target.datastore or remembered_datastore, compute)
    datacenter = _above(nodes, datastore, vim.Datacenter)
    if datacenter is None:
        raise Rejected(f"datastore {datastore.name} belongs to no datacenter", hint=_there_are(datacenters))
    compute = compute or _compute_that_sees(nodes, datastore, target.resource_pool)
    pool = _pool(nodes, compute, target.resource_pool)
    folder = _folder(nodes, datacenter, target.folder)
    offered = [nodes[n._moId] for n in compute.told.get("network") or () if n._moId in nodes]
    networks, portgroups = await _networks(session, offered)
    return Place(folder, pool, host, datastore.name, networks, portgroups, compute.told.get("environmentBrowser"))


async def _networks(session: Session, offered: list[_Node]) -> tuple[dict[str, Any], dict[str, str]]:
    card = vim.vm.device.VirtualEthernetCard
    portgroup = vim.dvs.DistributedVirtualPortgroup
    groups = [n.managed for n in offered if isinstance(n.managed, portgroup)]
    told = await session.read(groups, portgroup, ["key", "config.distributedVirtualSwitch"]) if groups else {}
    switches = {t["config.distributedVirtualSwitch"] for t in told.values() if "config.distributedVirtualSwitch" in t}
    uuids = await session.read(switches, vim.DistributedVirtualSwitch, ["uuid"]) if switches else {}
    backings: dict[str, Any] = {}
    names: dict[str, str] = {}
    for node in offered:
        group = told.get(node.managed._moId, {})
        switch = group.get("config.distributedVirtualSwitch")
        if switch is not None and "key" in group:
            port = vim.dvs.PortConnection(switchUuid=uuids.get(switch._moId, {}).get("uuid"), portgroupKey=group["key"])
            backings[node.name] = card.DistributedVirtualPortBackingInfo(port=port)
            names[str(group["key"])] = node.name
        elif not isinstance(node.managed, portgroup):
            backings[node.name] = card.NetworkBackingInfo(deviceName=node.name, network=node.managed)
    return backings, names


async def _read(session: Session) -> dict[str, _Node]:
    content = session.content
    view = await session.call(content.viewManager.CreateContainerView, content.rootFolder, list(_PATHS), True)
    try:
        objects = (await session.properties(view, ["view"])).get("view") or []
    finally:
        await session.call(view.DestroyView)
    nodes: dict[str, _Node] = {}
    for kind, paths in _PATHS.items():
        mine = [o for o in objects if isinstance(o, kind)]
        told = await session.read(mine, kind, paths) if mine else {}
        for managed in mine:
            if (found := told.get(managed._moId)) is not None:
                nodes[managed._moId] = _Node(managed, unquote(str(found.get("name", ""))), found)
    return nodes


def _compute(nodes: _Nodes, target: RestoreTarget) -> tuple[_Node | None, Any | None]:
    if not target.host:
        return None, None
    hosts = _of(nodes, vim.HostSystem)
    named = [h for h in hosts if h.name == target.host]
    if len(named) != 1:
        raise Rejected(f"there {_so_many(named)} host called {target.host}", hint=_there_are(hosts))
    compute = nodes.get(named[0].parent)
    if compute is None:
        raise Rejected(f"the host {target.host} belongs to no compute resource")
    return compute, named[0].managed


def _datastore(nodes: _Nodes, name: str, compute: _Node | None) -> _Node:
    datastores = _of(nodes, vim.Datastore)
    if compute is not None:
        seen = {d._moId for d in compute.told.get("datastore") or ()}
        datastores = [d for d in datastores if d.managed._moId in seen]
    if not name:
        raise Rejected("no datastore is named, and the restore point remembers none", hint=_there_are(datastores))
    named = [d for d in datastores if d.name == name]
    if len(named) != 1:
        raise Rejected(f"there {_so_many(named)} datastore called {name}", hint=_there_are(datastores))
    return named[0]


def _compute_that_sees(nodes: _Nodes, datastore: _Node, pool: str) -> _Node:
    """A cluster or host that sees the datastore; one that has the pool, where one does."""
    seeing = [
        c
        for c in _of(nodes, vim.ComputeResource)
        if datastore.managed._moId in {d._moId for d in c.told.get("datastore") or ()}
    ]
    if not seeing:
        raise Rejected(f"no host sees datastore {datastore.name}")
    return next((c for c in seeing if pool and _pool_below(nodes, c, pool) is not None), seeing[0])


def _pool(nodes: _Nodes, compute: _Node, path: str) -> Any:
    found = _pool_below(nodes, compute, path)
    if found is None:
        root = compute.told["resourcePool"]._moId
        pools = [n for n in _of(nodes, vim.ResourcePool) if _below(nodes, n, root)]
        raise Rejected(f"{compute.name} has no resource pool {path}", hint=_there_are(pools))
    return found


def _pool_below(nodes: _Nodes, compute: _Node, path: str) -> Any | None:
    """The pool of this path below the root pool; the root pool itself for its own name or an empty path."""
    root = compute.told.get("resourcePool")
    if root is None or path in ("", nodes[root._moId].name):
        return root
    at = root._moId
    for name in path.split("/"):
        at = next((m for m, n in nodes.items() if n.parent == at and n.name == name), "")
    return nodes[at].managed if at else None


def _folder(nodes: _Nodes, datacenter: _Node, path: str) -> Any:
    at = datacenter.told["vmFolder"]._moId
    for name in filter(None, path.split("/")):
        children = [n for n in nodes.values() if n.parent == at and isinstance(n.managed, vim.Folder)]
        found = next((n for n in children if n.name == name), None)
        if found is None:
            raise Rejected(
                f"datacenter {datacenter.name} has no VM folder {path}: there is no {name} in {nodes[at].name}",
                hint=_there_are(children),
            )
        at = found.managed._moId
    return nodes[at].managed


def _above(nodes: _Nodes, node: _Node, kind: Any) -> _Node | None:
    at: _Node | None = node
    while at is not None and not isinstance(at.managed, kind):
        at = nodes.get(at.parent)
    return at


def _below(nodes: _Nodes, node: _Node, root: str) -> bool:
    at: _Node | None = node
    while at is not None and at.managed._moId != root:
        at = nodes.get(at.parent)
    return at is not None


def _of(nodes: _Nodes, kind: Any) -> list[_Node]:
    return [n for n in nodes.values() if isinstance(n.managed, kind)]


def _so_many(found: list[_Node]) -> str:
    return "is no" if not found else f"are {len(found)} of one name, not one"


def _there_are(nodes: Iterable[_Node]) -> str:
    names = sorted({n.name for n in nodes})
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"there are: {', '.join(names[:_SHOWN])}{more}" if names else "there is none"
