"""Starting the agent if none runs.

Separate from `agent/`, so that commands do not import the agent's dependencies.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..errors import RecordError
from .experiments import Experiments


def ensure_agent(experiments: Experiments) -> int | None:
    """Start an agent for this folder unless one runs; return the pid of a new one.

    Raises RecordError if the folder cannot be written or locked, because an agent could not work there.
    """
    if experiments.agent_pid() is not None:
        return None
    try:
        stderr = experiments.agent_stderr.open_to_append()
    except OSError as error:
        raise RecordError(
            f"{error.filename}: {error.strerror}; no agent can be started"
        ) from error
    folder = str(experiments.folder.absolute())
    with stderr:
        agent = subprocess.Popen(
            [sys.executable, "-m", "ugro_tasks.agent", folder],
            # `-m` finds the package there, installed or not.
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
    return agent.pid


def try_agent(experiments: Experiments) -> str | None:
    """Start an agent unless one runs; return the reason if that fails, else None."""
    try:
        ensure_agent(experiments)
    except RecordError as error:
        return error.text
    return None
