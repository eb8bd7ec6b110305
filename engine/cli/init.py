"""backstay init"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from engine.cli.options import Config as ConfigFile
from engine.cli.options import Parameter, PassphraseFile
from engine.cli.output import printable, say
from engine.cli.reach import given_passphrase, utc_now
from engine.cli.visiting import PASSWORD_VARIABLE, Address, parse_address, password_source, read_authority, user_of
from engine.config import SYSTEM_FILE, Config, default_state_dir, user_file
from engine.config import parse as parse_config
from engine.credentials import Secret
from engine.failures import BadInput, Declined
from engine.sections import Transport, VCenter
from engine.stores import RepositorySection
from engine.trust import check_fingerprint, fetch_certificate, is_trusted
from policies.units import counted
from storage.places import SCHEMES
from storage.repository import create

POLICY = """# Everything is protected once a day. Add files beside this one, check them with: backstay policy lint
schema = 1

[policy.everything]
description = "Every VM, once a day"
priority = -100
rpo = "24h"

[policy.everything.select]
all = ["*"]

[policy.everything.retention]
keep_daily = 7
keep_weekly = 4
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes."""

    config: Path
    state_dir: Path
    repository: Path

    @property
    def folder(self) -> Path:
        """Where the configuration and its secrets lie."""
        return self.config.parent

    @property
    def passphrase(self) -> Path:
        """Where a generated passphrase lies."""
        return self.folder / "repository.passphrase"


def init(
    *,
    vcenter: Annotated[str | None, Parameter(help="Host or URL of the vCenter to protect.")] = None,
    name: Annotated[str, Parameter(help="What the vCenter is called in the configuration.")] = "main",
    user: Annotated[str | None, Parameter(help="Account in the vCenter; else BACKSTAY_VCENTER_USER.")] = None,
    password: Annotated[
        str | None,
        Parameter(help="file:, env: or command: of the password; else BACKSTAY_VCENTER_PASSWORD."),
    ] = None,
    ca_file: Annotated[Path | None, Parameter(help="Authority that signed the vCenter's certificate (PEM).")] = None,
    fingerprint: Annotated[str | None, Parameter(help="SHA-256 of the vCenter's certificate, to trust it.")] = None,
    vddk: Annotated[Path | None, Parameter(help="Folder of VMware's VDDK, for reading disks over the network.")] = None,
    repo: Annotated[Path | None, Parameter(help="Where the new repository will lie.")] = None,
    plain: Annotated[bool, Parameter(help="Do not encrypt the repository.")] = False,
    passphrase_file: PassphraseFile = None,
    config: ConfigFile = None,
) -> None:
    """Write a working configuration, one policy that protects everything, and a new repository.

    With --vcenter, `backstay run` needs nothing else. The repository is encrypted: with --passphrase-file or
    BACKSTAY_PASSPHRASE, else with a generated passphrase kept beside the configuration. A vCenter's certificate that
    no known authority signed is trusted when its fingerprint is confirmed on a terminal or given.
    """
    if repo is not None and str(repo).startswith(tuple(f"{scheme}:/" for scheme in SCHEMES)):
        raise BadInput(
            "a directory is wanted here",
            where=f"--repo {repo}",
            hint="for an object store edit [repository] afterwards",
        )
    plan = _plan(config, repo)
    if plain and passphrase_file is not None:
        raise BadInput("a plain repository has no passphrase", where="--plain", hint="leave out one of the two")
    if vddk is not None and not vddk.is_dir():
        raise BadInput("there is no such folder", where=f"--vddk {vddk}", hint="VDDK is VMware's download")
    _refuse_to_overwrite(plan)
    section = ""
    files: dict[str, str] = {}
    if vcenter is not None:
        section, files = _vcenter(plan, name, parse_address(vcenter), user, password, ca_file, fingerprint, vddk)
    passphrase, source = (None, "") if plain else _passphrase(plan, passphrase_file, files)
    text = _text(plan, section, source, vddk)
    parse_config(text, plan.config)
    _write(plan, text, files, passphrase)
    say(f"Wrote {plan.config}, {plan.folder / 'policies.d' / 'everything.toml'} and the repository {plan.repository}.")
    if passphrase is not None:
        say(f"Keep a copy of the passphrase ({source}) elsewhere: without it nothing can be restored.")
    option = "" if config is None else f" --config {plan.config}"
    if vcenter is None:
        say(f"Add your vCenter to the configuration, then: backstay check{option}")
    else:
        say(f"Examine all of it: backstay doctor{option}")
        say(f"Start the engine: backstay run{option}")


def _refuse_to_overwrite(plan: Plan) -> None:
    """Declined where something lies that cannot be made again: most of all the only copy of a passphrase."""
    if plan.config.exists():
        raise Declined("there is a configuration already", where=str(plan.config), hint="edit it, or move it away")
    if (plan.repository / "config").exists():
        raise Declined(
            "there is a repository already", where=str(plan.repository), hint="name another place with --repo"
        )
    if plan.passphrase.exists():
        raise Declined(
            "a passphrase lies here already, and a repository may need it",
            where=str(plan.passphrase),
            hint="move it away, or use it with --passphrase-file",
        )
    for folder in (plan.folder, plan.state_dir, plan.repository):
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        if not nearest.is_dir():
            raise BadInput("a directory is wanted here, and this is none", where=str(nearest))


def _plan(config: Path | None, repo: Path | None) -> Plan:
    if config is not None:
        folder = config.absolute().parent
        return Plan(config.absolute(), folder / "state", (repo or folder / "repository").absolute())
    named = os.environ.get("BACKSTAY_CONFIG")
    if named:
        return _plan(Path(named), repo)
    place = SYSTEM_FILE if os.geteuid() == 0 else user_file()
    state = default_state_dir()
    return Plan(place, state, (repo or state / "repository").absolute())


def _vcenter(
    plan: Plan,
    name: str,
    address: Address,
    user: str | None,
    password: str | None,
    ca_file: Path | None,
    fingerprint: str | None,
    vddk: Path | None,
) -> tuple[str, dict[str, str]]:
    """The section of the configuration and the files it needs, once the login worked."""
    account = user_of(address, user)
    secret = password_source(password)
    pem = _pem(address, ca_file, fingerprint)
    asyncio.run(_log_in(name, address, account, secret, pem, vddk))
    files: dict[str, str] = {}
    lines = [f"[vcenter.{_quoted(name)}]", f"host = {_quoted(address.host)}"]
    lines += [f"port = {address.port}"] if address.port != 443 else []
    lines += [f"user = {_quoted(account)}"]
    if secret == Secret("env", PASSWORD_VARIABLE):  # would be gone when the engine runs
        files[f"vcenter-{name}.password"] = secret.read()
        secret = Secret("file", str(plan.folder / f"vcenter-{name}.password"))
    lines += [f"password = {_quoted(str(secret))}"]
    if pem is not None:
        files[f"vcenter-{name}.pem"] = pem
        lines += [f"ca_file = {_quoted(f'vcenter-{name}.pem')}"]
    return "\n".join(lines) + "\n", files


def _pem(address: Address, ca_file: Path | None, fingerprint: str | None) -> str | None:
    """What to trust, None for the system's authorities; Declined when nobody vouches for the certificate."""
    if ca_file is not None:
        return read_authority(ca_file)
    where = f"{address.host}:{address.port}"
    certificate = fetch_certificate(address.host, address.port)
    if fingerprint is not None:
        check_fingerprint(certificate, fingerprint, where)
        return certificate.pem
    if is_trusted(address.host, address.port):
        return None
    say(f"No known authority signed the certificate of {where}.\nIts SHA-256 fingerprint is {certificate.fingerprint}")
    if sys.stdin.isatty() and sys.stderr.isatty():
        sys.stderr.write("Compare it with the one that vCenter shows. Trust it? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().casefold() in ("y", "yes"):
            return certificate.pem
    raise Declined(
        "the certificate is not trusted",
        where=where,
        hint=f"give --ca-file, or --fingerprint {certificate.fingerprint}",
    )


async def _log_in(name: str, address: Address, user: str, secret: Secret, pem: str | None, vddk: Path | None) -> None:
    from engine.connecting import connect
    from engine.looking import unreadable

    with tempfile.NamedTemporaryFile("w", suffix=".pem") as kept:
        kept.write(pem or "")
        kept.flush()
        settings = VCenter(
            host=address.host, port=address.port, user=user, password=secret, ca_file=Path(kept.name) if pem else None
        )
        nowhere = Config(
            schema=1, repository=RepositorySection(path=Path("/nonexistent")), transport=Transport(libdir=vddk)
        )
        hypervisor = await connect(name, settings, nowhere)
        try:
            vms = await hypervisor.inventory()
            say(f"Logged in to {address.host}: {counted(len(vms), 'VM')}.")
            for sentence in unreadable(vms, await hypervisor.predictions(vms)):
                say(printable(f"Not ready yet: {sentence}"))
        finally:
            await hypervisor.aclose()


def _passphrase(plan: Plan, passphrase_file: Path | None, files: dict[str, str]) -> tuple[str, str]:
    """The passphrase and where the configuration finds it; generated when none is given."""
    given = given_passphrase(passphrase_file)
    if given is not None and passphrase_file is not None:
        return given, f"file:{passphrase_file.absolute()}"
    files[plan.passphrase.name] = given or secrets.token_urlsafe(32)
    return files[plan.passphrase.name], f"file:{plan.passphrase}"


def _text(plan: Plan, vcenter: str, passphrase: str, vddk: Path | None) -> str:
    lines = [
        "# Backstay's configuration. Check it with: backstay check",
        "schema = 1",
        "# By this name the engine finds in vCenter what it made there: no other engine may have it, and it stays.",
        f"name = {_quoted(f'{socket.gethostname()}-{secrets.token_hex(2)}')}",
        f"state_dir = {_quoted(str(plan.state_dir))}",
        'policies = "policies.d"',
        "",
        "[repository]",
        f"path = {_quoted(str(plan.repository))}",
        *([f"passphrase = {_quoted(passphrase)}"] if passphrase else []),
        "",
        vcenter
        or '# [vcenter.main]\n# host = "vc.example.com"\n# user = "backup@vsphere.local"\n# password = "file:/path"\n',
        "# Who is told what needs a person. Policies name it in notify; try it with: backstay notify test ops",
        '# [notify.ops]\n# webhook = "file:/path/to/a/file/with/its/address"\n',
        *(["[transport]", f"libdir = {_quoted(str(vddk.absolute()))}", ""] if vddk is not None else []),
    ]
    return "\n".join(lines)


def _write(plan: Plan, text: str, files: dict[str, str], passphrase: str | None) -> None:
    """The configuration last: what stands before it is of no consequence without it."""
    policies = plan.folder / "policies.d"
    for folder in (plan.folder, policies, plan.state_dir, plan.repository):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in files.items():
        _private(plan.folder / name, content)
    if not any(policies.glob("*.toml")):
        _private(policies / "everything.toml", POLICY)
    create(plan.repository, now=utc_now(), passphrase=passphrase)
    _private(plan.config, text)


def _private(path: Path, content: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)


def _quoted(text: str) -> str:
    # A JSON string without escaped letters is a TOML string.
    return json.dumps(text, ensure_ascii=False)
