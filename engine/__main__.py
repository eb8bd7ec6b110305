"""Where a process begins and ends: every error becomes a message on stderr and an exit code."""

from __future__ import annotations

# Only what the interpreter has loaded already: an interruption while more is loaded is met by what stands below.
import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from engine.failures import Exit

INTERRUPTED = 130
LONG_LIVED = {"asyncio", "duckdb"}
"""Who loads these may have more to end than a command: the engine's loops, and its state."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code. Never raises, never shows a traceback.

    Without arguments it is the process's own: those of the command line, and signals that end it.
    """
    try:
        return _process() if arguments is None else _main(list(arguments))
    except KeyboardInterrupt:
        return _interrupted(sys.argv[1:] if arguments is None else arguments)


def _interrupted(given: Sequence[str]) -> int:
    """An engine that is stopped before it has started is stopped as it should; a command did not do its work."""
    engine = given[:1] == ["run"]
    try:
        sys.stderr.write("Stopped before the engine had started.\n" if engine else "interrupted\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # nobody can be told
    return 0 if engine else INTERRUPTED


class _Output(io.FileIO):
    """What a process prints to, with its name in the errors."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "stdout"
            raise


def _process() -> int:
    import gc

    _clean_up_when_ended()
    _name_output()
    gc.disable()  # what is being loaded stays: looking through it for garbage takes 8 ms of every command
    try:
        code = _main(sys.argv[1:])
        try:
            sys.stdout.flush()
        except OSError:  # told already
            _stop_writing()
        _end_at_once(code)
        return code
    finally:
        gc.unfreeze()  # or libraries take for leaked what the interpreter does not take apart


def _main(given: list[str]) -> int:
    _open_closed_streams()
    from engine.cli.ahead import begin_key

    begin_key(given)
    import warnings

    from engine.failures import Exit, verdict

    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # for developers, who ask for them
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files are bytes, not always text
    try:
        try:
            code = _run(given)
            sys.stdout.flush()
        except BrokenPipeError:
            _stop_writing()
            return int(Exit.DONE)
        return code
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # how rich ends a help that nobody reads
            return int(Exit.DONE)
        return end.code if isinstance(end.code, int) else Exit.DONE
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        judged = verdict(error)
        if judged.exit_code is Exit.BUG:
            return _complain(f"This is a bug in Backstay: {judged.sentence}.\n{_keep(error)}", Exit.BUG)
        return _complain(judged.sentence, judged.exit_code)


def _run(given: list[str]) -> int:
    from engine.cli.table import overview
    from engine.failures import Exit

    match given:
        case [] | ["--help" | "-h" | "help"]:
            sys.stdout.write(f"{overview()}\n")
        case ["--version" | "version"]:
            from importlib.metadata import version

            sys.stdout.write(f"backstay {version('backstay')}\n")
        case _:
            return _command(given)
    return int(Exit.DONE)


def _command(given: list[str]) -> int:
    # Loaded late: the overview needs none of it, and most commands need no parser.
    import gc

    from engine.cli.calling import plain_call
    from engine.failures import Exit

    call = plain_call(given)
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    if call is not None:
        return int(call() or Exit.DONE)
    from cyclopts import CycloptsError, UnusedCliTokensError

    from engine.cli.frame import build

    try:
        return int(build(given)(given, exit_on_error=False, print_error=False) or Exit.DONE)
    except CycloptsError as error:
        said = " ".join(str(error).split())
        if isinstance(error, UnusedCliTokensError):
            said = f"Too many arguments: {' '.join(map(ascii, error.unused_tokens or ()))}."
        return _complain(f"{said}\nSee: backstay {_words(given)}--help", Exit.USAGE)


def _end_at_once(code: int) -> None:
    """End the process if nothing is left that needs the interpreter; else return, and it ends as ever.

    The interpreter takes apart all that was loaded, 40 ms of every short command. Nothing of ours waits for that: what
    has to be durable or removed was so when its `with` block ended, and what libraries registered for the end is run.
    A command with an event loop, the engine's state or a thread that must be waited for ends the long way.
    """
    import atexit
    import threading

    waited_for = [thread for thread in threading.enumerate() if not thread.daemon]
    if waited_for != [threading.main_thread()] or sys.modules.keys() & LONG_LIVED:
        return
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # told by the interpreter, as ever
    os._exit(code)


def _complain(message: str, code: Exit) -> int:
    from engine.cli.output import printable, say

    say("\n".join(map(printable, message.split("\n"))))  # names of the command line and of files are in it
    return int(code)


def _clean_up_when_ended() -> None:
    """An end that is asked for, or a terminal that goes away, leaves no more behind than Ctrl-C does."""
    import signal

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _name_output() -> None:
    """A disk or terminal that data cannot be written to is told apart from what a command works on."""
    plain = sys.stdout
    if not isinstance(plain, io.TextIOWrapper):
        return
    output = _Output(plain.fileno(), "w", closefd=False)
    unbuffered = isinstance(plain.buffer, io.FileIO)  # as PYTHONUNBUFFERED asks
    sys.stdout = io.TextIOWrapper(
        output if unbuffered else io.BufferedWriter(output),
        encoding=plain.encoding,
        line_buffering=plain.line_buffering,
        write_through=unbuffered,
    )


def _open_closed_streams() -> None:
    """A caller may have closed what we write to. Otherwise the next file that is opened would take its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            setattr(sys, name, os.fdopen(opened, "w" if number else "r", encoding="utf-8", closefd=False))


def _words(given: Sequence[str]) -> str:
    """As much of what was written as names a command, with a space after it."""
    from engine.cli.table import COMMANDS

    known = {" ".join(command.words.split()[:n]) for command in COMMANDS for n in (1, 2, 3)}
    words = next((words for n in (3, 2, 1) if (words := " ".join(given[:n])) in known), "")
    return f"{words} " if words else ""


def _stop_writing() -> None:
    # The interpreter flushes once more at its end, and would complain there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _keep(error: BaseException) -> str:
    """Write the traceback where its reporter finds it, and tell where."""
    import tempfile
    import traceback
    from datetime import UTC, datetime
    from pathlib import Path

    text = "".join(traceback.format_exception(error))
    name = f"backstay-bug-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.log"
    folder = os.environ.get("BACKSTAY_BUG_DIR") or tempfile.gettempdir()
    path = Path(folder) / name
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    except OSError:
        return "Its details could not be written anywhere; run it again with BACKSTAY_BUG_DIR set to a directory."
    return f"Please report it with {path}."


if __name__ == "__main__":
    sys.exit(main())
