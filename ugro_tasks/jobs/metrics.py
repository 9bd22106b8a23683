"""Loss curves, best and last values and throughput, computed from metrics.jsonl.

The file is written by a script, so any line may be anything: values that are no numbers give no
points, and a bad line does not affect the others. If a step comes twice, after a restart or a
resume, the last line counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..codec import UNREADABLE, decode

LOSS, EVAL_LOSS = "loss", "eval_loss"
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
    astray: Point | None  # the first loss that was not finite
    # Summed over all nodes; the median of the logged steps.
    tokens_per_second: float | None


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


def measure(path: Path) -> Metrics:
    """Compute the figures of a metrics.jsonl; without a file they are empty."""
    series: dict[str, dict[float, float]] = {
        LOSS: {},
        EVAL_LOSS: {},
        TOKENS_PER_SECOND: {},
    }
    last: dict[str, Any] = {}
    for line in _lines(path):
        metrics = read_metrics(line)
        if metrics is None:
            continue
        last.update(
            (_plain(key), _plain(value))
            for key, value in metrics.items()
            if key != "time"
        )
        step = number(metrics.get("step"))
        for key, points in series.items():
            value = number(metrics.get(key))
            if value is not None:
                points[
                    len(points) + 1 if step is None or not math.isfinite(step) else step
                ] = value
    curves = {
        key: [Point(*point) for point in sorted(points.items())]
        for key, points in series.items()
    }
    finite = {
        key: [p for p in points if math.isfinite(p.value)]
        for key, points in curves.items()
    }
    rates = sorted(point.value for point in finite[TOKENS_PER_SECOND])
    return Metrics(
        train=finite[LOSS],
        evaluation=finite[EVAL_LOSS],
        last=last,
        best={
            k: min(finite[k], key=lambda p: p.value)
            for k in (LOSS, EVAL_LOSS)
            if finite[k]
        },
        astray=next(
            (point for point in curves[LOSS] if not math.isfinite(point.value)), None
        ),
        tokens_per_second=_median(rates) if rates else None,
    )


def number(value: object) -> float | None:
    """Return the value as a float, NaN and infinities included; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an int of hundreds of digits
        return None


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(LINE_BYTES):
                yield line
    except FileNotFoundError:
        return


def _median(ordered: list[float]) -> float:
    middle = len(ordered) // 2
    return (
        ordered[middle]
        if len(ordered) % 2
        else (ordered[middle - 1] + ordered[middle]) / 2
    )


def _plain(value: Any) -> Any:
    """Return a value fit for JSON and terminals; others, such as lone surrogates, become text."""
    try:
        msgspec.json.encode(value)
    except (*UNREADABLE, TypeError, OverflowError):
        return str(value).encode("utf-8", "replace").decode()
    return value
