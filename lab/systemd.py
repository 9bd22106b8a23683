"""A machine with a real systemd in the place of a lab host: logins with PAM, logind, a systemd of each user.

It has the host's network, and so its address; the host's own sshd is down meanwhile. Its user is no root: logind treats
root in its own way.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.host import PRIVATE, LabHost
from lab.lab import LOGIN_PATH, ROOT, Lab
from lab.proof import outside, shared_paths
from lab.tools import LabError, LabUnavailable, lab_token, wait_until

USER = "worker"
BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from lab.boot import main; main()"
)
# The shell enters the machine's cgroup before it starts anything.
IN_CGROUP = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
NAMESPACES = ("--mount", "--uts", "--ipc", "--pid", "--cgroup")


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemdHost(LabHost):
    """The machine; its process 1 is systemd."""

    user: str

    def log_in(self, command: str) -> str:
        """Run a shell's command in a login of its user's, and return its output."""
        return self.ssh(["sh", "-c", command], user=self.user).stdout

    def logins(self) -> list[str]:
        """Return the ids of its user's logins."""
        said = self.run(["loginctl", "list-sessions", "--no-legend"]).stdout
        rows = [line.split() for line in said.splitlines()]
        return [row[0] for row in rows if row[2] == self.user]

    def break_logins(self) -> None:
        """Kill the sshd of each login of its user's, as it ends when its connection breaks."""
        for login in self.logins():
            show = ["loginctl", "show-session", login, "--property=Leader", "--value"]
            leader = self.run(show, check=False).stdout.strip()
            if leader:
                self.run(["kill", "-KILL", leader], check=False)


@contextlib.contextmanager
def systemd_on(lab: Lab, host: LabHost, logind: str) -> Iterator[SystemdHost]:
    """Boot systemd in the place of a host, with these lines of logind.conf; the host is itself again afterwards.

    Raises LabUnavailable where this machine lets nobody make a cgroup.
    """
    config = {
        "name": host.name,
        "user": USER,
        "logind": logind,
        "keep": [str(path) for path in shared_paths(host.pid)],
        "authorized_key": (lab.home / ".ssh/id_ed25519.pub").read_text("utf-8"),
        "host_key": host.run(["cat", f"/{PRIVATE}/ssh_host_ed25519_key"]).stdout,
        "outside": outside(),
    }
    enter = ["nsenter", f"--target={host.pid}", "--net", "--"]
    boot = [sys.executable, "-I", "-c", BOOT, str(ROOT), json.dumps(config)]
    dies_with_us = ["setpriv", "--pdeathsig", "KILL", "--"]
    host.stop_sshd(sessions=True)
    with (
        _cgroup(f"ugro-lab-{lab.number}-{host.name}") as cgroup,
        (lab.folder / "systemd.log").open("ab") as log,
    ):
        machine = subprocess.Popen(
            [*dies_with_us, "sh", "-c", IN_CGROUP, str(cgroup), *enter,
             "unshare", *NAMESPACES, "--fork", "--kill-child=KILL", *boot],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=log, text=True, cwd="/", start_new_session=True,
            env={"PATH": LOGIN_PATH} | lab_token(lab.folder),
        )  # fmt: skip
        try:
            assert machine.stdout
            said = machine.stdout.readline().strip()
            if not said:
                raise LabError(f"systemd did not come up, see {lab.folder}/systemd.log")
            made = SystemdHost(
                name=host.name,
                address=host.address,
                interface=host.interface,
                switch_pid=host.switch_pid,
                ssh_config=host.ssh_config,
                environ=host.environ,
                pid=int(said),
                home=f"/home/{USER}",
                user=USER,
            )
            wait_until(made.listens, f"systemd's sshd on {host.name} to listen")
            yield made
        finally:
            machine.kill()
            machine.wait()
            if machine.stdout:
                machine.stdout.close()
    host.start_sshd()


@contextlib.contextmanager
def _cgroup(name: str) -> Iterator[Path]:
    """Make a cgroup, and remove it with all in it when its last process has ended."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    tops = [Path(words[1]) for words in mounts if words[2] == "cgroup2"]
    if not tops:
        raise LabUnavailable("systemd needs cgroup2, which is not mounted here")
    made = tops[0] / name
    _remove_cgroup(made)  # of one that was killed
    try:
        made.mkdir()
    except OSError as error:
        raise LabUnavailable(f"no cgroup can be made for systemd: {error}") from error
    try:
        yield made
    finally:
        wait_until(lambda: _remove_cgroup(made), "the processes of systemd to end")


def _remove_cgroup(path: Path) -> bool:
    """Remove a cgroup with those in it, as far as no process is in them; tell whether it is gone."""
    for folder, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
    return not path.exists()
