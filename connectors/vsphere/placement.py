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
    vim.OpaqueNetwork: ("name", "parent", "summary"),
}

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Place:
    """Where a VM is to be made.

    `networks` holds the backing of a network card for each network that its hosts offer, by name; `portgroups` the
    names of distributed port groups by their keys. `datacenter` is its inventory path, `datastores` the names of those
    that its hosts see.
    """

    folder: Any
    pool: Any
    host: Any | None
    datastore: str
    networks: Mapping[str, Any]
    portgroups: Mapping[str, str]
    browser: Any | None
    datacenter: str
    datastores: frozenset[str]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Remembered:
    """Where the VM was. What of it is there still is taken where the target names nothing."""

    datastore: str = ""
    datacenter: str = ""
    folder: str = ""
    cluster: str = ""
    resource_pool: str = ""


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


async def find_place(session: Session, target: RestoreTarget, remembered: Remembered) -> Place:
    """The place that the target names, completed by what fits; Rejected names what exists where a name is wrong."""
    nodes = await _read(session)
    datacenters = _of(nodes, vim.Datacenter)
    compute, host = _compute(nodes, target)
    datastore = _datastore(nodes, target.datastore or remembered.datastore, compute, remembered.datacenter)
    datacenter = _above(nodes, datastore, vim.Datacenter)
    if datacenter is None:
        raise Rejected(f"datastore {datastore.name} belongs to no datacenter", hint=_there_are(datacenters))
    warnings: list[str] = []
    compute = compute or _compute_that_sees(nodes, datastore, target.resource_pool, remembered)
    if not target.resource_pool and _pool_below(nodes, compute, remembered.resource_pool) is None:
        warnings.append(f"its resource pool {remembered.resource_pool} is not there any more: it is in the root pool")
        pool = _pool(nodes, compute, "")
    else:
        pool = _pool(nodes, compute, target.resource_pool or remembered.resource_pool)
    if not target.folder and _folder_below(nodes, datacenter, remembered.folder) is None:
        warnings.append(f"its folder {remembered.folder} is not there any more: it is in the datacenter's own folder")
        folder = _folder(nodes, datacenter, "")
    else:
        folder = _folder(nodes, datacenter, target.folder or remembered.folder)
    offered = [nodes[n._moId] for n in compute.told.get("network") or () if n._moId in nodes]
    networks, portgroups = await _networks(session, offered)
    seen = {d._moId for d in compute.told.get("datastore") or ()}
    return Place(
        folder,
        pool,
        host,
        datastore.name,
        networks,
        portgroups,
        compute.told.get("environmentBrowser"),
        _path(nodes, datacenter),
        frozenset(d.name for d in _of(nodes, vim.Datastore) if d.managed._moId in seen),
        tuple(warnings),
    )


def _path(nodes: _Nodes, node: _Node) -> str:
    """The inventory path below the root folder."""
    names = [node.name]
    at = nodes.get(node.parent)
    while at is not None and at.parent:
        names.append(at.name)
        at = nodes.get(at.parent)
    return "/".join(reversed(names))


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
        elif isinstance(node.managed, vim.OpaqueNetwork):
            opaque = node.told.get("summary")
            backings[node.name] = card.OpaqueNetworkBackingInfo(
                opaqueNetworkId=getattr(opaque, "opaqueNetworkId", ""),
                opaqueNetworkType=getattr(opaque, "opaqueNetworkType", ""),
            )
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
        mine = [o for o in objects if isinstance(o, kind) and (kind is not vim.Network or not _opaque(o))]
        told = await session.read(mine, kind, paths) if mine else {}
        for managed in mine:
            if (found := told.get(managed._moId)) is not None:
                nodes[managed._moId] = _Node(managed, unquote(str(found.get("name", ""))), found)
    return nodes


def _opaque(managed: Any) -> bool:
    return isinstance(managed, vim.OpaqueNetwork)


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


def _datastore(nodes: _Nodes, name: str, compute: _Node | None, datacenter: str) -> _Node:
    datastores = _of(nodes, vim.Datastore)
    if compute is not None:
        seen = {d._moId for d in compute.told.get("datastore") or ()}
        datastores = [d for d in datastores if d.managed._moId in seen]
    if not name:
        raise Rejected("no datastore is named, and the restore point remembers none", hint=_there_are(datastores))
    named = [d for d in datastores if d.name == name]
    if len(named) > 1:  # each datacenter has names of its own
        above = [(d, _above(nodes, d, vim.Datacenter)) for d in named]
        named = [d for d, dc in above if dc is not None and dc.name == datacenter] or named
    if len(named) != 1:
        raise Rejected(f"there {_so_many(named)} datastore called {name}", hint=_there_are(datastores))
    return named[0]


def _compute_that_sees(nodes: _Nodes, datastore: _Node, pool: str, remembered: Remembered) -> _Node:
    """A cluster or host that sees the datastore: one that has the pool, the remembered one, or any."""
    seeing = [
        c
        for c in _of(nodes, vim.ComputeResource)
        if datastore.managed._moId in {d._moId for d in c.told.get("datastore") or ()}
    ]
    if not seeing:
        raise Rejected(f"no host sees datastore {datastore.name}")
    seeing.sort(key=lambda c: c.name != remembered.cluster)
    wanted = pool or remembered.resource_pool
    return next((c for c in seeing if wanted and _pool_below(nodes, c, wanted) is not None), seeing[0])


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


def _folder_below(nodes: _Nodes, datacenter: _Node, path: str) -> Any | None:
    try:
        return _folder(nodes, datacenter, path)
    except Rejected:
        return None


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
