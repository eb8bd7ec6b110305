"""Random bytes and names, from the kernel. The standard library's `secrets` loads hashes, too: 7 ms of each command."""

from __future__ import annotations

import os


def token_bytes(length: int) -> bytes:
    """So many bytes that nobody can guess."""
    return os.urandom(length)


def token_hex(length: int) -> str:
    """So many bytes as text."""
    return os.urandom(length).hex()
