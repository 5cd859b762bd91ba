"""The forecast: habits are believed where they would have predicted the last days better than the last hour did."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.forecast import DAY, WEEK, forecast, hour_of

NOW = 480_000


def office(days: int, jobs: float = 50.0, now: int = NOW) -> dict[int, float]:
    """``jobs`` in each hour from 9 to 12, nothing else."""
    hours = range(now - days * DAY, now)
    return {hour: jobs if hour % DAY in range(9, 12) else 0.0 for hour in hours}


def test_the_hour_in_which_a_model_is_used_every_day_is_expected_to_be_so_again() -> None:
    nine = NOW - NOW % DAY + DAY + 9
    found = forecast(office(14), nine, NOW)
    assert found.trusted
    assert found.jobs == 50.0
    assert found.pattern_error < found.recent_error


def test_an_hour_in_which_it_is_never_used_expects_nothing() -> None:
    assert forecast(office(14), NOW - NOW % DAY + DAY + 3, NOW).jobs == 0.0


def test_a_model_without_habits_is_not_trusted() -> None:
    random = Random(7)
    level, usage = 20.0, {}
    for hour in range(NOW - 14 * DAY, NOW):
        level = max(0.0, level + random.gauss(0, 2))
        usage[hour] = level
    assert not forecast(usage, NOW, NOW).trusted


def test_two_days_are_no_habit() -> None:
    assert not forecast(office(2), NOW, NOW).trusted


def test_nothing_is_expected_of_a_model_that_has_no_history() -> None:
    found = forecast({}, NOW, NOW)
    assert (found.jobs, found.trusted) == (0.0, False)


def test_the_same_hour_of_the_week_counts_for_half() -> None:
    usage = dict.fromkeys(range(NOW - WEEK, NOW), 0.0)
    usage[NOW - WEEK] = 70.0
    assert forecast(usage, NOW, NOW).jobs == (70.0 + 70.0 / 7) / 2


def test_a_window_shorter_than_a_week_looks_only_at_the_hour_of_the_day() -> None:
    usage = dict.fromkeys(range(NOW - 2 * WEEK, NOW), 0.0)
    usage[NOW - WEEK] = 70.0
    usage[NOW - DAY] = 9.0
    assert forecast(usage, NOW, NOW, days=3).jobs == 3.0


def test_its_reason_names_both_errors() -> None:
    assert "better than the hour before" in forecast(office(14), NOW, NOW).reason


@settings(derandomize=True)
@given(
    st.dictionaries(st.integers(NOW - 3 * WEEK, NOW - 1), st.integers(0, 10_000).map(float), max_size=60),
    st.integers(0, 47),
    st.integers(1, 14),
)
def test_what_is_expected_is_never_more_than_was_ever_seen(usage: dict[int, float], ahead: int, days: int) -> None:
    found = forecast(usage, NOW + ahead, NOW, days)
    assert 0.0 <= found.jobs <= max(usage.values(), default=0.0) * (1 + 1e-9)
    assert not found.trusted or found.pattern_error < found.recent_error


def test_hours_are_counted_from_1970() -> None:
    assert (hour_of(3599.9), hour_of(3600.0)) == (0, 1)
