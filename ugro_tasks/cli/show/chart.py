"""Curves in the terminal, by the dots of Braille characters: two across and four down in each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from ...jobs.metrics import Point

# Bits of U+2800 for the dots of one character: [column][row from the top].
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
BLANK, MARK = 0x2800, "◆"
LOGARITHMIC_FROM = 50.0  # times the lowest value: a steep beginning would leave a flat line for the rest


def chart(line: Sequence[Point], marks: Sequence[Point], *, width: int, height: int = 12) -> list[str]:
    """Rows of markup: `line` drawn through, `marks` as diamonds over it; [] where there is nothing to draw."""
    both = [*line, *marks]
    if not both:
        return []
    low, high = min(point.value for point in both), max(point.value for point in both)
    logarithmic = low > 0 and high / low > LOGARITHMIC_FROM
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    margin = max(map(len, labels.values()))
    columns = max(10, width - margin - 2)
    across = _scale((point.step for point in both), 2 * columns)
    down = _scale((_height(point.value, logarithmic) for point in both), 4 * height)

    def place(point: Point) -> tuple[int, int]:
        return across(point.step), 4 * height - 1 - down(_height(point.value, logarithmic))

    cells = [[BLANK] * columns for _ in range(height)]
    for x, y in _drawn([place(point) for point in line]):
        cells[y // 4][x // 2] |= DOTS[x % 2][y % 4]
    rows = [[" " if cell == BLANK else chr(cell) for cell in row] for row in cells]
    for x, y in map(place, marks):
        rows[y // 4][x // 2] = f"[magenta]{MARK}[/]"
    drawn = [
        f"{labels.get(number, ''):>{margin}} {'┤' if number in labels else '│'}[cyan]{''.join(row).rstrip()}[/]"
        for number, row in enumerate(rows)
    ]
    first, last = (f"{pick(point.step for point in both):.12g}" for pick in (min, max))
    middle = "step, loss on a logarithmic scale" if logarithmic else "step"
    room = max(1, columns - len(first) - len(last))
    under = f"{first}{middle:^{room}}{last}" if room > len(middle) + 2 else f"{first} {last}"
    return [*drawn, " " * margin + " └" + "─" * columns, " " * (margin + 2) + under]


def _height(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def _scale(values: Iterable[float], size: int) -> Callable[[float], int]:
    """From the range of the values to 0 .. size - 1; to the middle where the range is empty."""
    known = list(values)
    # Halved, so that no difference is too large for a float.
    low, span = min(known) / 2, max(known) / 2 - min(known) / 2
    return lambda value: round((value / 2 - low) / span * (size - 1)) if span > 0 else size // 2


def _drawn(places: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Every dot of the line through these places, which go from left to right."""
    yield from places[:1]
    for (x0, y0), (x1, y1) in pairwise(places):
        length = max(x1 - x0, abs(y1 - y0))
        for step in range(1, length + 1):
            yield x0 + round((x1 - x0) * step / length), y0 + round((y1 - y0) * step / length)
