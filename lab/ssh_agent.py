"""An ssh-agent of the lab's user."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.tools import wait_until


@contextmanager
def ssh_agent(socket: Path, *keys: Path) -> Iterator[None]:
    """Run an ssh-agent with these keys within the context."""
    quiet = subprocess.DEVNULL
    argv = ["ssh-agent", "-D", "-a", str(socket)]
    environ = os.environ | {"SSH_AUTH_SOCK": str(socket)}
    with subprocess.Popen(argv, stdout=quiet, stderr=quiet) as process:
        try:
            wait_until(socket.exists, "the ssh-agent")
            for key in keys:
                add = ["ssh-add", "-q", str(key)]
                subprocess.run(add, env=environ, stderr=quiet, check=True)
            yield
        finally:
            process.terminate()
