"""Loss curves, best and last values and throughput, computed from metrics.jsonl.

The file is written by a script, so any line may be anything: values that are no numbers give no
points, and a bad line does not affect the others. If a step comes twice, after a restart or a
resume, the last line counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import msgspec

from ..codec import UNREADABLE, decode
from ..files import File

LOSS = "loss"
EVAL_LOSS = "eval_loss"
TOKENS_PER_SECOND = "tokens_per_second"
# A longer line is read in pieces, none of them a valid object.
LINE_BYTES = 1 << 20


class Point(msgspec.Struct, frozen=True, array_like=True):
    """A point of a curve. `step` is the number of the logged line if the script logs no steps."""

    step: float
    value: float


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of a run, in the order of the steps."""

    train: list[Point]
    evaluation: list[Point]
    last: dict[str, Any]  # the last value of each key except "time"
    # {LOSS or EVAL_LOSS: its lowest point}, if it was logged
    best: dict[str, Point]
    first_nonfinite: Point | None  # of the loss
    # Summed over all nodes; the median of the logged steps.
    tokens_per_second: float | None
    unreadable_lines: int  # which are no JSON object, as half a line is none


def read_metrics(line: str | bytes) -> dict[str, object] | None:
    """Parse a line of metrics.jsonl, NaN and Infinity included; None if it is no object."""
    try:
        return decode(dict[str, object], line)
    except UNREADABLE:
        pass
    try:
        # Python's own json, used by most scripts, writes NaN.
        metrics = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return metrics if isinstance(metrics, dict) else None


def measure(file: File) -> Metrics:
    """Compute the figures of a metrics.jsonl; without a file they are empty."""
    series: dict[str, dict[float, float]] = {
        LOSS: {},
        EVAL_LOSS: {},
        TOKENS_PER_SECOND: {},
    }
    last: dict[str, Any] = {}
    unreadable = 0
    for line in _lines(file):
        metrics = read_metrics(line)
        if metrics is None:
            unreadable += 1
            continue
        for key, logged in metrics.items():
            if key != "time":
                last[_plain(key)] = _plain(logged)
        _add(metrics, series)
    curves = {key: _curve(points) for key, points in series.items()}
    finite = {key: _finite(curve) for key, curve in curves.items()}
    best = {}
    for key in (LOSS, EVAL_LOSS):
        if finite[key]:
            best[key] = min(finite[key], key=lambda point: point.value)
    nonfinite = [p for p in curves[LOSS] if not math.isfinite(p.value)]
    rates = sorted(point.value for point in finite[TOKENS_PER_SECOND])
    return Metrics(
        train=finite[LOSS],
        evaluation=finite[EVAL_LOSS],
        last=last,
        best=best,
        first_nonfinite=nonfinite[0] if nonfinite else None,
        tokens_per_second=_median(rates) if rates else None,
        unreadable_lines=unreadable,
    )


def _add(metrics: dict[str, object], series: dict[str, dict[float, float]]) -> None:
    """Add the values of a line; without a finite step, the points of a series are counted."""
    step = number(metrics.get("step"))
    if step is not None and not math.isfinite(step):
        step = None
    for key, points in series.items():
        value = number(metrics.get(key))
        if value is not None:
            points[len(points) + 1 if step is None else step] = value


def _curve(points: dict[float, float]) -> list[Point]:
    return [Point(step, value) for step, value in sorted(points.items())]


def _finite(curve: list[Point]) -> list[Point]:
    return [point for point in curve if math.isfinite(point.value)]


def number(value: object) -> float | None:
    """Return the value as a float, NaN and infinities included; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an int of hundreds of digits
        return None


def _lines(file: File) -> Iterator[bytes]:
    try:
        with file.open() as opened:
            while line := opened.readline(LINE_BYTES):
                yield line
    except FileNotFoundError:
        return


def _median(ordered: list[float]) -> float:
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def _plain(value: Any) -> Any:
    """Return a value fit for JSON and terminals; others, such as lone surrogates, become text."""
    try:
        msgspec.json.encode(value)
    except (*UNREADABLE, TypeError, OverflowError):
        return str(value).encode("utf-8", "replace").decode()
    return value
