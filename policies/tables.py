"""What the tables of a policy file are made of: strict models, keys with their description, texts with a form.

The forms are patterns of the JSON schema too, so that an editor sees a wrong duration before Backstay does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from policies.units import parse_duration, parse_share

WINDOW_PATTERN = (
    r"((mon|tue|wed|thu|fri|sat|sun)(\.\.(mon|tue|wed|thu|fri|sat|sun))?"
    r"(,(mon|tue|wed|thu|fri|sat|sun)(\.\.(mon|tue|wed|thu|fri|sat|sun))?)* )?"
    r"[0-9]{2}:[0-9]{2}-[0-9]{2}:[0-9]{2}"
)
TERM_PATTERN = (
    r"^(\*|(name|datacenter|cluster|host|resource_pool|datastore|network|guest_os):.+|folder:[/*].*"
    r"|(tag|attribute):.*=.*|power:([Oo][Nn]|[Oo][Ff][Ff]|[Ss][Uu][Ss][Pp][Ee][Nn][Dd][Ee][Dd])"
    r"|template:([Yy][Ee][Ss]|[Nn][Oo])|(size|disks):(>=|<=|>|<) ?[0-9].*)$"
)
DISK_TERM_PATTERN = r"^(label|number|datastore):.+$"
TIME_PATTERN = r"^(\S+( +\S+){4}|\s*([Dd][Tt][Ss][Tt][Aa][Rr][Tt]|[Rr][Rr][Uu][Ll][Ee])[\s\S]*)$"
BLACKOUT_PATTERN = rf"^(([0-9]{{4}}-)?[0-9]{{2}}-[0-9]{{2}}.*|{WINDOW_PATTERN}|.*\.ics)$"
ZONE_PATTERN = r"^[A-Za-z0-9_+/-]+$"
DURATION_PATTERN = r"^[0-9]{1,6}[smhdw]( ?[0-9]{1,6}[smhdw])*$"
SHARE_PATTERN = r"^[0-9]{1,3}(\.[0-9]{1,4})?%$"


class Table(BaseModel):
    """A table of a policy file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def key(default: Any, description: str, *examples: Any, **more: Any) -> Any:
    """One key of a table: what it means when it is left out, and what the reference says of it."""
    return Field(default=default, description=description, examples=list(examples), **more)


def readable(parse: Callable[[str], object]) -> AfterValidator:
    """A text that `parse` understands; it stays the text that was written."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def text_like(pattern: str) -> WithJsonSchema:
    """What an editor is told of a text that `readable` checks."""
    return WithJsonSchema({"type": "string", "pattern": pattern})


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


ONE_OR_MANY = BeforeValidator(_one_or_many)
"""A list that may be written without brackets where it has one text."""


def once_or_more(item: dict[str, Any]) -> WithJsonSchema:
    """The JSON schema of such a list."""
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


def tidied(schema: Any) -> Any:
    """A JSON schema as editors like it: TOML has no null, and a title that only repeats a key helps nobody."""
    if isinstance(schema, list):
        return [tidied(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: tidied(one) for name, one in schema.items() if (name, one) not in _NOISE}
    if isinstance(found.get("title"), str):
        del found["title"]
    choices = [one for one in found.get("anyOf", ()) if one != {"type": "null"}]
    if len(choices) == 1:
        del found["anyOf"]
        found = {**choices[0], **found}
    elif choices:
        found["anyOf"] = choices
    return found


_NOISE: tuple[tuple[str, Any], ...] = (("default", None), ("examples", []))


Duration = Annotated[str, readable(parse_duration), text_like(DURATION_PATTERN)]
Share = Annotated[str, readable(parse_share), text_like(SHARE_PATTERN)]
Count = Annotated[int, Field(ge=0, le=100_000)]
