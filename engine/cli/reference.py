"""docs/cli.md, made from the commands themselves: python -m engine.cli.reference > docs/cli.md"""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout

from engine.cli.frame import build
from engine.cli.table import COMMANDS, SUMMARY
from engine.failures import EXIT_MEANINGS

WIDTH = 100

HEAD = f"""# The command line

{SUMMARY}

This page is made from the commands by `python -m engine.cli.reference`; a test holds it to them.

Data goes to stdout and messages to stderr.
With `--json` a command prints one JSON value; times in it are ISO 8601 in UTC, sizes are bytes.
`vm` is always a name and `vm_id` always Backstay's own id.
A command on a repository takes `--repo DIR`; without it the configuration names the repository: `--config FILE`, else
`BACKSTAY_CONFIG`, else the user's `~/.config/backstay/backstay.toml`, else `/etc/backstay/backstay.toml`.
Where an engine owns the repository, the command asks it through its API; where another process does, it ends with 11.
A passphrase comes from `--passphrase-file`, else from the configuration, else from `BACKSTAY_PASSPHRASE`, else from a
prompt where there is a terminal.

## Exit codes

| code | meaning |
|---|---|
"""


def reference() -> str:
    """The whole page."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        return _page()
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _page() -> str:
    rows = "".join(f"| {code.value} | {meaning} |\n" for code, meaning in EXIT_MEANINGS.items())
    return HEAD + rows + "".join(_section(command.words) for command in COMMANDS)


def _section(words: str) -> str:
    said = io.StringIO()
    with redirect_stdout(said):
        build(words.split())([*words.split(), "--help"], exit_on_error=False)
    text = said.getvalue().split("\nExit codes:")[0]
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"\n## backstay {words}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
