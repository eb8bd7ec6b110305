"""Why a running VM on NFS 3 is not read by hot-add from another host: it would stand still when its snapshot goes.

While the disk is attached to a proxy on another host, that host holds its lock, and the VM's own host waits for it to
lapse, some 30 seconds, when the snapshot is removed. VMware's KB 2010953 says so; Veeam's KB 1681 adds that ESXi 8.0
Update 2b ended it, whose build is that of Broadcom's KB 395110. NFS 4.1 has locks of its own and VMFS others. Pure.
"""

from __future__ import annotations

from urllib.parse import unquote

from connectors.vsphere.tracking_defects import HostBuild

NFS_3 = "NFS"
"""What summary.type says of it; NFS 4.1 is "NFS41"."""

MENDED_BUILD = 23_305_546
"""Of ESXi 8.0 Update 2b. Builds of older branches that were made later are larger, so that the version counts first."""


def stands_still(kind: str, runs_on: str, proxy_host: str, build: HostBuild) -> str:
    """The sentence; empty where there is no danger.

    `kind` is the datastore's type, `runs_on` the name of the VM's host or "" where it is off, `build` that of the
    proxy's host. Of a host that tells no version nothing is known, and the attempt is made.
    """
    elsewhere = bool(runs_on and proxy_host) and unquote(runs_on) != unquote(proxy_host)
    if kind != NFS_3 or not elsewhere or not build.version or _mended(build):
        return ""
    return (
        f"the VM runs on {unquote(runs_on)}, the proxy on {unquote(proxy_host)} (ESXi {build.version}): on NFS 3 the VM"
        " would stand still for half a minute when its snapshot is removed (VMware KB 2010953, mended in 8.0 U2b);"
        ' a proxy on its own host, or hotadd = "always", makes it go by hot-add'
    )


def _mended(build: HostBuild) -> bool:
    numbers = tuple(int(part) for part in build.version.split(".") if part.isdecimal())
    return numbers > (8, 0, 2) or (numbers == (8, 0, 2) and build.build >= MENDED_BUILD)
