"""What `make bench-gpu` leaves out when its time is short."""

from __future__ import annotations

from bench.gpu.deadline import Deadline


def test_what_still_fits_is_done_and_the_rest_is_left_out_aloud(capsys) -> None:
    now_s = 100.0
    deadline = Deadline(60, lambda: now_s)
    assert deadline.allows("the small model", 60)
    now_s = 130.5
    assert not deadline.allows("the large model", 40)
    now_s = 200.0
    assert not deadline.allows("the rest", 1)

    assert capsys.readouterr().err.splitlines() == [
        "the small model … (60 s left)",
        "LEFT OUT: the large model takes up to 40 s; 30 s are left",
        "LEFT OUT: the rest takes up to 1 s; 0 s are left",
    ]
