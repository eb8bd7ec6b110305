"""Durations of the command line."""

from __future__ import annotations

from datetime import timedelta

from engine.failures import BadInput
from policies.errors import Unusable
from policies.units import parse_duration


def duration(text: str, option: str) -> timedelta:
    """The duration that an option has; BadInput names the option and says how one is written."""
    try:
        return parse_duration(text)
    except Unusable as error:
        raise BadInput(error.what, where=option, hint=error.instead) from None
