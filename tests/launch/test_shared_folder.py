"""Two people of one group who share an experiments folder: each sees all jobs, and has to do with their own only."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.tools import pids, read_proc, require_means, wait_until

# Each test ends what its people have on this machine.
pytestmark = pytest.mark.xdist_group("shared_folder")

CHECKOUT = Path(__file__).parents[2]
GROUP = 64100
SCRIPT = """
import os, sys, time
print("rank", os.environ["RANK"], "of", os.environ["UGRO_JOB_ID"], flush=True)
with open(os.environ["UGRO_OUTPUT_DIR"] + "/metrics.jsonl", "a") as file:
    file.write('{"step": 1, "loss": 2.0}\\n')
time.sleep(float(sys.argv[sys.argv.index("--seconds") + 1]))
"""
# The interpreter may lie in a home that others may not enter: in the namespace of a person, there
# is nothing in that home but the interpreter. Both have a line in passwd.
USERS = {"ada": 64101, "grace": 64102}
ACCOUNTS = "\n".join(
    f"{name}:x:{user}:{user}::/:/bin/sh" for name, user in USERS.items()
)
ENTER = """
set -e
stage=$1 blocked=$2 interpreter=$3 user=$4 accounts=$5 umask=$6
shift 6
mount -t tmpfs none "$stage"
if [ -n "$blocked" ]; then
    mkdir "$stage/interpreter"
    mount --bind "$interpreter" "$stage/interpreter"
    mount -t tmpfs -o mode=755 none "$blocked"
    mkdir -p "$interpreter"
    mount --move "$stage/interpreter" "$interpreter"
fi
cp /etc/passwd "$stage/passwd"
printf '%s\n' "$accounts" >> "$stage/passwd"
mount --bind "$stage/passwd" /etc/passwd
umask "$umask"
exec setpriv --reuid "$user" --regid "$user" --groups GROUP -- "$@"
""".replace("GROUP", str(GROUP))


def blocked_by() -> str:
    """Return the topmost folder above the interpreter that others may not enter, "" without one."""
    for folder in reversed(Path(sys.base_prefix).parents):
        if not folder.stat().st_mode & 0o001:
            return str(folder)
    return ""


class Person:
    """A user with a home, a cluster file and a node of their own, and a folder shared with others."""

    def __init__(self, root: Path, name: str, umask: str) -> None:
        self.name = name
        self.user = USERS[name]
        self.umask = umask
        self.home = root / name
        self.shared = root / "experiments"
        scripts = self.home / "scripts"
        scripts.mkdir(parents=True)
        (scripts / "wait.py").write_text(SCRIPT)
        node = {
            "name": f"{name}-node", "ip": "127.0.0.1", "hostname": "localhost", "transport": "local",
            "paths": {"project": str(self.home / "ugro")},
        }  # fmt: skip
        # Nodes that share a machine have a lease each; one alone has the machine's, which is another person's too.
        spare = {**node, "name": f"{name}-spare"}
        document = {
            "cluster": {"name": name, "master": node},
            "workers": [spare],
            "paths": {"scripts": str(scripts), "experiments": str(self.shared), "logs": str(self.home / "logs")},
            "environment": {"manager": "existing", "python": str(CHECKOUT / ".ugro/env/bin/python")},
            "training": {"default_script": "wait.py"},
        }  # fmt: skip
        (self.home / "cluster.yaml").write_text(yaml.safe_dump(document))
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, self.user, self.user)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        stage = tempfile.mkdtemp(dir=self.home.parent, prefix=".stage-")
        entered = [
            stage, blocked_by(), sys.base_prefix, str(self.user), ACCOUNTS, self.umask,
            sys.executable, "-m", "ugro_tasks.cli.program", *words,
        ]  # fmt: skip
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", ENTER, "sh", *entered],
            env={"HOME": str(self.home), "PATH": os.environ["PATH"], "USER": self.name},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=100,
        )

    def launch(self, name: str, seconds: float, *more: str) -> str:
        args = f"--seconds {seconds}"
        words = ("--name", name, "--nodes", f"{self.name}-node", "--args", args)
        done = self.run("launch", *words, *more)
        assert done.returncode == 0, done.stdout + done.stderr
        return max(path.name for path in self.shared.glob(f"{name}_*"))

    def processes(self) -> list[tuple[int, bytes]]:
        """Return (pid, command line) of all processes of this person."""
        found = []
        for pid in pids():
            try:
                owner = Path(f"/proc/{pid}").stat().st_uid
            except OSError:
                continue
            if owner == self.user:
                found.append((pid, read_proc(pid, "cmdline")))
        return found

    def agents(self) -> int:
        return sum(b"ugro_tasks.agent" in line for _, line in self.processes())

    def state(self, job_id: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(
            (self.shared / job_id / "state.json").read_text()
        )
        return told


@pytest.fixture
def people() -> Iterator[tuple[Person, Person]]:
    require_means()
    # Where others may enter, too: pytest's folders are their owner's.
    root = Path(tempfile.mkdtemp(prefix="ugro-shared-", dir="/var/tmp"))
    root.chmod(0o755)
    shared = root / "experiments"
    shared.mkdir()
    os.chown(shared, 0, GROUP)
    shared.chmod(0o3770)
    ada, grace = Person(root, "ada", "022"), Person(root, "grace", "002")
    yield ada, grace
    for person in (ada, grace):
        for pid, _ in person.processes():
            # Nobody else has these user ids.
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(root)


def test_each_sees_all_jobs_and_has_to_do_with_their_own(
    people: tuple[Person, Person],
) -> None:
    ada, grace = people
    running = ada.launch("long", 600, "--detach")
    assert ada.agents() == 1
    # Each has an agent, which supervises their own jobs.
    ended = grace.launch("short", 0.1)
    assert grace.state(ended)["state"] == "succeeded"
    assert (ada.agents(), grace.agents()) == (1, 1)
    locks = {path.name for path in ada.shared.glob(".agent*.lock")}
    assert locks == {".agent.lock", f".agent.{grace.user}.lock"}

    for person, other in ((ada, ended), (grace, running)):
        told = json.loads(person.run("status", "--json").stdout)
        assert {row["job_id"] for row in told["jobs"]} == {running, ended}
        for command in ("status", "logs", "results"):
            seen = person.run(command, other)
            assert seen.returncode == 0, seen.stderr
            assert "loss" in seen.stdout or command != "results"

    # Nothing can be done with a job of somebody else.
    for words in (("stop", running), ("gather", running), ("attach", running)):
        refused = grace.run(*words)
        assert refused.returncode == 13, refused.stdout + refused.stderr
        assert (
            "launched by ada" in refused.stderr or "Permission denied" in refused.stderr
        )
    adopted = grace.run("agent.adopt", running, "--yes")
    assert adopted.returncode == 12, adopted.stdout + adopted.stderr
    assert "Permission denied" in adopted.stderr
    assert "Traceback" not in adopted.stderr
    grace.run("clean")
    assert ada.state(running)["state"] == "running"

    stopped = ada.run("stop", running)
    assert stopped.returncode == 0, stopped.stderr
    assert ada.state(running)["state"] == "stopped"
    wait_until(
        lambda: len(list(ada.shared.glob("job_history*.jsonl"))) == 2,
        "a history of each",
    )


def test_nobody_of_the_group_can_change_what_another_launched(
    people: tuple[Person, Person],
) -> None:
    for person in people:
        job_id = person.launch(f"of-{person.name}", 0.1)
        for path in (person.shared / job_id, *(person.shared / job_id).rglob("*")):
            mode = path.lstat().st_mode
            assert path.is_symlink() or not mode & 0o022, f"{path} {mode:o}"
            assert path.lstat().st_gid == GROUP
