"""Which commands there are: their words, where their functions are, and the sentence that says what each is for."""

from __future__ import annotations

from dataclasses import dataclass

from engine.failures import EXIT_MEANINGS

SUMMARY = "Back up VMware VMs as your policies say, while they move."

GROUPS = {
    "vm": "Look after how VMs are known.",
    "vcenter": "Look after what is shown in vCenters.",
    "policy": "Look at policies, check them, confirm what they change.",
    "repo": "Make repositories and look after their keys.",
    "repo key": "Look after the keys that open an encrypted repository.",
    "disk": "Back up and restore single disks that are in no vCenter.",
    "catalog": "Look after the catalog of a repository.",
    "notify": "Look after who is told what needs a person.",
}


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its words, where its function is, and its summary in the list."""

    words: str
    function: str
    summary: str


COMMANDS = (
    Command("look", "look:look", "Look at a vCenter without touching it."),
    Command("init", "init:init", "Write a working configuration, one policy and a repository."),
    Command("check", "check:check", "Check that everything is ready for the engine."),
    Command("doctor", "doctor:doctor", "Examine vCenters and this machine: what would not work, and what to do."),
    Command("run", "run:run", "Run the engine."),
    Command("status", "status:status", "Show how protection stands."),
    Command("points", "points:points", "List restore points."),
    Command("backup", "backup:backup", "Back a VM up now."),
    Command("restore", "restore:restore", "Restore a disk to a file, or a VM into a new one or in place."),
    Command("task", "task:task", "Wait for what the engine does for an interrupted command, or stop it."),
    Command("hold", "hold:hold", "Keep a restore point whatever retention says."),
    Command("release", "release:release", "Open the holds of a restore point."),
    Command("expire", "expire:expire", "Forget a restore point."),
    Command("vm relink", "vm_relink:vm_relink", "Join the histories of a VM that got a new id."),
    Command("vcenter clean", "vcenter_clean:vcenter_clean", "Take away what Backstay shows in a vCenter."),
    Command("policy lint", "policy_lint:policy_lint", "Check policy files."),
    Command("policy test", "policy_test:policy_test", "Run the tests that are written beside the policies."),
    Command("policy explain", "policy_explain:policy_explain", "Say why a VM is protected, or a restore point kept."),
    Command("policy plan", "policy_plan:policy_plan", "Say what a change of policies does before it does."),
    Command("policy state", "policy_state:policy_state", "Write what plans and simulations start from."),
    Command("policy simulate", "policy_simulate:policy_simulate", "Say what policies do in the months to come."),
    Command("policy journal", "policy_journal:policy_journal", "Write the events that the engine handled."),
    Command("policy apply", "policy_apply:policy_apply", "Confirm a change that would take protection away."),
    Command("policy schema", "policy_schema:policy_schema", "Print the JSON schema of policy files."),
    Command("notify test", "notify_test:notify_test", "Send a trial message to a target of notices."),
    Command("verify", "verify:verify", "Read everything back and compare every hash."),
    Command("rehearse", "rehearse:rehearse", "Restore a VM for trial, compare every byte, and remove it again."),
    Command("copy", "copy_points:copy", "Copy restore points to another repository."),
    Command("reclaim", "reclaim:reclaim", "Free what no restore point needs any more."),
    Command("catalog rebuild", "catalog_rebuild:catalog_rebuild", "Make the catalog again from the repository."),
    Command("sql", "sql:sql", "Ask the catalog and the journal, read-only."),
    Command("repo init", "repo_init:repo_init", "Make a repository."),
    Command("repo key list", "repo_key:list_keys", "List the keys that open a repository."),
    Command("repo key add", "repo_key:add", "Let one more passphrase or key file open a repository."),
    Command("repo key remove", "repo_key:remove", "Take a key away."),
    Command("repo key rotate", "repo_key:rotate_key", "Put a new passphrase or key file in the place of one."),
    Command("repo keep", "repo_keep:repo_keep", "Keep a repository append-only for another user."),
    Command("disk backup", "disk_backup:disk_backup", "Make a restore point of a file, block device or NBD export."),
    Command("disk restore", "disk_restore:disk_restore", "Write a disk of a restore point to a file or block device."),
)


def exit_codes() -> str:
    """The exit codes, for the end of every help."""
    return "Exit codes:\n" + "\n".join(f"  {code.value:3}  {meaning}" for code, meaning in EXIT_MEANINGS.items())


def overview() -> str:
    """All commands at one glance, made without loading what parses them."""
    width = max(len(command.words) for command in COMMANDS)
    lines = [f"  {command.words.ljust(width)}  {command.summary}" for command in COMMANDS]
    head = ["Usage: backstay COMMAND", "", SUMMARY, "", "Commands:"]
    return "\n".join([*head, *lines, "", "See: backstay COMMAND --help", "", exit_codes()])
