"""How long it is waited."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from broker.retry import asked_pause


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("7.66", 7.66),
        ("0", 0.0),
        ("9" * 400, 1e9),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        ("1e9", None),
        ("\u0667", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_a_server_says_how_long_it_wants_to_be_left_alone(given: str | None, seconds: float | None) -> None:
    assert asked_pause(given) == seconds


@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0000"])
def test_it_may_be_a_date_of_any_zone(zone: str) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=100)).replace("+0000", zone)
    assert asked_pause(at) == pytest.approx(100, abs=2)
