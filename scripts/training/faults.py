"""What a user can put right."""

STOPPED_BY_FAULT = 2
MOST_CHARACTERS = 300


class Fault(Exception):
    """Something that cannot be used: one line that says what, where, and what to do. Exit code 2."""


def in_one_line(error: BaseException) -> str:
    """What a library's error says, on one line and not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
