"""Curves in the terminal, drawn with Braille characters of two by four dots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise

from ...jobs.metrics import Point
from .console import Piece, Style, style

# Bits of U+2800 for the dots of one character: [column][row from the top].
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
BLANK = 0x2800
LINE_COLOUR: Style = "cyan"
MARK = "◆"
MARK_COLOUR: Style = "magenta"
# From this ratio of highest to lowest value on; a linear scale would show a flat line.
LOGARITHMIC_FROM = 50.0
LEAST_COLUMNS = 10


def chart(
    line: Sequence[Point], marks: Sequence[Point], *, width: int, height: int = 12
) -> list[list[Piece]]:
    """Draw `line` through its points, and `marks` as diamonds over it.

    Returns the pieces of each row, including the axes and their labels; [] without any points.
    """
    both = [*line, *marks]
    if not both:
        return []
    values = [point.value for point in both]
    low = min(values)
    high = max(values)
    logarithmic = low > 0 and high / low > LOGARITHMIC_FROM
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    margin = max(map(len, labels.values()))
    columns = max(LEAST_COLUMNS, width - margin - 2)
    steps = [point.step for point in both]
    across = _scale(steps, 2 * columns)
    heights = [_height(point.value, logarithmic) for point in both]
    upwards = _scale(heights, 4 * height)

    def place(point: Point) -> tuple[int, int]:
        """Return the dot of a point, counted from the left and from the top."""
        above_bottom = upwards(_height(point.value, logarithmic))
        return across(point.step), 4 * height - 1 - above_bottom

    dots = _dots_of_line([place(point) for point in line])
    rows = _characters(dots, columns, height)
    for x, y in map(place, marks):
        rows[y // 4][x // 2] = MARK
    drawn: list[list[Piece]] = []
    for number, row in enumerate(rows):
        axis = "┤" if number in labels else "│"
        label = labels.get(number, "")
        drawn.append([f"{label:>{margin}} {axis}", *_coloured(row)])
    below = _words_below(
        f"{min(steps):.12g}", f"{max(steps):.12g}", columns, logarithmic
    )
    drawn.append([f"{'':{margin}} └{'─' * columns}"])
    drawn.append([f"{'':{margin}}  {below}"])
    return drawn


def _characters(
    dots: Iterable[tuple[int, int]], columns: int, height: int
) -> list[list[str]]:
    """Return the rows of Braille characters with these dots, and spaces where there is none."""
    cells = [[BLANK] * columns for _ in range(height)]
    for x, y in dots:
        cells[y // 4][x // 2] |= DOTS[x % 2][y % 4]
    return [[" " if cell == BLANK else chr(cell) for cell in row] for row in cells]


def _coloured(row: Sequence[str]) -> Iterable[Piece]:
    """Yield the row in its two colours, without the empty cells at its end."""
    cells = "".join(row).rstrip()
    for is_mark, run in groupby(cells, key=MARK.__eq__):
        yield style("".join(run), MARK_COLOUR if is_mark else LINE_COLOUR)


def _words_below(first: str, last: str, columns: int, logarithmic: bool) -> str:
    middle = "step, loss on a logarithmic scale" if logarithmic else "step"
    room = max(1, columns - len(first) - len(last))
    if room > len(middle) + 2:
        return f"{first}{middle:^{room}}{last}"
    return f"{first} {last}"


def _height(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def _scale(values: Sequence[float], size: int) -> Callable[[float], int]:
    """Return the map of the values' range to 0 .. size - 1; an empty range maps to the middle."""
    # Halved, so that no difference is too large for a float.
    low = min(values) / 2
    span = max(values) / 2 - low
    if span <= 0:
        return lambda _value: size // 2

    def position(value: float) -> int:
        share = (value / 2 - low) / span
        return round(share * (size - 1))

    return position


def _dots_of_line(places: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Yield every dot of a line through places ordered from left to right."""
    yield from places[:1]
    for (x0, y0), (x1, y1) in pairwise(places):
        width = x1 - x0
        height = y1 - y0
        length = max(width, abs(height))
        for step in range(1, length + 1):
            x = x0 + round(width * step / length)
            y = y0 + round(height * step / length)
            yield x, y
