"""The lab opens as a vCenter that a client can trust and log in to."""

import hashlib
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyVmomi import vim

from tests.lab.vcenter import Lab


def test_a_client_that_verifies_the_lab_s_certificate_can_log_in(lab: Lab) -> None:
    with lab.session(lab.user) as session:
        assert session.content.about.instanceUuid == lab.instance_uuid
        assert session.content.sessionManager.currentSession.userName == lab.user


def test_a_client_that_does_not_know_the_lab_s_ca_refuses_it(lab: Lab) -> None:
    context = ssl.create_default_context()
    with (
        socket.create_connection((lab.host, lab.port)) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
        context.wrap_socket(plain, server_hostname="localhost"),
    ):
        pass


def test_the_thumbprint_is_that_of_the_certificate_that_the_server_shows(lab: Lab) -> None:
    shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((lab.host, lab.port)))
    assert lab.thumbprint.replace(":", "").lower() == hashlib.sha1(shown, usedforsecurity=False).hexdigest()


def test_a_wrong_password_is_refused(lab: Lab) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        lab.connect(lab.user, "not the password")


def test_a_thousand_machines_start_in_seconds(fresh_lab: Callable[..., Lab]) -> None:
    big = fresh_lab(vms=1000, hosts=8, clusters=2, content=False, disk_bytes=1 << 30)
    assert len(big.vms()) == 1000
    assert sum(len(vm.disks) for vm in big.vms()) == 1333


def test_a_lab_in_the_foreground_tells_where_it_is_and_ends_with_its_input(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.lab",
        "--vms",
        "2",
        "--empty",
        "--until-eof",
        "--root",
        str(tmp_path / "lab"),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as running:
        assert running.stdout is not None
        facts = json.loads(running.stdout.readline())
        with socket.create_connection((facts["host"], facts["port"])):
            pass
        running.communicate(timeout=20)
    assert running.returncode == 0
    with pytest.raises(ConnectionRefusedError), socket.create_connection((facts["host"], facts["port"])):
        pass


def test_the_lab_s_vcenter_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, pathlib\nfrom tests.lab.vcenter import start_lab\n"
        f"with start_lab(pathlib.Path({str(tmp_path)!r}), vms=1, content=False) as lab:\n"
        "    print(lab.process.pid, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], check=False
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
