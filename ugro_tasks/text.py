"""Text from nodes, scripts and files, made safe to print on a terminal."""

import re
from collections.abc import Sequence

# Control characters except tab and newline, characters that reverse the text direction or break
# a line, and halves of surrogate pairs, which cannot be encoded for a terminal.
UNSHOWN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
# Terminal control sequences, complete or cut short, and the characters above.
ESCAPES = re.compile(
    rf"\x1b(\[[0-?]*[ -/]*[@-~]?|\][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~]?)|[{UNSHOWN}]"
)
# Of the faults of one transfer.
FAULTS_NAMED = 20


def first_of(faults: Sequence[str], at_most: int = FAULTS_NAMED) -> str:
    """Join faults to one line; of very many, the first ones and the number of the others."""
    words = "; ".join(faults[:at_most])
    if len(faults) > at_most:
        words += f"; and {len(faults) - at_most} more"
    return words


def printable(line: str) -> str:
    """Strip terminal escapes and control characters from a line.

    Of a line redrawn with CR, as by a progress bar, keep the last drawing.
    """
    last_drawing = line.rstrip("\r").rpartition("\r")[2]
    return ESCAPES.sub("", last_drawing)


def printable_lines(text: str) -> str:
    """Strip each line of a text as `printable` does."""
    return "\n".join(printable(line) for line in text.split("\n"))
