"""Values in words."""

from __future__ import annotations

from datetime import datetime, tzinfo

import pytest

from ugro_tasks.cli.show.values import (
    byte_size,
    clock,
    duration,
    gib,
    mean_and_max,
    number,
    short,
)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "-"),
        (0.0, "0.0 s"),
        (3.04, "3.0 s"),
        (59.4, "59.4 s"),
        (60.0, "1:00"),
        (125.4, "2:05"),
        (3599.0, "59:59"),
        (3600.0, "1:00:00"),
        (3725.0, "1:02:05"),
        (360_000.0, "100:00:00"),
    ],
)
def test_a_duration_in_words(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_a_duration_never_shows_sixty_seconds() -> None:
    assert duration(59.96) in {"59.9 s", "1:00"}


@pytest.mark.parametrize("seconds", [1e11, -1e11, float("inf")])
def test_a_time_beyond_every_calendar_is_a_question_mark(seconds: float) -> None:
    assert (duration(seconds), clock(seconds)) == ("?", "?")


class Noon(datetime):
    """A clock on which it is noon of one day."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Noon:
        return cls(2026, 1, 20, 12, tzinfo=tz)


def test_a_time_of_today_has_no_date_and_an_older_one_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ugro_tasks.cli.show.values.datetime", Noon)
    assert clock(datetime(2026, 1, 20, 9, 5, 7).timestamp()) == "09:05:07"
    assert clock(datetime(2026, 1, 19, 9, 5, 7).timestamp()) == "2026-01-19 09:05"
    assert clock(None) == "-"


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (20 << 20, "20.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (4000 << 30, "4000.0 GiB"),
    ],
)
def test_a_number_of_bytes_in_words(size: int, words: str) -> None:
    assert byte_size(size) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"),
        (0, "0"),
        (5230.4, "5,230"),
        (3.14, "3.1"),
        (4.0, "4"),
        (-12.6, "-13"),
        (0.126, "0.13"),
    ],
)
def test_a_number_in_words(value: float | None, words: str) -> None:
    assert number(value) == words


def test_a_mean_has_its_maximum_behind_it() -> None:
    assert mean_and_max(70.6, 99.0, "%") == "71 %, max 99 %"
    assert mean_and_max(None, None, "%") == "-"


def test_a_metric_has_six_digits_and_a_memory_one_behind_the_point() -> None:
    assert (short(1.23456789), short("words"), short(1234567)) == (
        "1.23457",
        "words",
        "1234567",
    )
    assert gib(1536) == "1.5"
