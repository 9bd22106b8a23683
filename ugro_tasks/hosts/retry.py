"""The pauses before a node is tried again that is out of reach, or that refuses the login."""

RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
# sshd and fail2ban shut out whoever is refused too often.
FIRST_LOGIN_SECONDS = 60.0
LAST_LOGIN_SECONDS = 3600.0


def retry_pause(attempt: int, *, refused: bool = False) -> float:
    """Return the seconds to wait before retry number `attempt`, counted from 0.

    With `refused` the login was, which is tried again far later.
    """
    if refused:
        return min(FIRST_LOGIN_SECONDS * 2.0 ** min(attempt, 10), LAST_LOGIN_SECONDS)
    last = len(RETRY_SECONDS) - 1
    return RETRY_SECONDS[min(attempt, last)]
