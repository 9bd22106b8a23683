"""A benchmark as a program: its flags, its end, and what it says when it cannot go on."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable
from types import FrameType

from lab.tools import LabError

ENDING_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class BenchmarkError(Exception):
    """The benchmark cannot go on; the message says why in one line."""


class _Help(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Keeps the lines of the description, and shows each flag's default."""


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Make the parser of `python -m benchmarks.NAME`, without flags as yet."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=_Help,
        allow_abbrev=False,
    )


def add_rounds(parser: argparse.ArgumentParser, default: int = 5) -> None:
    """Add --rounds."""
    parser.add_argument(
        "--rounds",
        type=whole(1),
        default=default,
        help="how often each side is measured, after a first time",
    )


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Make what reads a whole number in these bounds from the command line."""

    def read(word: str) -> int:
        return int(_bounded(int(word), least, most))

    read.__name__ = "whole number"  # argparse names it where the word is none
    return read


def decimal(least: float, most: float) -> Callable[[str], float]:
    """Make what reads a number in these bounds from the command line."""

    def read(word: str) -> float:
        return _bounded(float(word), least, most)

    read.__name__ = "number"
    return read


def run(parser: argparse.ArgumentParser, main: Callable[..., None]) -> None:
    """Run a benchmark with the flags as its arguments, so that it cleans up however it is ended.

    A TERM, a Ctrl-C or a lost terminal ends it by an exception, which closes the lab and removes its folders. What it
    cannot do is said in one line.
    """
    options = parser.parse_args()
    for number_of_signal in ENDING_SIGNALS:
        signal.signal(number_of_signal, _end)
    try:
        main(**vars(options))
    except (BenchmarkError, LabError) as error:
        sys.exit(f"{parser.prog}: {error}")


def _end(number_of_signal: int, _frame: FrameType | None) -> None:
    """End by an exception; a second signal must not disturb the cleaning up."""
    for each in ENDING_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    print(
        f"ended by {signal.Signals(number_of_signal).name}; cleaning up",
        file=sys.stderr,
    )
    raise SystemExit(128 + number_of_signal)


def _bounded(value: float, least: float, most: float | None) -> float:
    """Give the value back; argparse.ArgumentTypeError where it is out of bounds or not finite."""
    if least <= value and math.isfinite(value) and (most is None or value <= most):
        return value
    bounds = f"{least:g} or more" if most is None else f"from {least:g} to {most:g}"
    raise argparse.ArgumentTypeError(f"{value:g} is not {bounds}")
