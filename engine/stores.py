"""`[repository]` and its like: a directory, or a bucket of an object store with what is needed to log in there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from engine.credentials import Secret, parse_secret
from engine.hours import OpenHours
from storage.places import ObjectPlace, Place, check_endpoint, parse_place


def _secret(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    return parse_secret(value if isinstance(value, str) else "")


SecretSource = Annotated[Secret, BeforeValidator(_secret)]


class Section(BaseModel):
    """A table of the configuration. What it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True)


def anchored(value: Any, directory: Path) -> Any:
    """The same section with every path made absolute: relative ones start at the directory."""
    match value:
        case Path():
            return directory / value.expanduser()
        case Secret(kind="file", place=place):
            return Secret("file", str(directory / Path(place).expanduser()))
        case BaseModel():
            return value.model_copy(update={name: anchored(part, directory) for name, part in value})
        case dict():
            return {key: anchored(part, directory) for key, part in value.items()}
        case _:
            return value


LOGINS = {
    "s3": {"access_key": "access_key_id", "secret_key": "secret_access_key", "session_token": "session_token"},
    "gs": {"service_account": "service_account_key"},
    "az": {"account": "account_name", "account_key": "account_key", "sas_key": "sas_key"},
}
"""For each kind of store, the keys of a login here and what obstore calls them."""


class RepositorySection(Section):
    """`[repository]`: where restore points are kept. `passphrase` names where a passphrase or key file is kept.

    Either `path`, a directory, or `url`: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix. Without a login
    here, the provider's usual places count: environment variables, or the role of the machine. `service_account` is
    the key file's content, and all logins but `account` are sources of secrets. `multipart` sends large packs in
    parts, several at once, for lines that are slow for one connection. `object_lock` locks packs in the store, too.
    `maintenance_window` says when verification and reclaim of this one may run, in place of those of `[maintenance]`.
    """

    path: Path | None = None
    url: str = ""
    endpoint: str = ""
    region: str = ""
    access_key: SecretSource | None = None
    secret_key: SecretSource | None = None
    session_token: SecretSource | None = None
    service_account: SecretSource | None = None
    account: str = ""
    account_key: SecretSource | None = None
    sas_key: SecretSource | None = None
    ca_file: Path | None = None
    allow_http: bool = False
    multipart: bool = False
    object_lock: bool = False
    passphrase: SecretSource | None = None
    maintenance_window: OpenHours = ()

    @model_validator(mode="after")
    def _is_one_place(self) -> RepositorySection:
        if (self.path is None) == (not self.url):
            raise ValueError('write path = "/directory", or url = "s3://bucket/prefix", and not both')
        given = {name for names in LOGINS.values() for name in names if getattr(self, name)}
        if self.path is not None:
            if given or self.endpoint or self.region or self.ca_file:
                raise ValueError("a directory needs no login, endpoint, region or ca_file; leave them out")
            return self
        place = parse_place(self.url)
        if not isinstance(place, ObjectPlace):
            raise ValueError(f'"{self.url}" is no url; write s3://bucket/prefix, or path for a directory')
        if foreign := sorted(given - LOGINS[place.scheme].keys()):
            raise ValueError(f"{place.scheme}:// takes no {foreign[0]}; it takes {', '.join(LOGINS[place.scheme])}")
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key belong together; add the missing one")
        if self.endpoint:
            check_endpoint(self.endpoint, allow_http=self.allow_http)
        return self

    @property
    def name(self) -> str:
        """What people and metrics call it."""
        return self.path.name if self.path is not None else self.url.partition("://")[2].rstrip("/")

    def place(self, state_dir: Path) -> Place:
        """Where it lies. What is private to this machine lies below the state folder when that is an object store."""
        if self.path is not None:
            return self.path
        place = parse_place(self.url)
        assert isinstance(place, ObjectPlace)
        return ObjectPlace(
            place.scheme,
            place.bucket,
            place.prefix,
            endpoint=self.endpoint,
            region=self.region,
            ca_file=self.ca_file,
            allow_http=self.allow_http,
            multipart=self.multipart,
            object_lock=self.object_lock,
            state_dir=state_dir,
            credentials=self._login,
        )

    def _login(self) -> Mapping[str, str]:
        login: dict[str, str] = {}
        for name, theirs in LOGINS[self.url.partition("://")[0]].items():
            value = getattr(self, name)
            if value:
                login[theirs] = value.read() if isinstance(value, Secret) else value
        return login
