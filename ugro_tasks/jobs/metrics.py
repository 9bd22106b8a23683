"""metrics.jsonl in figures: the loss curves, the best and the last of each metric, the throughput.

A script writes the file, so any line may be anything: what is no number is no point of a curve, and no line stands in
the way of the others. For a step that comes twice, after a restart or a resume, the last line counts.
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
# A line that is longer is read in pieces, none of which is an object.
LINE_BYTES = 1 << 20


class Point(msgspec.Struct, frozen=True, array_like=True):
    """A value of a curve. `step` counts the logged lines where the script names no steps."""

    step: float
    value: float


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """What a run measured, in the order of the steps."""

    train: list[Point]
    evaluation: list[Point]
    last: dict[str, Any]  # the last word on each key, "time" excepted
    # {LOSS and EVAL_LOSS, as far as there is one: where it was lowest}
    best: dict[str, Point]
    astray: Point | None  # where the loss was first no finite number
    # Of all nodes together, the median of the logged steps.
    tokens_per_second: float | None


def read_metrics(line: str | bytes) -> dict[str, object] | None:
    """A line of metrics.jsonl, NaN and Infinity included; None where it is no object, which is the script's affair."""
    try:
        return decode(dict[str, object], line)
    except UNREADABLE:
        pass
    try:
        # What most scripts write with is Python's own json, and that writes NaN.
        metrics = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return metrics if isinstance(metrics, dict) else None


def measure(path: Path) -> Metrics:
    """The figures of a metrics.jsonl; empty ones where there is no such file."""
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
    """The value as a number, NaN and infinities included; None for anything else."""
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
    """The value if JSON and a terminal can have it, else it as text: half of a surrogate pair, say."""
    try:
        msgspec.json.encode(value)
    except (*UNREADABLE, TypeError, OverflowError):
        return str(value).encode("utf-8", "replace").decode()
    return value
