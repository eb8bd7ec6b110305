"""What somebody probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def closest(text: str, known: Iterable[str], *, parts: str = "") -> str:
    """The known word nearest to the text, "" when none is near. With parts, "Berlin" finds "Europe/Berlin"."""
    wanted = text[:80].casefold().replace(" ", "_")
    words = {word.casefold(): word for word in sorted(known, reverse=True)}
    if wanted in words:
        return words[wanted]
    if parts:
        ends = {word.rsplit(parts, 1)[-1]: whole for word, whole in sorted(words.items(), reverse=True)}
        if wanted in ends:
            return ends[wanted]
    found = difflib.get_close_matches(wanted, words, n=1, cutoff=0.6)
    return words[found[0]] if found else ""


def one_of(text: str, known: Sequence[str]) -> str:
    """What to write instead of the text: the nearest of the known words, else that one of them is wanted."""
    close = closest(text, known)
    return f'write "{close}"' if close else f"write one of {', '.join(known)}"
