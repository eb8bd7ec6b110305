"""A real S3 server (seaweedfs from its wheel) on free loopback ports, stopped by its own process id.

It cannot be told to choose its ports, so free ones are chosen here. That it is our server which answers there, and
not another one, the key proves: each server has its own random one.
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from obstore import sign
from obstore.store import S3Store

from storage.errors import AccessRefused
from storage.objectcalls import Patience
from storage.places import ObjectPlace

SERVER = Path(sys.executable).parent / "weed"
BUCKET = "backstay"
START_SECONDS = 40.0
PATIENCE = Patience(first_pause_seconds=0.02, longest_pause_seconds=0.2, give_up_seconds=10, give_up_at_first_seconds=2)


class ObjectServer:
    """A running server with one bucket. `place` names a repository in it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.key = f"K{secrets.token_hex(8)}"
        self.secret = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = ""

    def start(self) -> None:
        """Start it and wait until it serves its bucket; other ports are tried when one was taken meanwhile."""
        login = {"accessKey": self.key, "secretKey": self.secret}
        identity = {"name": "t", "credentials": [login], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        (self.directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (self.directory / "data").mkdir(exist_ok=True)
        for _ in range(3):
            if self._try_to_start():
                return
        raise RuntimeError(f"the object server did not start:\n{self.log()[-4000:]}")

    def _try_to_start(self) -> bool:
        ports = free_ports(8)
        self.endpoint = f"http://127.0.0.1:{ports[6]}"
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
                 "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")  # fmt: skip
        options = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(SERVER), "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=data",
                    *options, "-filer", "-s3", "-s3.config=s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0",
                    "-s3.autoCreateBucket=false", "-s3.iam=false", "-master.telemetry=false", "-volume.max=100",
                    "-master.volumeSizeLimitMB=256", "-volume.preStopSeconds=0", "-filer.localSocket=filer.sock",
                    "-s3.localSocket=s3.sock",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                self.make_bucket(BUCKET)
                self._await_room()
                return True
            except (URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)
        self.stop()
        return False

    def make_bucket(self, name: str, headers: Mapping[str, str] | None = None) -> None:
        """A new bucket."""
        url = sign(self.store(name), "PUT", "", timedelta(minutes=1))
        with urlopen(Request(url, method="PUT", headers=dict(headers or {})), timeout=5):
            pass

    def make_lockable_bucket(self, name: str) -> None:
        """A new bucket whose objects have versions and can be locked."""
        self._boto().create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)

    def remove_versions(self, bucket: str, key: str) -> None:
        """Remove every version of an object, as somebody who stole the key would. AccessRefused when one stays."""
        client = self._boto()
        for version in client.list_object_versions(Bucket=bucket, Prefix=key).get("Versions", []):
            try:
                client.delete_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])
            except ClientError as error:
                raise AccessRefused(str(error), where=key) from None

    def _boto(self) -> Any:
        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id=self.key,
            aws_secret_access_key=self.secret, config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip

    def _await_room(self) -> None:
        """Write once: the first volume is made when somebody wants to write."""
        url = sign(self.store(BUCKET), "PUT", "first", timedelta(minutes=1))
        with urlopen(Request(url, data=b"x", method="PUT"), timeout=20):
            pass

    def store(self, bucket: str = BUCKET) -> S3Store:
        """obstore's own view of a bucket, for what Backstay does not do."""
        return S3Store(
            bucket, endpoint=self.endpoint, region="us-east-1", client_options={"allow_http": True},
            access_key_id=self.key, secret_access_key=self.secret,
        )  # fmt: skip

    def login(self) -> dict[str, str]:
        """The key that the server knows."""
        return {"access_key_id": self.key, "secret_access_key": self.secret}

    def place(self, state_dir: Path, prefix: str, *, endpoint: str = "", bucket: str = BUCKET) -> ObjectPlace:
        """A place for a repository; writers with the same prefix and other state folders share it."""
        return ObjectPlace(
            "s3", bucket, prefix, endpoint=endpoint or self.endpoint, region="us-east-1", state_dir=state_dir,
            patience=PATIENCE, credentials=self.login,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """What a command needs to reach it by a bare s3:// address."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
        }  # fmt: skip

    def log(self) -> str:
        """What the server wrote."""
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """SIGKILL: nothing that it holds is needed any more, and it takes its time to end by itself."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def object_server_in(directory: Path) -> Iterator[ObjectServer]:
    """A started server; stopped on every way out."""
    server = ObjectServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()
