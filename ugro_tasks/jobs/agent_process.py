"""Starting the agent if none runs.

Separate from `agent/`, so that commands do not import the agent's dependencies.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

from ..errors import RecordError
from ..files import state_home
from .experiments import Experiments

SSH_AGENT = "SSH_AUTH_SOCK"


def ensure_agent(experiments: Experiments) -> int | None:
    """Start an agent for this folder unless one runs; return the pid of a new one.

    Raises RecordError if the folder cannot be written or locked, because an agent could not work there.
    """
    _offer_ssh_agent()
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
            env=_agent_environment(),
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


def _agent_environment() -> dict[str, str]:
    link = _ssh_agent_link()
    if not link.is_symlink():
        return dict(os.environ)
    return os.environ | {SSH_AGENT: str(link)}


def _offer_ssh_agent() -> None:
    """Let the running agents log in by the ssh-agent of this command's environment.

    They outlive the login that started them, and with it the ssh-agent that it had.
    """
    offered = os.environ.get(SSH_AGENT, "")
    link = _ssh_agent_link()
    if not offered or Path(offered) == link:
        return
    made = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    # Where nothing can be stored, the agents go on with the ssh-agent that they have.
    with contextlib.suppress(OSError):
        if link.is_symlink() and link.readlink() == Path(offered):
            return
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made.symlink_to(offered)
        made.replace(link)


def _ssh_agent_link() -> Path:
    """Return the link to the ssh-agent of the newest command that had one."""
    # A home may be of several machines.
    return state_home() / "ugro" / f"ssh-agent.{socket.gethostname()}"
