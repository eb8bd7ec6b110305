# mypy: ignore-errors
"""Stands in for nbdkit's vddk plugin, where VMware's VDDK cannot be had: `nbdkit python vddk_standin.py file=... vm=...`

It takes the vddk plugin's parameters and no others, checks password and thumbprint against the lab, and serves the
disk that `file` names: what the snapshot froze, or without `snapshot` the disk that the guest writes. The lab is found
by BACKSTAY_LAB_ROOT in the environment, else by libdir. It runs in Debian's Python, so it uses the standard library only.

Faults are ordered in LAB/nbd-faults.json: {"error_at": offset, "hang_at": offset, "delay_ms": n, "times": n}.
"""

import errno
import fcntl
import io
import json
import os
import re
import threading
import time

import nbdkit

API_VERSION = 2

PARAMETERS = {
    "compression", "config", "cookie", "create", "create-adapter-type", "create-hwversion", "create-size",
    "create-type", "file", "libdir", "nfchostport", "password", "port", "server", "single-link", "snapshot",
    "thumbprint", "transports", "unbuffered", "user", "vm",
}
TRANSPORTS = {"file", "san", "hotadd", "nbd", "nbdssl"}
COMPRESSIONS = {"none", "zlib", "fastlz", "skipz"}
BOOLEANS = {"single-link", "unbuffered", "create"}

parameters = {}
lab = {}


def thread_model():
    return nbdkit.THREAD_MODEL_PARALLEL


def dump_plugin():
    print("vddk_default_libdir=/usr/lib/vmware-vix-disklib")
    print("vddk_has_nfchostport=1")
    print("vddk_standin=1")
    # As the plugin does it: only where the library could be loaded.
    if os.path.exists(os.path.join(os.environ.get("BACKSTAY_LAB_ROOT") or parameters.get("libdir", ""), "lab.json")):
        print("vddk_library_version=8")


def config(key, value):
    if key not in PARAMETERS:
        raise RuntimeError("unknown parameter '%s'" % key)
    if key == "password":
        value = read_password(value)
    elif key in BOOLEANS and value.lower() not in ("1", "0", "true", "false", "yes", "no", "on", "off"):
        raise RuntimeError("%s: not a boolean: %s" % (key, value))
    elif key in ("port", "nfchostport") and not value.isdigit():
        raise RuntimeError("%s: not a port: %s" % (key, value))
    elif key == "transports" and not set(value.split(":")) <= TRANSPORTS:
        raise RuntimeError("transports: unknown transport in %s" % value)
    elif key == "compression" and value not in COMPRESSIONS:
        raise RuntimeError("compression: unknown: %s" % value)
    elif key == "config" and not os.path.exists(value):
        raise RuntimeError("config: no such file: %s" % value)
    parameters[key] = value


def read_password(value):
    """As nbdkit reads passwords: +FILE and -FD name where it is; anything else is the password itself."""
    if value.startswith("+"):
        with io.open(value[1:]) as source:
            return source.readline().rstrip("\n")
    if value == "-":
        raise RuntimeError("password: there is no terminal to read it from")
    if value.startswith("-"):
        with os.fdopen(int(value[1:])) as source:
            return source.readline().rstrip("\n")
    return value


def config_complete():
    if "file" not in parameters:
        raise RuntimeError("you must supply the file parameter")
    for key in ("server", "user", "vm", "thumbprint"):
        if key not in parameters:
            raise RuntimeError("remote connections need server, user, password (or cookie), thumbprint and vm: no %s" % key)
    if "password" not in parameters and "cookie" not in parameters:
        raise RuntimeError("remote connections need password or cookie")
    if parameters.get("create", "false").lower() in ("1", "true", "yes", "on"):
        raise RuntimeError("create: only local files can be created")
    if not parameters["vm"].startswith("moref="):
        raise RuntimeError("vm: must be moref=ID")
    root = os.environ.get("BACKSTAY_LAB_ROOT") or parameters.get("libdir", "")
    # One library serves all vCenters of an engine; another lab's record lies beside the first one's, by its port.
    record = os.path.join(root, "lab-%s.json" % parameters.get("port", ""))
    try:
        with io.open(record if os.path.exists(record) else os.path.join(root, "lab.json")) as record:
            lab.update(json.load(record))
    except OSError:
        raise RuntimeError("libdir: no lab (nor VDDK) in '%s'" % root) from None


def authenticate():
    """VDDK logs in when a disk is opened, not when the plugin starts."""
    if "password" in parameters and parameters["password"] != lab["password"]:
        raise RuntimeError("VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password.")
    if parameters["user"] not in (lab["user"], lab["admin"]):
        raise RuntimeError("VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password.")
    if parameters["thumbprint"].replace(":", "").lower() != lab["thumbprint"].replace(":", "").lower():
        raise RuntimeError("VixDiskLib_ConnectEx: SSL thumbprint verification failed")


def image():
    match = re.fullmatch(r"\[([^\]/]+)\] (.+)\.vmdk", parameters["file"])
    if match is None or ".." in match.group(2).split("/"):
        raise RuntimeError("VixDiskLib_Open: %s: not the name of a disk" % parameters["file"])
    stem = re.sub(r"-[0-9]{6}$", "", match.group(2))
    flat = os.path.join(lab["root"], "datastores", match.group(1), stem + "-flat.vmdk")
    snapshot = parameters.get("snapshot")
    if snapshot is None:
        return flat
    if not re.fullmatch(r"snapshot-[0-9]+", snapshot):
        raise RuntimeError("VixDiskLib_ConnectEx: snapshot %s not found" % snapshot)
    try:
        with io.open(os.path.join(lab["root"], "frozen", snapshot, "snapshot.json")) as record:
            owner = json.load(record)["vm"]
    except OSError:
        raise RuntimeError("VixDiskLib_ConnectEx: snapshot %s not found" % snapshot) from None
    if parameters["vm"] != "moref=" + owner:
        raise RuntimeError("VixDiskLib_ConnectEx: snapshot %s is not one of %s" % (snapshot, parameters["vm"]))
    return flat + "." + snapshot


def open(readonly):
    authenticate()
    path = image()
    if "snapshot" in parameters and not readonly:
        raise RuntimeError("VixDiskLib_Open: a snapshot's disk can only be read: use nbdkit -r")
    try:
        fd = os.open(path, os.O_RDONLY if readonly else os.O_RDWR)
    except OSError as error:
        raise RuntimeError("VixDiskLib_Open: %s: %s" % (parameters["file"], error.strerror)) from None
    return {"fd": fd, "path": path, "size": os.fstat(fd).st_size, "readonly": readonly}


def close(h):
    os.close(h["fd"])


def get_size(h):
    return h["size"]


def can_write(h):
    return not h["readonly"]


def can_flush(h):
    return True


def can_extents(h):
    return True


def can_multi_conn(h):
    return True


def aligned(offset, length):
    if offset % 512 or length % 512:
        nbdkit.set_error(errno.EINVAL)
        raise RuntimeError("VDDK works in sectors of 512 bytes: use nbdkit's blocksize filter")


def pread(h, buf, offset, flags):
    aligned(offset, len(buf))
    trouble(h, offset, len(buf))
    view = memoryview(buf)
    done = 0
    while done < len(view):
        n = os.preadv(h["fd"], [view[done:]], offset + done)
        if n == 0:
            nbdkit.set_error(errno.EIO)
            raise RuntimeError("read past the end of the disk")
        done += n


def pwrite(h, buf, offset, flags):
    aligned(offset, len(buf))
    # Another descriptor, so that threads exclude each other too.
    fd = os.open(h["path"], os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = 0
        while done < len(buf):
            done += os.pwrite(fd, buf[done:], offset + done)
        log = os.open(h["path"] + ".writes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(log, b"%d %d\n" % (offset, len(buf)))
        finally:
            os.close(log)
    finally:
        os.close(fd)


def flush(h, flags):
    os.fdatasync(h["fd"])


def extents(h, count, offset, flags):
    found = []
    at, end = offset, min(offset + count, h["size"])
    while at < end:
        try:
            data = min(os.lseek(h["fd"], at, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = end
        if data > at:
            found.append((at, data - at, nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO))
            at = data
        else:
            hole = min(os.lseek(h["fd"], at, os.SEEK_HOLE), end)
            found.append((at, hole - at, 0))
            at = hole
        if flags & nbdkit.FLAG_REQ_ONE:
            break
    return found


class Faults:
    """The order file, read again when it changes; `times` is counted by this process."""

    def __init__(self):
        self.lock = threading.Lock()
        self.stamp = None
        self.order = {}

    def due(self, offset, length):
        with self.lock:
            path = os.path.join(lab["root"], "nbd-faults.json")
            try:
                stamp = os.stat(path).st_mtime_ns
            except OSError:
                self.order, self.stamp = {}, None
                return {}
            if stamp != self.stamp:
                fd = os.open(path, os.O_RDONLY)
                with os.fdopen(fd) as source:
                    self.order, self.stamp = json.load(source), stamp
            order = self.order
            place = order.get("error_at", order.get("hang_at"))
            if not order or order.get("times", 1) <= 0:
                return {}
            if place is not None and not offset <= place < offset + length:
                return {}
            if place is not None:
                order["times"] = order.get("times", 1) - 1
            return dict(order)


faults = Faults()


def trouble(h, offset, length):
    order = faults.due(offset, length)
    if order.get("delay_ms"):
        time.sleep(order["delay_ms"] / 1000)
    if "hang_at" in order:
        while os.path.exists(os.path.join(lab["root"], "nbd-faults.json")):
            time.sleep(0.02)
    if "error_at" in order:
        nbdkit.set_error(errno.EIO)
        raise RuntimeError("VixDiskLib_Read: NBD_ERR_GENERIC (ordered by the lab)")
