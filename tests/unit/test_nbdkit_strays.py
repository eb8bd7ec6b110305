"""The next start ends an nbdkit that a killed engine left behind, by the folder that it serves, and nothing else."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from connectors.vsphere.nbdkit import OWNER_FILE, Spot, identity
from connectors.vsphere.strays import end_strays


def dead() -> str:
    """The identity of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return identity(process.pid)


@contextmanager
def stray(
    folder: Path, *, owner: str, program: tuple[str, ...] = ("nbdkit", "-f")
) -> Iterator[subprocess.Popen[bytes]]:
    """A real nbdkit that serves a folder, without --exit-with-parent: what a kill at the wrong instant leaves."""
    folder.mkdir()
    (folder / OWNER_FILE).write_text(owner)
    spot = Spot(folder, -1)
    command = ["nbdkit", "-f", "-U", str(spot.socket), "-P", str(spot.pid_file), "memory", "1M"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    watched = os.pidfd_open(process.pid)
    try:
        while not spot.pid_file.exists():
            assert not select.select([watched], [], [], 0.01)[0], "nbdkit did not start"
        yield process
    finally:
        os.close(watched)
        process.kill()
        process.wait()


def test_an_nbdkit_whose_engine_is_dead_is_ended_and_its_folder_removed(tmp_path: Path) -> None:
    with stray(tmp_path / "backstay-one", owner=dead()) as process:
        assert end_strays(tmp_path) == [process.pid]
        assert process.wait(20) in (0, -signal.SIGTERM)
    assert not list(tmp_path.iterdir())


def test_one_that_does_not_listen_to_a_request_is_killed(tmp_path: Path) -> None:
    with stray(tmp_path / "backstay-one", owner=dead()) as process:
        process.send_signal(signal.SIGSTOP)
        assert end_strays(tmp_path, patience_seconds=0.1) == [process.pid]
        assert process.wait(20) == -signal.SIGKILL


def test_one_that_has_no_pid_file_yet_is_found_by_the_socket_that_it_names(tmp_path: Path) -> None:
    with stray(tmp_path / "backstay-one", owner=dead()) as process:
        (tmp_path / "backstay-one" / "pid").unlink()
        assert end_strays(tmp_path) == [process.pid]


def test_the_nbdkit_of_a_living_engine_is_left_alone(tmp_path: Path) -> None:
    with stray(tmp_path / "backstay-one", owner=identity(os.getpid())) as process:
        assert end_strays(tmp_path) == []
        assert process.poll() is None
        assert (tmp_path / "backstay-one" / "nbd").exists()


def test_a_process_that_got_the_pid_of_a_stray_is_left_alone(tmp_path: Path) -> None:
    with stray(tmp_path / "other", owner=dead()) as process:
        folder = tmp_path / "backstay-one"
        folder.mkdir()
        (folder / OWNER_FILE).write_text(dead())
        (folder / "pid").write_text(str(process.pid))
        assert end_strays(tmp_path) == []
        assert process.poll() is None
        assert not folder.exists()


def test_a_pid_that_was_given_again_is_not_taken_for_the_engine(tmp_path: Path) -> None:
    pid, started = identity(os.getpid()).split()
    with stray(tmp_path / "backstay-one", owner=f"{pid} {int(started) - 1}") as process:
        assert end_strays(tmp_path) == [process.pid]


def test_folders_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "backstay-notes").mkdir()
    (tmp_path / "backstay-file").write_text("")
    (tmp_path / "backstay-link").symlink_to(tmp_path / "backstay-notes")
    assert end_strays(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 3
