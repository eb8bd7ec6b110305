"""backstay policy schema"""

from __future__ import annotations

from engine.cli.output import show_json
from policies.schema import policy_json_schema


def policy_schema() -> None:
    """Print the JSON schema of policy files, for editors."""
    show_json(policy_json_schema())
