"""A shared store in memory whose operations are steps, and a scheduler that decides who takes the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from storage.errors import AlreadyExists, Changed, Damaged, Missing
from storage.filecalls import Buffer

Gate = Callable[[str], None]


@dataclass
class Store:
    """What several processes see: blobs with the moments of their creation, and a clock that only the test moves."""

    seconds: float = 1_000_000.0
    blobs: dict[str, tuple[bytes, float]] = field(default_factory=dict)

    def copy(self) -> Store:
        """The same again, to be changed apart from this one."""
        return Store(self.seconds, dict(self.blobs))


class StoreInMemory:
    """The `Blobs` of one process. Each operation that another process can notice, or be noticed by, is a step."""

    def __init__(self, store: Store, gate: Gate = lambda what: None) -> None:
        self.store = store
        self.gate = gate
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes) -> None:
        self.gate(f"put {key}")
        with self._lock:
            if key in self.store.blobs:
                raise AlreadyExists("this blob is there already", where=key)
            self.store.blobs[key] = (bytes(data), self.store.seconds)

    def replace(self, key: str, data: bytes) -> None:
        self.gate(f"replace {key}")
        self.store.blobs[key] = (bytes(data), self.store.seconds)

    def replace_if(self, key: str, data: bytes, expected: bytes | None) -> None:
        if (self.store.blobs[key][0] if key in self.store.blobs else None) != expected:
            raise Changed("it is something else", where=key)
        self.replace(key, data)

    def _found(self, key: str) -> tuple[bytes, float]:
        try:
            return self.store.blobs[key]
        except KeyError:
            raise Missing("this blob is missing", where=key) from None

    def get(self, key: str) -> bytes:
        if key.startswith("manifests/"):
            self.gate(f"get {key}")
        return self._found(key)[0]

    def read_into(self, key: str, offset: int, view: memoryview) -> None:
        data = self._found(key)[0][offset : offset + len(view)]
        if len(data) < len(view):
            raise Damaged("this blob is shorter than what was written", where=key)
        view[:] = data

    def size(self, key: str) -> int:
        if not key.startswith("packs/"):
            self.gate(f"size {key}")
        return len(self._found(key)[0])

    def age_stamp(self, key: str) -> float:
        return self._found(key)[1]

    def clock(self) -> datetime:
        return datetime.fromtimestamp(self.store.seconds, UTC)

    def list(self, prefix: str) -> Iterator[str]:
        self.gate(f"list {prefix}")
        return iter([key for key in list(self.store.blobs) if key.startswith(prefix)])

    def delete(self, key: str) -> None:
        self.gate(f"delete {key}")
        self.store.blobs.pop(key, None)

    def writer(self) -> WriterInMemory:
        return WriterInMemory(self)

    def free_bytes(self) -> int | None:
        return None

    def clean(self) -> int:
        return 0


class WriterInMemory:
    """A blob under construction."""

    def __init__(self, blobs: StoreInMemory) -> None:
        self._blobs = blobs
        self._data = bytearray()

    def write_at(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(bytes(buffer) for buffer in buffers)
        self._data.extend(bytes(max(0, offset + len(data) - len(self._data))))
        self._data[offset : offset + len(data)] = data

    def read_at(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def publish(self, key: str) -> None:
        self._blobs.put(key, bytes(self._data))

    def abandon(self) -> None:
        self._data.clear()


class Turns:
    """Actors take steps one at a time. Whoever runs goes on, but at the forced steps another one takes over.

    `trace` has (actor, what, who else could have gone on) of every step.
    """

    def __init__(self, order: Sequence[str], forced: Mapping[int, str]) -> None:
        self._waiting = list(order)
        self._forced = forced
        self._changed = threading.Condition()
        self._current = order[0]
        self.trace: list[tuple[str, str, tuple[str, ...]]] = []

    def gate(self, actor: str) -> Gate:
        """What an actor calls before each of its steps."""

        def step(what: str) -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._current == actor)
                others = tuple(other for other in self._waiting if other != actor)
                chosen = self._forced.get(len(self.trace))
                self.trace.append((actor, what, others))
                if chosen in others:
                    self._current = chosen
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._current == actor)

        return step

    def play(self, actors: Mapping[str, Callable[[], None]]) -> None:
        """Run all of them to their end; raises what the first raised."""
        failures: list[BaseException] = []

        def run(name: str, work: Callable[[], None]) -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._current == name)
            try:
                work()
            except BaseException as error:
                failures.append(error)
            finally:
                with self._changed:
                    self._waiting.remove(name)
                    if self._waiting:
                        self._current = self._waiting[0]
                    self._changed.notify_all()

        threads = [threading.Thread(target=run, args=item) for item in actors.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
