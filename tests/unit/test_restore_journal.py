"""The journal of a restore: what it says after a crash at any byte of it."""

from __future__ import annotations

from pathlib import Path

from engine.restore_journal import Journal, Progress, Restoring, unfinished

WHAT = Restoring("new VM", "p1", "vc-1", "vm-7", "web")


def test_it_says_what_was_noted_last_until_it_is_finished(tmp_path: Path) -> None:
    journal = Journal(tmp_path, WHAT)
    assert journal.read() is None
    journal.begin(version="1", anew=True)
    journal.note(0, 10)
    journal.note(1, 5)
    journal.note(0, 20)
    assert Journal(tmp_path, WHAT).read() == Progress({0: 20, 1: 5}, "1")
    assert unfinished(tmp_path) == [WHAT]
    journal.begin(version="2", anew=False, made="6000C29-3")
    assert journal.read() == Progress({0: 20, 1: 5}, "2", "6000C29-3")
    journal.begin(version="3", anew=True, made="6000C29-3")
    assert journal.read() == Progress({}, "3", "6000C29-3")
    journal.finish()
    journal.finish()
    assert (journal.read(), unfinished(tmp_path)) == (None, [])


def test_a_journal_cut_at_any_byte_never_says_more_than_was_reached(tmp_path: Path) -> None:
    journal = Journal(tmp_path, WHAT)
    journal.begin(version="1", anew=True)
    for reached in (100, 2000, 30000):
        journal.note(0, reached)
    whole = journal.path.read_bytes()
    for length in range(len(whole)):
        journal.path.write_bytes(whole[:length])
        told = journal.read()
        assert told is None or told.reached.get(0, 0) in (0, 100, 2000, 30000)
        journal.note(0, 40000)
        if told is not None:
            again = journal.read()
            assert again is not None
            assert again.reached == {0: 40000}


def test_restores_of_other_points_and_vms_have_journals_of_their_own(tmp_path: Path) -> None:
    others = [
        Restoring("in place", "p1", "vc-1", "vm-7", "web"),
        Restoring("new VM", "p2", "vc-1", "vm-7", "web"),
        Restoring("new VM", "p1", "vc-2", "vm-7", "web"),
        Restoring("new VM", "p1", "vc-1", "vm-8", "web"),
    ]
    assert len({one.file_name for one in [WHAT, *others]}) == 5
