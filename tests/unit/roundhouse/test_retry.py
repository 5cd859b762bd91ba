import pytest

from roundhouse import RoundhouseApiError, Unreachable
from roundhouse.retry import FIRST_PAUSE, LONGEST_PAUSE, Trouble

AWAY = Unreachable("It is away.")


def test_pauses_grow_up_to_the_longest_and_end_with_the_patience() -> None:
    trouble, now, pauses = Trouble(60.0), 1000.0, list[float]()
    while (pause := trouble.pause(AWAY, now)) is not None:
        pauses.append(pause)
        now += pause
    assert now == pytest.approx(1060.0)
    for number, pause in enumerate(pauses[:-1]):
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**number)
        assert longest / 2 <= pause <= longest


def test_what_went_well_in_between_begins_the_patience_anew() -> None:
    trouble = Trouble(10.0)
    assert trouble.pause(AWAY, 0.0) is not None
    assert trouble.pause(AWAY, 10.0) is None
    trouble.over()
    pause = trouble.pause(AWAY, 11.0)
    assert pause is not None
    assert pause <= FIRST_PAUSE


def test_all_gateways_are_tried_before_the_first_pause() -> None:
    trouble = Trouble(10.0, gateways=3)
    pauses = [trouble.pause(AWAY, 0.0) for _ in range(6)]
    assert pauses[:2] == pauses[3:5] == [0.0, 0.0]
    assert pauses[2]
    assert pauses[5]


def test_without_patience_each_gateway_is_tried_once() -> None:
    trouble = Trouble(0.0, gateways=2)
    assert [trouble.pause(AWAY, 5.0) for _ in range(2)] == [0.0, None]


def test_a_full_queue_is_as_full_at_the_other_gateway() -> None:
    full = RoundhouseApiError("It is full.", code="queue_full", status=503, retry_after=3.0)
    assert Trouble(10.0, gateways=2).pause(full, 0.0) == 3.0
