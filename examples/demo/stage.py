"""Telling the story on a terminal: scenes, what was seen, and what was claimed and held or did not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

T = TypeVar("T")


class DemoFailed(Exception):
    """The play cannot go on."""


@dataclass
class Stage:
    """Prints the play and remembers whether every claim held."""

    console: Console = field(
        default_factory=lambda: Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    )
    started: float = field(default_factory=time.monotonic)
    failures: list[str] = field(default_factory=list)
    claims: int = 0

    @property
    def seconds(self) -> float:
        """Seconds of play so far."""
        return time.monotonic() - self.started

    def scene(self, title: str) -> None:
        """Begin a scene."""
        self.console.print(f"\n[bold]{escape(title)}[/bold]  [dim]{self.seconds:.0f} s[/dim]")

    def say(self, text: str) -> None:
        """Tell something that was seen."""
        self.console.print(f"  {escape(text)}")

    def show(self, text: str) -> None:
        """Show what a command printed, as it printed it."""
        for line in text.rstrip().splitlines():
            self.console.print(f"    [cyan]{escape(line)}[/cyan]")

    def claim(self, what: str, held: bool, seen: object = "") -> bool:
        """State a claim, and whether it held."""
        self.claims += 1
        mark = "[green]✓[/green]" if held else "[red]✗[/red]"
        tail = f"  [dim]{escape(str(seen))}[/dim]" if str(seen) else ""
        self.console.print(f"  {mark} {escape(what)}{tail}")
        if not held:
            self.failures.append(f"{what} ({seen})" if str(seen) else what)
        return held

    def wait(self, what: str, probe: Callable[[], T | None], *, within: float = 40.0) -> T:
        """The first truthy answer of probe; DemoFailed when it does not come in time."""
        deadline = time.monotonic() + within
        while True:
            found = probe()
            if found:
                return found
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited {within:.0f} s for {what}")
            time.sleep(0.1)


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed on stdout, as JSON."""
        return json.loads(self.out)


def run(argv: Sequence[str | Path], *, env: dict[str, str], expect: Sequence[int] = (0,)) -> Ran:
    """Run a command to its end; DemoFailed when its exit code is not an expected one."""
    done = subprocess.run(
        [str(word) for word in argv], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode not in expect:
        words = " ".join(str(word) for word in argv[1:])
        raise DemoFailed(f"backstay {words} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return Ran(done.returncode, done.stdout, done.stderr)
