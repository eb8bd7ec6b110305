"""The state that a change of policies is planned from, as a file: facts, and the policies in force.

The form is that of `policies.factsfile`; a large one is written piece by piece, and may be compressed by gzip.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tomli

from policies.errors import PolicyError, Problem
from policies.facts import Facts, instant_text
from policies.factsfile import FORMAT, PAIRS, facts_from_json, facts_pieces
from policies.loading import load_texts
from policies.policyset import PolicySet

GZIP = b"\x1f\x8b"

LARGEST_STATE_BYTES = 2 << 30
"""So much of a compressed state is read."""

PIECE_BYTES = 1 << 20

PIECE_RECORDS = 500
"""How many records one piece holds: some 100 KB, so that writing it never holds the engine up for long."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known, and the policies in force; None when the document does not say."""

    facts: Facts
    policies: PolicySet | None


def pieces(facts: Facts, policies: PolicySet | None) -> Iterator[bytes]:
    """The document in UTF-8, in its order."""
    head: dict[str, Any] = {"format": FORMAT, "now": instant_text(facts.now)}
    if policies is not None:
        head["policies"] = dict(policies.texts)
    yield json.dumps(head, ensure_ascii=False)[:-1].encode()
    for key, records in facts_pieces(facts):
        opening, closing = "{}" if key in PAIRS else "[]"
        yield f",\n{json.dumps(key)}: {opening}".encode()
        between = "\n"
        for part in _parts(key, records):
            yield between.encode() + ",\n".join(part).encode()
            between = ",\n"
        yield closing.encode()
    yield b"}\n"


def _parts(key: str, records: Iterable[Any]) -> Iterator[list[str]]:
    dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    part: list[str] = []
    for record in records:
        part.append(f"{dump(record[0])}:{dump(record[1])}" if key in PAIRS else dump(record))
        if len(part) == PIECE_RECORDS:
            yield part
            part = []
    if part:
        yield part


def read_standing(data: bytes, name: str) -> Standing:
    """What a document says, in TOML where it is called so; PolicyError with the place where it cannot be used."""
    return standing_of(_read_toml(data, name) if name.endswith(".toml") else read_json(data, name), name)


def standing_of(document: object, name: str) -> Standing:
    """The same of a document that was parsed."""
    if not isinstance(document, Mapping):
        raise _unusable(name, 1, 1, "is no state", "write one with: backstay policy state --out FILE")
    texts = document.get("policies")
    policies = None
    if texts is not None:
        if not isinstance(texts, Mapping) or not all(isinstance(one, str) for pair in texts.items() for one in pair):
            raise _unusable(name, 1, 1, "policies are no texts by file name", "leave policies out, or write the texts")
        policies = load_texts(dict(texts))
    return Standing(facts_from_json(document, name), policies)


def _read_toml(data: bytes, name: str) -> object:
    try:
        return tomli.loads(data.decode("utf-8"))
    except tomli.TOMLDecodeError as error:
        what = f"is no TOML: {error.msg[:1].lower()}{error.msg[1:]}"
        raise _unusable(name, error.lineno, error.colno, what, "correct it here or just before") from None
    except (ValueError, RecursionError):
        raise _unusable(name, 1, 1, "is no TOML text", "save the file as UTF-8") from None


def read_json(data: bytes, name: str) -> object:
    """The value of a JSON text in UTF-8, which gzip may have compressed; PolicyError with line and column."""
    if data.startswith(GZIP):
        try:
            data = decompressed(data, LARGEST_STATE_BYTES, name)
        except (EOFError, zlib.error) as error:
            raise _unusable(
                name, 1, 1, f"cannot be decompressed ({error})", "copy it again, or write it again"
            ) from None
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise _unusable(name, error.lineno, error.colno, f"is no JSON: {error.msg}", "write it again") from None
    except (ValueError, RecursionError) as error:
        raise _unusable(name, 1, 1, f"is no JSON text ({type(error).__name__})", "write it again") from None


def decompressed(data: bytes, most: int, name: str) -> bytes:
    """What gzip compressed; PolicyError, before more than that is in memory, where it is larger than `most` bytes."""
    if int.from_bytes(data[-4:], "little") > most:
        raise _too_large(name, most)
    found = bytearray()
    while data:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = member.decompress(data, PIECE_BYTES)
            data = member.unconsumed_tail
            if not (piece or data or member.eof):
                raise EOFError("it ends too early")
            found += piece
            if len(found) > most:
                raise _too_large(name, most)
        data = member.unused_data.lstrip(b"\0")
    return bytes(found)


def _too_large(name: str, most: int) -> PolicyError:
    instead = "write it again with: backstay policy state --out FILE; if it is right, take VMs or restore points out"
    return _unusable(name, 1, 1, f"is larger than {most} bytes when decompressed", instead)


def _unusable(name: str, line: int, column: int, what: str, instead: str) -> PolicyError:
    return PolicyError([Problem(name, line, column, what, instead)])
