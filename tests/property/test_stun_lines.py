"""Whatever a VM's log holds, reading it never fails, and tells each stun once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from connectors.vsphere.stun import parse

NOISE = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"\n",
            b"\r\n",
            b"\xff\xfe\x00",
            b"2015-10-27T22:01:42.149Z| vcpu-0| I120: ",
            b"Checkpoint_Unstun: vm stopped for ",
            b"99999999999999999999999999 us\n",
            b"x" * 5000,
            b"2015-10-27T22:01:42.149Z| vmx| I120: Guest: Checkpoint_Unstun: vm stopped for 5 us\n",
        ]
    ),
)
FORMS = (
    b"2012-03-23T16:22:51.876Z| vcpu-0| Checkpoint_Unstun: vm stopped for %d us\n",
    b"2015-10-27T22:01:42.149Z| vcpu-3| I120: Checkpoint_Unstun: vm stopped for %d us\n",
    b"2023-05-01T10:00:00.536Z In(05) vcpu-0 - Checkpoint_Unstun: vm stopped for %d us\r\n",
)


@given(st.lists(NOISE, max_size=20).map(b"".join))
def test_no_bytes_make_it_fail_and_only_whole_lines_are_used_up(data: bytes) -> None:
    stuns, whole = parse(data)
    assert data[:whole].endswith(b"\n") or whole == 0
    assert b"\n" not in data[whole:]
    assert all(0 <= seconds < 1e6 for seconds in stuns)


@given(
    st.lists(
        st.tuples(
            st.lists(NOISE, max_size=4).map(b"".join).filter(lambda noise: not parse(noise + b"\n")[0]),
            st.integers(0, 10**12 - 1),
            st.sampled_from(FORMS),
        ),
        max_size=6,
    ),
    st.lists(st.integers(0, 2000), max_size=8),
)
def test_each_stun_is_told_once_however_the_log_is_cut_between_reads(
    written: list[tuple[bytes, int, bytes]], cuts: list[int]
) -> None:
    text = b"".join(noise + b"\n" + form % us for noise, us, form in written)
    told: list[float] = []
    read = 0
    for end in [*sorted(min(cut, len(text)) for cut in cuts), len(text)]:
        if end > read:
            stuns, whole = parse(text[read:end])
            told += stuns
            read += whole
    assert told == [us / 1e6 for _, us, _ in written]
