"""What is shipped, and that the first page of the documentation speaks of commands that exist."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ["connectors", "engine", "metrics", "policies", "storage"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    [built] = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_a_wheel_holds_the_five_packages_and_nothing_else_at_its_top(wheel: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert sorted(name for name in top if not name.endswith(".dist-info")) == PACKAGES
    assert not [name for name in wheel if name.startswith("tests/")]


def test_every_package_says_that_it_is_typed(wheel: list[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel)


def test_what_runs_without_a_checkout_is_in_the_wheel(wheel: list[str]) -> None:
    shipped = {name for name in wheel if not name.endswith(".py")}
    assert any(name.startswith("policies/examples/") and name.endswith(".toml") for name in shipped)
    assert "metrics/grafana/backstay.json" in shipped
    assert "metrics/alerts/backstay.rules.yml" in shipped


def test_no_other_distribution_claims_our_top_level_names() -> None:
    owners = packages_distributions()
    assert {package: set(owners.get(package, ["backstay"])) for package in PACKAGES} == {
        package: {"backstay"} for package in PACKAGES
    }


def test_every_command_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    named = re.findall(r"^backstay ((?:policy|repo|disk|catalog) [a-z]+|[a-z]+)", text, re.MULTILINE)
    assert len(named) >= 10
    missing = [command for command in named if f"backstay {command}" not in reference]
    assert not missing


def test_every_link_between_documents_leads_somewhere() -> None:
    links = [
        (document, target)
        for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    ]
    broken = [(document.name, target) for document, target in links if not (document.parent / target).exists()]
    assert not broken


def test_no_module_has_the_name_of_a_catch_all() -> None:
    catch_alls = {"utils", "util", "common", "base", "helpers", "misc", "core"}
    modules = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert [file.name for file in modules if file.stem in catch_alls] == []
