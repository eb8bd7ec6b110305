"""The example at the end of docs/format.md: a whole repository, small enough to be read byte by byte.

Made by the code from fixed ids and times: `python -m tests.format.example --write` puts it into the document.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from unittest.mock import patch

from policies.facts import VmId
from storage import randomness
from storage.repository import DiskHead, PointHead, create, open_repository

DOCUMENT = Path("docs/format.md")
BEGIN, END = "<!-- the example begins: python -m tests.format.example --write -->", "<!-- the example ends -->"
MOMENT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BLOCK = 4096
DISK = b"B" * BLOCK + bytes(BLOCK) + b"S" * BLOCK
"""Two blocks of equal letters around one of zeros, which is not stored."""

LINE = 16
Field = tuple[int, str]
"""(bytes, what they are); no text when the bytes themselves are shown as text."""

ENVELOPE: Sequence[Field] = (
    (8, "magic"), (2, "format version"), (1, "kind"), (1, "flags: plain"), (4, "length of the payload"),
    (16, "repository id"), (32, "salt: none"),
)  # fmt: skip
HEADER: Sequence[Field] = (
    (8, "magic"), (2, "format version"), (1, "kind: {}"), (1, "flags: plain"), (1, "hash kind: BLAKE3"),
    (1, "key slot"), (2, "zeros"), (16, "repository id"), (16, "pack id"), (16, "writer id"), (4, "writer epoch"),
    (4, "pack number"), (8, "created: 2026-03-01 12:00 UTC"), (32, "salt: none"), (16, "BLAKE3 of the above, cut"),
)  # fmt: skip
ENTRY: Sequence[Field] = (
    (32, "id of {}"), (4, "its offset in the pack"), (4, "stored length"), (3, "raw length"), (1, "codec"),
    (4, "CRC-32 of what is stored"),
)  # fmt: skip
TRAILER: Sequence[Field] = (
    (8, "offset of the footer"), (4, "stored length of the footer"), (4, "number of payloads"), (4, "format version"),
    (4, "zeros"), (32, "BLAKE3 of header, footer and this trailer"), (8, "magic"),
)  # fmt: skip
NODE: Sequence[Field] = (
    (1, "payload, a node: level"), (1, "zero"), (2, "slots of a node"), (4, "zeros"), (8, "bitmap: slots 0 and 2"),
    (32, "slot 0: id of the first chunk"), (32, "slot 2: id of the second chunk"),
)  # fmt: skip


def make(location: Path) -> None:
    """The example's repository."""
    drawn: Counter[int] = Counter()

    def token_bytes(length: int) -> bytes:
        start = drawn[length]
        drawn[length] += length
        return bytes(number & 0xFF for number in range(start, start + length))

    def token_hex(length: int) -> str:
        drawn[-length] += 1
        return f"{drawn[-length]:0{2 * length}x}"

    with patch.object(randomness, "token_bytes", token_bytes), patch.object(randomness, "token_hex", token_hex):
        create(location, now=MOMENT, block_bytes=BLOCK)
        with open_repository(location, now=MOMENT, owner="example") as repo:
            with repo.new_point(PointHead(VmId("vm-1"), "web", MOMENT)) as pending:
                ingest = pending.disk(DiskHead("Hard disk 1", len(DISK)), base=None)
                ingest.write(0, memoryview(DISK))
                ingest.finish()
                point = pending.commit()
            repo.mark_hold(point.id, "court", MOMENT)


def truth(location: Path) -> list[str]:
    """The keys that are not derived, in the order of the document."""
    folders = [location / "config", *(location / name for name in ("packs", "manifests", "marks"))]
    paths = chain.from_iterable(sorted(one.rglob("*")) if one.is_dir() else [one] for one in folders)
    return [path.relative_to(location).as_posix() for path in paths if path.is_file()]


def section(location: Path) -> str:
    """The annotated dump of every object."""
    parts = []
    for key in truth(location):
        data = (location / key).read_bytes()
        lines = "\n".join(_lines(data, _fields(key, data)))
        parts.append(f"**`{key}`**, {len(data)} bytes\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


def _fields(key: str, data: bytes) -> list[Field]:
    if not key.startswith("packs/"):
        length = int.from_bytes(data[12:16], "little")
        return [*ENVELOPE, (length, ""), (32, "BLAKE3 of head, key and payload")]
    footer = int.from_bytes(data[-64:-56], "little")
    count = int.from_bytes(data[-52:-48], "little")
    tree = key.endswith(".tree")
    names = ["the node"] if tree else ["the first chunk", "the second chunk"]
    starts = [int.from_bytes(data[footer + 48 * n + 32 : footer + 48 * n + 36], "little") for n in range(count)]
    lengths = [end - start for start, end in zip(starts, [*starts[1:], footer], strict=True)]
    payloads = NODE if tree else [(length, f"payload: {name}") for length, name in zip(lengths, names, strict=True)]
    entries = [(size, said.format(name)) for name in names for size, said in ENTRY]
    header = [(size, said.format("tree" if tree else "data")) for size, said in HEADER]
    return [*header, *payloads, *entries, *TRAILER]


def _lines(data: bytes, fields: Sequence[Field]) -> Iterator[str]:
    assert sum(length for length, _ in fields) == len(data)
    at = 0
    for length, said in fields:
        for start in range(at, at + length, LINE):
            piece = data[start : min(start + LINE, at + length)]
            text = said if said else re.sub(r"[^ -~]", ".", piece.decode("ascii", "replace"))
            yield f"{start:04x}  {piece.hex(' '):{3 * LINE - 1}}  {text if start == at or not said else ''}".rstrip()
        at += length


def parse(text: str) -> dict[str, bytes]:
    """The objects that a section shows, from its offsets and bytes alone."""
    objects: dict[str, bytes] = {}
    for key, dump in re.findall(r"\*\*`([^`]+)`\*\*, \d+ bytes\n\n```text\n(.*?)\n```", text, re.DOTALL):
        data = bytearray()
        for line in dump.splitlines():
            assert int(line[:4], 16) == len(data), line
            data += bytes.fromhex(line[6 : 6 + 3 * LINE - 1])
        objects[key] = bytes(data)
    return objects


def documented() -> str:
    """The section as it stands in the document."""
    return DOCUMENT.read_text(encoding="utf-8").partition(f"{BEGIN}\n\n")[2].partition(f"\n{END}")[0]


def made() -> str:
    """The section as the code makes it now."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "example")
        return section(Path(folder) / "example")


def main() -> None:
    """Print the section, or write it into the document."""
    if "--write" not in sys.argv:
        sys.stdout.write(made())
        return
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(f"{BEGIN}\n\n")
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{made()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
