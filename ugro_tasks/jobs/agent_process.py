"""The agent is there when a command needs it. Apart from `agent/`: no command must load what an agent does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..errors import RecordError
from .experiments import Experiments


def ensure_agent(experiments: Experiments) -> int | None:
    """Start an agent for this folder unless one lives; gives the new one's pid.

    Raises RecordError where the folder cannot be written: an agent could do nothing there.
    """
    if experiments.agent_pid() is not None:
        return None
    try:
        descriptor = os.open(
            experiments.agent_stderr, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )
    except OSError as error:
        raise RecordError(
            f"{error.filename}: {error.strerror}; no agent can be started"
        ) from error
    with open(descriptor, "ab") as stderr:
        agent = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ugro_tasks.agent",
                str(experiments.folder.absolute()),
            ],
            # Where `-m` finds the package, installed or not.
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
    return agent.pid


def try_agent(experiments: Experiments) -> str | None:
    """`ensure_agent` for who can go on without one for a while: gives why none could be started, else None."""
    try:
        ensure_agent(experiments)
    except RecordError as error:
        return error.text
    return None
