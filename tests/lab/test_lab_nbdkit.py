"""The stand-in for nbdkit's vddk plugin serves the lab's disks as the plugin serves a vCenter's."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.vcenter import Frozen, Lab, start_lab

PLUGIN = Path(__file__).parent / "nbdkit" / "vddk_standin.py"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Frozen]]:
    with start_lab(tmp_path_factory.mktemp("nbd"), vms=1, disk_bytes=32 << 20) as lab:
        lab.snapshot("web-01", "frozen")
        yield lab, lab.frozen("web-01")[0]


def parameters(lab: Lab, frozen: Frozen, **changes: str | None) -> list[str]:
    secret = lab.root / "password"
    secret.write_text(lab.password + "\n")
    given: dict[str, str | None] = {
        "file": frozen.disks[0].file,
        "server": lab.host,
        "user": lab.user,
        "password": f"+{secret}",
        "thumbprint": lab.thumbprint,
        "vm": f"moref={frozen.vm}",
        "snapshot": frozen.snapshot,
        "transports": "nbdssl:nbd",
        "compression": "none",
        "libdir": str(lab.root),
    }
    return [
        f"{k}={v}" for k, v in (given | {k.replace("_", "-"): v for k, v in changes.items()}).items() if v is not None
    ]


def run(lab: Lab, arguments: list[str], command: str, *options: str) -> subprocess.CompletedProcess[str]:
    line = ["nbdkit", "-U", "-", *(options or ("-r",)), "python", str(PLUGIN), *arguments, "--run", command]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def test_a_snapshot_s_disk_is_served_as_it_was_frozen_while_the_guest_writes(served: tuple[Lab, Frozen]) -> None:
    lab, frozen = served
    with lab.busy_guest("web-01"):
        done = run(lab, parameters(lab, frozen), f"qemu-img compare -f raw -F raw $uri {frozen.disks[0].image}")
    assert done.returncode == 0, done.stderr
    assert "identical" in done.stdout


def test_holes_of_the_disk_are_told_as_holes(served: tuple[Lab, Frozen]) -> None:
    lab, frozen = served
    done = run(lab, parameters(lab, frozen), "nbdinfo --map $uri")
    assert "hole,zero" in done.stdout
    assert "data" in done.stdout


def test_without_a_snapshot_the_live_disk_is_written_and_counts_as_changed(fresh_lab: Callable[..., Lab]) -> None:
    lab = fresh_lab(vms=1, disk_bytes=8 << 20, content=False, tracking=True)
    lab.snapshot("web-01", "before")
    frozen = lab.frozen("web-01")[0]
    lab.remove_snapshot(frozen.snapshot)
    write = "qemu-io -f raw -c 'write -P 120 131072 512' $uri"
    done = run(lab, parameters(lab, frozen, snapshot=None), write, "--threads=4")
    assert done.returncode == 0, done.stderr
    assert lab.read_guest("web-01", 0, 131072, 512) == b"x" * 512


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"frobnicate": "1"}, "unknown parameter"),
        ({"vm": "web-01"}, "moref="),
        ({"transports": "pigeon"}, "unknown transport"),
        ({"compression": "lzma"}, "unknown"),
        ({"file": None}, "file parameter"),
        ({"single_link": "perhaps"}, "not a boolean"),
        ({"libdir": "/nonexistent"}, "libdir"),
    ],
)
def test_what_the_vddk_plugin_does_not_take_is_refused(
    served: tuple[Lab, Frozen], change: dict[str, str | None], complaint: str
) -> None:
    lab, frozen = served
    done = run(lab, parameters(lab, frozen, **change), "true")
    assert done.returncode != 0
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"password": "wrong"}, "incorrect user name or password"),
        ({"thumbprint": "00:11"}, "thumbprint"),
        ({"snapshot": "snapshot-999999"}, "not found"),
        ({"file": "[fast-1] web-01/other.vmdk"}, "No such file"),
    ],
)
def test_a_disk_is_not_opened_without_the_right_to(
    served: tuple[Lab, Frozen], change: dict[str, str | None], complaint: str
) -> None:
    lab, frozen = served
    done = run(lab, parameters(lab, frozen, **change), "nbdinfo $uri")
    assert done.returncode != 0
    assert complaint in done.stderr


def test_an_ordered_error_hits_the_read_that_covers_its_offset_and_no_other(served: tuple[Lab, Frozen]) -> None:
    lab, frozen = served
    reads = "qemu-io -r -f raw -c 'read 0 4096' -c 'read 1048576 4096' $uri"
    with lab.nbd_fault(error_at=1048576, times=1):
        done = run(lab, parameters(lab, frozen), reads)
    assert "read 4096/4096 bytes at offset 0" in done.stdout
    assert "read failed: Input/output error" in done.stdout + done.stderr
    healed = run(lab, parameters(lab, frozen), reads)
    assert "read 4096/4096 bytes at offset 1048576" in healed.stdout
