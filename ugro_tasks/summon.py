"""The agent is there when a command needs it. Apart from `agent.py`: no command must load what an agent does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .experiments import Experiments


def ensure_agent(experiments: Experiments) -> int | None:
    """Start an agent for this folder unless one lives; gives the new one's pid."""
    if experiments.agent_pid() is not None:
        return None
    with open(
        os.open(experiments.agent_stderr, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab"
    ) as stderr:
        agent = subprocess.Popen(
            [sys.executable, "-m", "ugro_tasks.agent", str(experiments.folder.absolute())],
            cwd=Path(__file__).parent.parent,  # where `-m` finds the package, installed or not
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
    return agent.pid
