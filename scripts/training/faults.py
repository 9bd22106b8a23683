"""The errors a user can correct."""

STOPPED_BY_FAULT = 2
MOST_CHARACTERS = 300


class Fault(Exception):
    """An unusable input: one line with the fault, its place and the remedy. Exit code 2."""


def in_one_line(error: BaseException) -> str:
    """Return a library's error message on one line, of at most MOST_CHARACTERS."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
