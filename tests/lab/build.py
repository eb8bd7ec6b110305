"""Builds the lab's vCenter from Debian's govmomi sources, the project's own Go, and a list of small edits.

The sources under /usr/share stay as they are: Go's overlay puts edited copies and new files in their place. Each
edit must hit exactly as often as it says, so that another govmomi version fails the build instead of the tests.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.lab.edits import EDITS

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "vcsim"
GOPATH = Path(os.environ.get("BACKSTAY_GOPATH") or "/usr/share/gocode")
GOVMOMI = GOPATH / "src/github.com/vmware/govmomi"


class LabUnavailable(RuntimeError):
    """The lab cannot be built here; the message says what is missing."""


# The lab's own files, by the name that they have in package simulator.
REPLACED = {"events.go": "event_manager.go", "leases.go": "http_nfc_lease.go"}


def lab_directory() -> Path:
    """Where binaries, Go's cache and disk templates are kept: BACKSTAY_LAB_DIR, or .lab/ in the checkout."""
    return Path(os.environ.get("BACKSTAY_LAB_DIR") or HERE.parent.parent / ".lab").resolve()


def _edited() -> dict[str, str]:
    texts: dict[str, str] = {}
    for edit in EDITS:
        text = texts.get(edit.file)
        if text is None:
            text = (GOVMOMI / edit.file).read_text()
        found = text.count(edit.old)
        if found != edit.times:
            raise LabUnavailable(
                f"{GOVMOMI / edit.file}: {edit.old.strip()[:60]!r} is there {found} times, not {edit.times}; "
                "the lab is written for govmomi 0.24.2 (Debian 12)"
            )
        texts[edit.file] = text.replace(edit.old, edit.new)
    return texts


def _fingerprint(texts: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(name.encode() + b"\0" + texts[name].encode())
    for path in sorted(SOURCES.rglob("*.go")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def vcsim() -> Path:
    """The simulator's binary, built when its sources are new. Safe to call from several processes at once."""
    if shutil.which("go") is None or not GOVMOMI.is_dir():
        raise LabUnavailable(
            "the lab needs Go and govmomi's sources: apt-get install golang-go golang-github-vmware-govmomi-dev "
            "golang-github-google-uuid-dev (Debian 12)"
        )
    texts = _edited()
    directory = lab_directory()
    binary = directory / f"vcsim-{_fingerprint(texts)}"
    if binary.exists():
        return binary
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _build(texts, directory, binary)
    return binary


def _build(texts: dict[str, str], directory: Path, binary: Path) -> None:
    edited = directory / "edited"
    shutil.rmtree(edited, ignore_errors=True)
    edited.mkdir()
    replace: dict[str, str] = {}
    for name, text in texts.items():
        copy = edited / name.replace("/", "-")
        copy.write_text(text)
        replace[str(GOVMOMI / name)] = str(copy)
    for path in sorted((SOURCES / "overlay").glob("*.go")):
        replace[str(GOVMOMI / "simulator" / REPLACED.get(path.name, f"lab_{path.name}"))] = str(path)
    for path in sorted((SOURCES / "overlay/pbm").glob("*.go")):
        replace[str(GOVMOMI / "pbm/simulator" / f"lab_{path.name}")] = str(path)
    overlay = directory / "overlay.json"
    overlay.write_text(json.dumps({"Replace": replace}))
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": os.environ.get("HOME", str(directory)),
        "GO111MODULE": "off",
        "GOPATH": str(GOPATH),
        "GOCACHE": str(directory / "gocache"),
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
    }
    fresh = binary.with_suffix(".new")
    command = ["go", "build", "-overlay", str(overlay), "-o", str(fresh), "."]
    done = subprocess.run(command, cwd=SOURCES, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabUnavailable(f"go build failed:\n{done.stdout}{done.stderr}")
    fresh.rename(binary)
    # Another process may be about to start the one before.
    for old in sorted(directory.glob("vcsim-*"), key=lambda path: path.stat().st_mtime)[:-4]:
        old.unlink(missing_ok=True)


if __name__ == "__main__":
    print(vcsim())
