"""`backstay check` through the real console script."""

from __future__ import annotations

from pathlib import Path

from tests.console import backstay


def test_second_copies_are_opened_too(tmp_path: Path) -> None:
    (tmp_path / "policies.d").mkdir()
    config = tmp_path / "backstay.toml"
    config.write_text(
        'schema = 1\n[repository]\npath = "repo"\n[copies.far]\npath = "far"\n[transport]\norder = ["hotadd"]\n'
    )
    backstay("repo", "init", "repo", home=tmp_path)
    options = ("check", "--config", config, "--json")
    lacking = {one["check"]: one for one in backstay(*options, home=tmp_path, expect=10).data}
    assert lacking["repository"]["exit_code"] == 0
    assert "backstay repo init" in lacking["copy far"]["said"]
    backstay("repo", "init", "far", home=tmp_path)
    found = {one["check"]: one for one in backstay(*options, home=tmp_path).data}
    assert found["copy far"]["said"].startswith(f"{tmp_path / 'far'}: 0 restore points")
