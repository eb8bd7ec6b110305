"""The state that plans start from, written piece by piece and read again; what is none is told with its place."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from datetime import timedelta

import pytest

from engine.statefile import PIECE_RECORDS, decompressed, pieces, read_standing
from policies.errors import PolicyError
from policies.facts import VmHistory, VmId
from policies.factsfile import facts_as_json
from policies.fleet import synthetic_fleet
from policies.policyset import PolicySet
from tests.policies.building import NOW, a_vm, daily_points, facts, policies

WEB = a_vm("web")


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_written_is_read_again(compressed: bool) -> None:
    known = facts(
        WEB,
        points=daily_points(WEB, 3),
        history={WEB.id: VmHistory(last_good=NOW)},
        fired={("gold", "trigger[0]", WEB.id): NOW - timedelta(hours=1)},
    )
    accepted = policies('[policy.gold]\nrpo = "4h"\n# größer\n')
    data = b"".join(pieces(known, accepted))
    found = read_standing(gzip.compress(data) if compressed else data, "state.json")
    assert found.facts == known
    assert found.policies == accepted


def test_the_pieces_of_a_fleet_are_small_and_its_document_is_that_of_the_facts() -> None:
    known = synthetic_fleet(40, now=NOW, points_each=40)
    written = [*pieces(known, None)]
    assert max(map(len, written)) < 1000 * PIECE_RECORDS
    assert len(written) > 6
    assert json.loads(b"".join(written)) == facts_as_json(known)


def test_facts_of_nothing_are_a_document_too() -> None:
    found = read_standing(b"".join(pieces(facts(), PolicySet())), "state.json")
    assert (found.facts, found.policies) == (facts(), PolicySet())
    assert read_standing(b'{"now": "2026-11-23T02:00:00Z"}', "state.json").policies is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "state.json:1:1: is no JSON: Expecting value"),
        (b'{\n "now": }', "state.json:2:9: is no JSON"),
        (b'{"now": "\xff"}', "is no JSON text"),
        (b"[" * 100_000, "is no JSON text"),
        (b"[]", "is no state"),
        (b"\x1f\x8b rubbish", "cannot be decompressed"),
        (gzip.compress(b"{}", mtime=0)[:-9], "cannot be decompressed"),
        (b'{"policies": {"a.toml": 7}}', "policies are no texts by file name"),
        (b'{"policies": {"a.toml": "schema = 1\\n[policy.x]\\nrop = 7"}, "now": "2026-11-23T02:00:00Z"}', "a.toml:3:1"),
        (b'{"vms": [{}], "now": "2026-11-23T02:00:00Z"}', "vms[0] has no name"),
    ],
)
def test_what_is_no_state_is_told_with_its_place(data: bytes, said: str) -> None:
    with pytest.raises(PolicyError) as refused:
        read_standing(data, "state.json")
    assert said in str(refused.value)


def test_an_id_that_json_must_escape_survives() -> None:
    vm = a_vm('a"\\\n')
    known = facts(vm, history={VmId('a"\\'): VmHistory()})
    assert read_standing(b"".join(pieces(known, None)), "state.json").facts == known


def test_a_compressed_state_is_not_decompressed_without_bound() -> None:
    bomb = gzip.compress(b" " * (8 << 20))
    assert decompressed(bomb, 8 << 20, "state.json.gz") == b" " * (8 << 20)
    assert decompressed(gzip.compress(b"{") + gzip.compress(b"}") + bytes(3), 9, "state.json.gz") == b"{}"
    said = r"state\.json\.gz:1:1: is larger than 3145728 bytes when decompressed, write it again with"
    with pytest.raises(PolicyError, match=said):
        decompressed(bomb, 3 << 20, "state.json.gz")
    tracemalloc.start()
    with pytest.raises(PolicyError, match=said):
        decompressed(bomb + gzip.compress(b""), 3 << 20, "state.json.gz")
    assert tracemalloc.get_traced_memory()[1] < 7 << 20
    tracemalloc.stop()
    with pytest.raises(PolicyError, match="is larger than 2147483648 bytes"):
        read_standing(bomb[:-4] + b"\xff\xff\xff\xff", "state.json.gz")
