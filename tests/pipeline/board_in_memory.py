"""What is shown of our work, kept in memory: the twin of a vCenter's board behind `engine.ports.Board`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from connectors.errors import ConnectorError, Gone
from connectors.shown import ATTRIBUTES, Note, Put, Wanted
from policies.facts import Address


@dataclass(slots=True)
class Task:
    """One task: its run, its text, how far it is, and how it ended ("" while it has not, "done" or the error)."""

    run: str
    text: str
    percents: list[int] = field(default_factory=list)
    ended: str = ""


@dataclass(slots=True)
class BoardInMemory:
    """See the module. `lacking` and `fail` make it misbehave."""

    lacking: dict[str, str] = field(default_factory=dict)
    fail: ConnectorError | None = None
    said: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    writes: int = 0
    prepared: int = 0

    async def prepare(self, wanted: Wanted) -> dict[str, str]:
        self._answer()
        self.prepared += 1
        return dict(self.lacking)

    async def labels(self) -> dict[str, dict[str, str]]:
        self._answer()
        return {moref: dict(values) for moref, values in self.said.items()}

    async def label(self, vm: Address, name: str, value: str) -> None:
        self._answer()
        assert name in ATTRIBUTES
        self.writes += 1
        self.said.setdefault(vm.moref, {})[name] = value

    async def post(self, note: Note) -> None:
        self._answer()
        self.notes.append(note)

    async def begin(self, vm: Address, run: str, text: str) -> str:
        self._answer()
        moref = f"task-{len(self.tasks) + 1}"
        self.tasks[moref] = Task(run, text)
        return moref

    async def progress(self, task: str, percent: int) -> None:
        self._answer()
        self._open(task).percents.append(percent)

    async def end(self, task: str, error: str = "") -> None:
        self._answer()
        self._open(task).ended = error or "done"

    async def unfinished(self, is_dead: Callable[[str], bool]) -> list[str]:
        self._answer()
        return [moref for moref, task in self.tasks.items() if not task.ended and is_dead(task.run)]

    async def there(self) -> Put:
        self._answer()
        return Put(tasks=sum(not task.ended for task in self.tasks.values()))

    async def clean(self) -> None:
        self._answer()
        self.said.clear()

    def _answer(self) -> None:
        if self.fail is not None:
            raise self.fail

    def _open(self, task: str) -> Task:
        if task not in self.tasks or self.tasks[task].ended:
            raise Gone(f"task {task} has ended")
        return self.tasks[task]
