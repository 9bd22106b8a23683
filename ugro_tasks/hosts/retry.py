"""The pauses before a node out of reach is tried again."""

RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)


def retry_pause(attempt: int) -> float:
    """Return the seconds to wait before retry number `attempt`, counted from 0."""
    last = len(RETRY_SECONDS) - 1
    return RETRY_SECONDS[min(attempt, last)]
