"""The shapes of messages: strict, bounded, and free of control characters, because strangers send them."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from policies.facts import Address


def _plain(text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise ValueError("holds control characters")
    return text


Word = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_plain)]
Line = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_plain)]
OptionalLine = Annotated[str, Field(max_length=512), AfterValidator(_plain)]


class Identity(BaseModel):
    """What makes a CloudEvent unique."""

    model_config = ConfigDict(strict=True, extra="ignore")

    source: Line
    id: Line


class Envelope(Identity):
    """A CloudEvent with JSON inside; extension attributes are allowed and not looked at."""

    specversion: Literal["1.0"]
    type: Word
    time: AwareDatetime | None = None
    subject: OptionalLine = ""
    datacontenttype: Literal["application/json", "application/json; charset=utf-8"] = "application/json"
    data: dict[str, Any]


class Target(BaseModel):
    """Which VM: by name, or by vCenter instance UUID and moRef, or both."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: OptionalLine = ""
    vcenter: OptionalLine = ""
    moref: OptionalLine = ""

    @model_validator(mode="after")
    def _complete(self) -> Target:
        if bool(self.vcenter) != bool(self.moref):
            raise ValueError("vcenter and moref come together")
        if not (self.name or self.moref):
            raise ValueError("give the VM's name, or vcenter and moref")
        return self

    @property
    def address(self) -> Address | None:
        """Where the VM is, if it was said."""
        return Address(self.vcenter, self.moref) if self.moref else None


AnnouncedType = Literal[
    "vm.powered_on",
    "vm.powered_off",
    "vm.suspended",
    "vm.migrated",
    "vm.relocated",
    "vm.created",
    "vm.cloned",
    "vm.removed",
    "vm.reconfigured",
    "vm.renamed",
    "vm.registered",
    "vm.retagged",
]


class EventData(BaseModel):
    """io.backstay.event.v1."""

    model_config = ConfigDict(strict=True, extra="forbid")

    event: AnnouncedType
    vm: Target
    cause: OptionalLine = ""
    from_host: OptionalLine = ""
    to_host: OptionalLine = ""
    user: OptionalLine = ""


class CommandData(BaseModel):
    """io.backstay.command.backup.v1 and io.backstay.command.hold.v1."""

    model_config = ConfigDict(strict=True, extra="forbid")

    vm: Target
    reason: Line
    user: OptionalLine = ""


class _Vim(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class VimReference(_Vim):
    """A managed object reference."""

    value: OptionalLine = Field("", validation_alias=AliasChoices("Value", "value"))


class VimVm(_Vim):
    """A VmEventArgument."""

    name: Line = Field(validation_alias=AliasChoices("Name", "name"))
    vm: VimReference | None = Field(None, validation_alias=AliasChoices("Vm", "vm"))


class VimHost(_Vim):
    """A HostEventArgument."""

    name: OptionalLine = Field("", validation_alias=AliasChoices("Name", "name"))


class VimArgument(_Vim):
    """One argument of an EventEx."""

    key: OptionalLine = Field("", validation_alias=AliasChoices("Key", "key"))
    value: Any = Field(None, validation_alias=AliasChoices("Value", "value"))


class VimEvent(_Vim):
    """As much of a vim.event.Event as a policy can ask about; Go's and JSON's spelling of the names.

    `vm` is lacking in an EventEx about a tag, which names its object in an argument.
    """

    key: int = Field(0, validation_alias=AliasChoices("Key", "key"))
    created: AwareDatetime | None = Field(
        None, strict=False, validation_alias=AliasChoices("CreatedTime", "createdTime")
    )
    vm: VimVm | None = Field(None, validation_alias=AliasChoices("Vm", "vm"))
    host: VimHost | None = Field(None, validation_alias=AliasChoices("Host", "host"))
    source_host: VimHost | None = Field(None, validation_alias=AliasChoices("SourceHost", "sourceHost"))
    user: OptionalLine = Field("", validation_alias=AliasChoices("UserName", "userName"))
    arguments: list[VimArgument] | None = Field(
        None, max_length=100, validation_alias=AliasChoices("Arguments", "arguments")
    )

    @field_validator("created")
    @classmethod
    def _is_of_our_days(cls, value: datetime | None) -> datetime | None:
        if value is not None and not 2000 <= value.year < 2200:
            raise ValueError("is not of our days")
        return value

    @field_validator("key")
    @classmethod
    def _is_a_key(cls, value: int) -> int:
        """Keys that overflowed are negative, and mean nothing to anybody."""
        if abs(value) > 1 << 63:
            raise ValueError("is no key")
        return max(0, value)

    def argument(self, key: str) -> str:
        """The text of an argument; empty when there is none that a person could read."""
        found = next((one.value for one in self.arguments or () if one.key == key), "")
        text = found.strip() if isinstance(found, str) and len(found) <= 512 else ""
        return text if text.isprintable() else ""
