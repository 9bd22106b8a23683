"""Text from elsewhere (a node, a script, a file) as a terminal may have it."""

import re

# Control characters but tab and newline, those that turn the direction of the text around or break a line, and halves
# of surrogate pairs, which no terminal can be given.
UNSHOWN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
# A terminal's control sequences, whole or cut short, and all of that.
ESCAPES = re.compile(
    rf"\x1b(\[[0-?]*[ -/]*[@-~]?|\][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~]?)|[{UNSHOWN}]"
)


def printable(line: str) -> str:
    """The line without terminal escapes and control characters; of one redrawn with CR, the last drawing."""
    return ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2])


def printable_lines(text: str) -> str:
    """`printable`, line by line."""
    return "\n".join(printable(line) for line in text.split("\n"))
