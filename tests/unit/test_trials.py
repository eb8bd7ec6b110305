"""Whose a trial VM is, and what its questions are answered with."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from connectors.hypervisor import TRIAL_PREFIX
from connectors.vsphere.trial_marks import as_trial, is_trial, kept_by_somebody, read_mark
from connectors.vsphere.trials import chosen_answer

NAME = f"{TRIAL_PREFIX}db-r1"


def a_disk(file: str) -> Any:
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=file, diskMode="persistent")
    return vim.vm.device.VirtualDisk(key=2000, capacityInKB=1024, backing=backing)


def made() -> tuple[Any, dict[str, Any]]:
    """The specification of a trial VM, and what vCenter tells of it when nobody has touched it."""
    config = vim.vm.ConfigSpec(name=NAME, extraConfig=[])
    as_trial(config, [], engine="e1", point="p1", run="r1")
    return config, {
        "name": NAME,
        "config.annotation": config.annotation,
        "config.extraConfig": config.extraConfig,
        "config.instanceUuid": config.instanceUuid,
        "config.files.vmPathName": "[ssd] trial/trial.vmx",
        "config.hardware.device": [a_disk("[ssd] trial/trial.vmdk")],
    }


def test_what_was_made_is_ours_and_tells_its_run() -> None:
    config, told = made()
    assert kept_by_somebody(told, "e1") == ""
    mark = read_mark(config.extraConfig)
    assert mark is not None
    assert (mark.engine, mark.point, mark.run) == ("e1", "p1", "r1")
    assert is_trial(NAME, config.annotation)
    assert not is_trial("db", config.annotation)
    assert not is_trial(NAME, "a server")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "mine"}, "renamed"),
        ({"config.annotation": "mine"}, "notes"),
        ({"config.instanceUuid": "another"}, "copy"),
        ({"config.extraConfig": []}, "mark"),
        ({"config.hardware.device": [a_disk("[ssd] db/db.vmdk")]}, "not its own"),
        ({"config.hardware.device": [a_disk("[hdd] trial/trial.vmdk")]}, "not its own"),
        ({"snapshot": vim.vm.SnapshotInfo(rootSnapshotList=[vim.vm.SnapshotTree()])}, "snapshot"),
    ],
    ids=["renamed", "notes", "clone", "no mark", "foreign disk", "disk elsewhere", "snapshot"],
)
def test_what_somebody_has_made_his_is_not_ours(change: dict[str, Any], why: str) -> None:
    assert why in kept_by_somebody(made()[1] | change, "e1")


def test_another_engines_and_a_broken_mark_are_not_ours() -> None:
    _, told = made()
    assert "mark" in kept_by_somebody(told, "e2")
    for text in ("", "{", "[]", "7"):
        told["config.extraConfig"] = [vim.option.OptionValue(key="backstay.rehearsal", value=text)]
        assert "mark" in kept_by_somebody(told, "e1")


def a_question(*labels: str, proposed: int = 0) -> Any:
    choices = [vim.ElementDescription(key=str(at), label=label) for at, label in enumerate(labels)]
    return vim.vm.QuestionInfo(
        id="1", text="?", choice=vim.option.ChoiceOption(choiceInfo=choices, defaultIndex=proposed)
    )


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (a_question("Cancel", "I _moved it", "I _copied it", proposed=1), "2"),
        (a_question("Retry", "Abort", proposed=1), "1"),
        (a_question("Retry", proposed=3), None),
    ],
    ids=["moved or copied", "another", "nothing proposed"],
)
def test_a_question_is_answered_with_copied_or_with_what_is_proposed(question: Any, answer: str | None) -> None:
    assert getattr(chosen_answer(question), "key", None) == answer
