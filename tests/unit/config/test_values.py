import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from config.values import Bytes, Seconds, parse_duration, parse_size

SECONDS = TypeAdapter(Seconds)
BYTES = TypeAdapter(Bytes)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (30, 30),
        (0.5, 0.5),
        ("30", 30),
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("15d", 1_296_000),
        ("500ms", 0.5),
        ("1.5h", 5400),
        (" 30 s ", 30),
    ],
)
def test_a_duration_is_read_in_seconds(written: object, seconds: float) -> None:
    assert SECONDS.validate_python(written) == pytest.approx(seconds)


@given(st.integers(1, 3000), st.sampled_from(sorted(UNITS)))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert SECONDS.validate_python(f"{number}{unit}") == number * UNITS[unit]


@pytest.mark.parametrize(
    "written",
    [
        "",
        "s",
        "5x",
        "5 years",
        "-5s",
        "1h30m",
        "1e3s",
        "٣s",
        0,
        -1,
        "0s",
        "4000d",
        math.nan,
        math.inf,
        None,
        [],
    ],
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        SECONDS.validate_python(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (10485760, 10485760),
        ("10MB", 10485760),
        ("10 mb", 10485760),
        ("10MiB", 10485760),
        ("512KB", 524288),
        ("1GB", 2**30),
        ("1.5MB", 1572864),
        ("7B", 7),
        ("7", 7),
    ],
)
def test_a_size_is_read_in_bytes(written: object, size: int) -> None:
    assert BYTES.validate_python(written) == size


@given(st.integers(1, 1000), st.sampled_from([("B", 1), ("KB", 2**10), ("MB", 2**20), ("GB", 2**30)]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: tuple[str, int]) -> None:
    assert BYTES.validate_python(f"{number}{unit[0]}") == number * unit[1]


@pytest.mark.parametrize("written", ["", "MB", "1.3B", "10TB", "-1MB", "10 Mbit", 0, -1, "0", 2**41, None])
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        BYTES.validate_python(written)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused_in_the_same_words(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            value = parse(text)
        except PydanticCustomError as error:
            said = error.message()
        else:
            said = f"expected a {'duration' if isinstance(value, float) else 'size'}"
        assert said.startswith(("expected a duration", "expected a size"))


@pytest.mark.parametrize("value", [None, True, [], {}])
def test_other_types_are_left_to_the_type_check_of_the_key(value: object) -> None:
    assert parse_duration(value) is value
    assert parse_size(value) is value
