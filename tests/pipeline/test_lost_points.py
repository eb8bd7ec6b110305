"""A restore point whose manifest was removed by hand, through the real console script."""

from __future__ import annotations

import json
from pathlib import Path

from tests.console import backstay


def test_a_lost_point_is_told_by_every_command_and_given_up_by_a_person_only(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    backstay("repo", "init", repo, home=tmp_path)
    ids = {}
    for name in ("kept", "gone"):
        image = tmp_path / name
        image.write_bytes(name.encode() * 100_000)
        ran = backstay("disk", "backup", image, "--name", name, "--repo", repo, "--json", home=tmp_path)
        ids[name] = json.loads(ran.out)["id"]
    (repo / "manifests" / ids["gone"]).unlink()
    ran = backstay("points", "--repo", repo, home=tmp_path)
    assert ids["gone"] in ran.out
    ran = backstay("points", "--repo", repo, "--json", home=tmp_path)
    assert {point["id"] for point in json.loads(ran.out) if point["damaged"]} == {ids["gone"]}
    ran = backstay("verify", "--repo", repo, home=tmp_path, expect=4)
    assert "nobody expired it" in ran.out
    out = tmp_path / "out"
    ran = backstay("disk", "restore", ids["gone"], "--to", out, "--repo", repo, home=tmp_path, expect=4)
    assert "--lost" in ran.err
    ran = backstay("reclaim", "--repo", repo, home=tmp_path, expect=5)
    assert ids["gone"] in ran.err
    assert "backstay expire POINT --lost" in ran.err
    backstay("expire", ids["gone"], "--repo", repo, home=tmp_path, expect=5)
    backstay("expire", ids["kept"], "--last", "--lost", "--repo", repo, home=tmp_path, expect=5)
    backstay("expire", ids["gone"], "--lost", "--repo", repo, home=tmp_path)
    backstay("reclaim", "--repo", repo, home=tmp_path)
    backstay("verify", "--repo", repo, home=tmp_path)
