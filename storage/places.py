"""Where a repository lies: a directory, or a bucket of an object store, and where its private things lie then."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from storage.errors import AccessRefused

if TYPE_CHECKING:
    from storage.objectcalls import Patience
    from storage.objects import ObjectBlobs

SCHEMES = {"s3": "an S3 bucket", "gs": "a Google Cloud Storage bucket", "az": "an Azure container"}

READ_SECONDS = 60
"""A request with an answer of a few MiB at most."""

WRITE_SECONDS = 600
"""A request with a whole pack as its body: 64 MiB at 1 Mbit/s."""

CONNECT_SECONDS = 10

CREDENTIALS = {
    "s3": ("access_key_id", "secret_access_key", "session_token"),
    "gs": ("service_account_key",),
    "az": ("account_name", "account_key", "sas_key"),
}
"""What a login consists of, by obstore's names; what is not given comes from the provider's usual places."""


def _nothing() -> Mapping[str, str]:
    return {}


def default_state_dir() -> Path:
    """Where state is kept when nothing is said."""
    if os.geteuid() == 0:
        return Path("/var/lib/backstay")
    value = os.environ.get("XDG_STATE_HOME")
    return (Path(value) if value else Path.home() / ".local/state") / "backstay"


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """A prefix of a bucket. `credentials` is asked when the store is opened, and never shown or kept."""

    scheme: str
    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    ca_file: Path | None = None
    allow_http: bool = False
    multipart: bool = False
    object_lock: bool = False
    state_dir: Path = field(default_factory=default_state_dir)
    patience: Patience | None = None
    credentials: Callable[[], Mapping[str, str]] = field(default=_nothing, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


Place = Path | ObjectPlace


def owner_file(place: Place) -> Path:
    """What tells which process of this machine has the repository open; there may be none."""
    if isinstance(place, Path):
        return place / "owner.json"
    for found in sorted((place.state_dir / "catalogs").glob("*/owner.json")):
        with suppress(OSError, ValueError, AttributeError):
            if json.loads(found.read_text(encoding="utf-8")).get("place") == str(place):
                return found
    return place.state_dir / "catalogs" / "owner.json"


def is_url(text: str) -> bool:
    """Whether a text names an object store."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def parse_place(text: str, state_dir: Path | None = None) -> Place:
    """A directory, or `s3://bucket/prefix`, `gs://…`, `az://…`; ValueError says what is wrong with it."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Path(text)
    if scheme not in SCHEMES:
        raise ValueError(f'"{scheme}://" is not known; write a directory, s3://bucket/prefix, gs:// or az://')
    parts = urlsplit(text)
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("the address holds more than bucket and prefix; keys are configured, not written here")
    bucket, prefix = parts.netloc, parts.path.strip("/")
    if not bucket or not bucket.isascii() or ":" in bucket:
        raise ValueError(f"{text} names no bucket; write {scheme}://bucket/prefix")
    if not prefix.isascii() or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ValueError("the prefix has an empty or dotted part, or letters beyond ASCII")
    return ObjectPlace(scheme, bucket, prefix, state_dir=state_dir or default_state_dir())


def check_endpoint(endpoint: str, *, allow_http: bool) -> None:
    """ValueError unless this is an address that keys may be used with."""
    parts = urlsplit(endpoint)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or parts.username is not None or parts.query:
        raise ValueError("write the endpoint as https://host or https://host:port")
    if parts.scheme == "http" and not allow_http and not _is_loopback(parts.hostname or ""):
        raise ValueError("an endpoint without TLS lets others read along; use https://, or set allow_http = true")


def open_blobs(place: ObjectPlace) -> ObjectBlobs:
    """The store at a place; AccessRefused when its settings cannot be used. No request is made yet."""
    from storage.objects import ObjectBlobs

    endpoint = place.endpoint or endpoint_of(place.scheme)
    allow_http = place.allow_http or os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"
    try:
        if endpoint:
            check_endpoint(endpoint, allow_http=allow_http)
        root = place.ca_file.read_bytes() if place.ca_file is not None else None
        reads, writes = (
            _store(place, endpoint, seconds, root, dict(place.credentials()))
            for seconds in (READ_SECONDS, WRITE_SECONDS)
        )
    except OSError as error:
        raise AccessRefused(f"the authority cannot be read: {error.strerror}", where=str(place.ca_file)) from None
    except ValueError as error:
        raise AccessRefused(str(error), where=str(place)) from None
    return ObjectBlobs(reads, writes, str(place), patience=place.patience, multipart=place.multipart)


def _store(place: ObjectPlace, endpoint: str, seconds: int, root: bytes | None, login: Mapping[str, str]) -> Any:
    from obstore import exceptions as foreign
    from obstore.store import AzureStore, GCSStore, S3Store

    client: dict[str, Any] = {
        "timeout": timedelta(seconds=seconds),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "allow_http": endpoint.startswith("http://"),
    }
    if root is not None:
        client["root_certificate"] = root
    # Retries are ours: they know what a lost answer means for a conditional put.
    settings: dict[str, Any] = {"client_options": client, "retry_config": {"max_retries": 0}, **login}
    if place.prefix:
        settings["prefix"] = place.prefix
    try:
        match place.scheme:
            case "s3":
                if endpoint:
                    settings |= {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}
                region = place.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
                return S3Store(place.bucket, region=region or "us-east-1", disable_bulk_delete=True, **settings)
            case "gs":
                return GCSStore(place.bucket, **settings | ({"base_url": endpoint} if endpoint else {}))
            case _:
                return AzureStore(place.bucket, **settings | ({"endpoint": endpoint} if endpoint else {}))
    except (foreign.BaseError, ValueError, TypeError) as error:  # its text may repeat a key
        raise AccessRefused(f"the store's settings cannot be used: {type(error).__name__}", where=str(place)) from None


def endpoint_of(scheme: str) -> str:
    """The endpoint that the environment names, as other tools of this store take it; empty for none."""
    if scheme != "s3":
        return ""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
