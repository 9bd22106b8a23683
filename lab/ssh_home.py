"""OpenSSH for the lab's user, whose home is HOME: by itself it takes the home of the password file."""

import os
import pwd
from pathlib import Path

from lab.tools import LabError, which

# HOME is mounted over that home for this one process. Only paths in the answer of `ssh -G` must be
# those that others see.
SSH = """#!/bin/sh
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
at_home='mount --bind "$HOME" {home} && exec {ssh} "$@"'
if [ "$1" != -G ]; then
    exec unshare --mount sh -c "$at_home" ssh "$@"
fi
answer=$(unshare --mount sh -c "$at_home" ssh "$@") || exit
printf '%s\\n' "$answer" | sed -e "s#{home}/[.]ssh/#$HOME/.ssh/#g" -e "s# ~/# $HOME/#g"
"""


def write_ssh(folder: Path) -> None:
    """Write the program `ssh` into a folder, which is for the front of PATH."""
    ssh = which("ssh")
    if ssh is None:
        raise LabError("ssh is not installed")
    folder.mkdir()
    program = folder / "ssh"
    home = pwd.getpwuid(os.geteuid()).pw_dir
    program.write_text(SSH.format(home=home, ssh=ssh), "utf-8")
    program.chmod(0o755)
