"""What the benchmarks share: a lab with a user on it, pairs of runs, medians."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab import Lab
from tests.launch.ugro import SCRIPTS, Ugro

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".ugro/env/bin/python"


@contextmanager
def lab_with_user(scripts: Path | None = None) -> Iterator[tuple[Lab, Ugro]]:
    """Three hosts, and UGRO with a folder of its own on the controller."""
    with Lab.up(owned=True) as lab, tempfile.TemporaryDirectory() as folder:
        lab.trust()
        ugro = Ugro(lab, Path(folder), scripts or SCRIPTS)
        try:
            yield lab, ugro
        finally:
            ugro.close()


def seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def in_turn(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contender's figures: A B C A B C ..., after one round that does not count."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, measure in contenders.items():
            figure = measure()
            if number:
                figures[name].append(figure)
    return figures


def table(title: str, figures: Mapping[str, Sequence[float]], ours: str, unit: str = "s") -> None:
    """Medians, and the median ratio of ours to each, pair by pair."""
    print(f"\n{title}\n{'':28} {'min':>8} {'median':>8} {'max':>8}   ratio of {ours!r} to it")
    for name, values in figures.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(figures[ours], values, strict=True))
        print(
            f"{name:28} {min(values):8.2f} {statistics.median(values):8.2f} {max(values):8.2f} {unit}"
            + ("" if name == ours else f"   {ratio:.2f}")
        )
