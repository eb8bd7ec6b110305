"""Reading properties in bulk: every page of an answer, and nothing taken for empty that may only not be read."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim, vmodl

from connectors.errors import NotPermitted

PC = vmodl.query.PropertyCollector


def retrieve(collector: Any, specs: list[Any]) -> list[Any]:
    """All ObjectContents of a RetrievePropertiesEx, every page of it. Blocking; raises pyVmomi's faults."""
    page = collector.RetrievePropertiesEx(specs, PC.RetrieveOptions())
    found: list[Any] = []
    while page is not None:
        for missing in (m for content in page.objects for m in content.missingSet or ()):
            if isinstance(missing.fault, vim.fault.NotAuthenticated):
                raise missing.fault
        found.extend(page.objects)
        page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None
    return found


def read_properties(
    collector: Any, objects: list[Any], kind: Any, paths: list[str], where: str
) -> dict[str, dict[str, Any]]:
    """The values at paths by moRef; objects that are gone and values unset are left out. Blocking.

    Raises NotPermitted, which names the path, when the account may not read one of them.
    """
    wanted = list(objects)
    while wanted:
        spec = PC.FilterSpec(
            objectSet=[PC.ObjectSpec(obj=o) for o in wanted], propSet=[PC.PropertySpec(type=kind, pathSet=paths)]
        )
        try:
            return {c.obj._moId: _values(c, where) for c in retrieve(collector, [spec])}
        except vmodl.fault.ManagedObjectNotFound as error:
            gone = error.obj._moId if error.obj is not None else ""
            rest = [o for o in wanted if o._moId != gone]
            wanted = rest if len(rest) < len(wanted) else []
    return {}


def _values(content: Any, where: str) -> dict[str, Any]:
    for missing in content.missingSet or ():
        if isinstance(missing.fault, vim.fault.NoPermission):
            raise NotPermitted(
                f"the account may not read {missing.path} of {content.obj._moId}",
                where=where,
                hint="give it the role Read-only, propagated from the root",
            )
    return {p.name: p.val for p in content.propSet or ()}
