"""Fixtures that every folder of tests may use, and the order of the files where several processes share them."""

from pathlib import Path

import pytest

pytest_plugins = ["tests.lab.fixtures", "tests.stores.fixtures"]

FIRST = (
    "crash/test_storage_faults.py", "crash/test_storage_kills.py", "lab/test_commands.py",
    "acceptance/test_nothing_is_lost.py", "acceptance/test_day.py", "crash/test_power_loss.py",
    "property/test_reclaim_model.py", "acceptance/test_events_take_effect_once.py", "pipeline/test_disk_commands.py",
    "lab/test_engine_end_to_end.py", "property/test_storage_flips.py", "property/test_nonces.py",
    "pipeline/test_cli_answers.py", "pipeline/test_command_json.py", "acceptance/test_bad_input.py",
    "acceptance/test_trouble.py", "unit/test_cli_run.py", "acceptance/test_many_vms.py",
    "acceptance/test_what_a_run_costs.py", "unit/test_cli.py", "crash/test_object_kills.py",
    "property/test_catalog_damage.py", "unit/test_cli_simulate.py", "lab/test_bus.py",
    "lab/test_janitor.py", "lab/test_events.py", "crash/test_soak.py", "lab/test_hotadd.py", "lab/test_rehearsal.py",
    "unit/test_cli_policies.py", "unit/test_storage_copies.py", "property/test_policy_files.py",
    "acceptance/test_restored_disks.py", "acceptance/test_metrics_of_a_run.py", "stores/test_writer_processes.py",
)  # fmt: skip
"""The files that take longest, below tests/. A file is played by one process, and a long one at the end by it alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, the others as they come; tests of a file stay in their order."""
    tests = Path(__file__).parent
    rank = {tests / name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(FIRST)))
