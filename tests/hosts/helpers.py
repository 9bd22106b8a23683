"""What the tests of hosts and health do to the lab's hosts, and how they call the tasks."""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import pytest
import yaml

from lab import Lab, LabHost
from lab.lab import LOGIN_PATH, ROOT
from lab.tools import wait_until
from ugro_tasks.cli.program import UgroProgram
from ugro_tasks.errors import HostError

T = TypeVar("T")
Document = dict[str, Any]

LISTEN = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("up", flush=True)
held = []
while True:
    held.append(listener.accept())
"""


class Done(NamedTuple):
    """How a task ended and what it said."""

    returncode: int
    stdout: str
    stderr: str


@contextmanager
def lab_user(lab: Lab, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is the lab's user; afterwards ~/.ssh is as before, and `patch` is the caller's to undo."""
    patch.setenv("HOME", str(lab.home))
    patch.setenv("PATH", lab.path)
    patch.setenv("UGRO_CLUSTER", str(lab.cluster_file))
    patch.delenv("SSH_AUTH_SOCK", raising=False)
    # Where all nodes are there, nobody waits so long, however busy this machine is; see `one_node_is_away`.
    patch.setattr("ugro_tasks.health.probe.PORT_SECONDS", 15.0)
    patch.setattr("ugro_tasks.backends.ssh.reset.RESET_GRACE_SECONDS", 0.5)
    folder = lab.home / ".ssh"
    before = {
        path: (path.read_bytes(), path.stat().st_mode) for path in folder.iterdir()
    }
    try:
        yield
    finally:
        for path in folder.iterdir():
            path.unlink()
        for path, (content, mode) in before.items():
            path.touch(mode)
            path.chmod(mode)
            path.write_bytes(content)


def ugro(*words: str, cluster: Path | None = None) -> Done:
    """A task run in this process, which needs the fixture `home`; `inv` without the time that a start takes."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        if cluster:
            patch.setenv("UGRO_CLUSTER", str(cluster))
        try:
            UgroProgram().run(["ugro", *words])
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def inv(lab: Lab, *words: str, stdin: str = "") -> Done:
    """The task as the lab's user types it, without a terminal."""
    done = subprocess.run(
        [f"{sys.prefix}/bin/inv", *words],
        cwd=ROOT,
        env=lab.environ,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def health(*words: str, cluster: Path | None = None) -> tuple[int, dict[str, Any]]:
    """Exit code and answer of `inv health --json`."""
    done = ugro("health", "--json", *words, cluster=cluster)
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


def faults(answer: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """{(node or "cluster", check): its value and fix} of all that failed."""
    checks = [
        (node["node"], check) for node in answer["nodes"] for check in node["checks"]
    ]
    checks += [("cluster", check) for check in answer["across"]]
    return {
        (node, c["name"]): f"{c['value']}\n{c['fix']}"
        for node, c in checks
        if not c["ok"]
    }


def value(answer: Mapping[str, Any], node: str, check: str) -> str:
    """What a check of a node says."""
    (found,) = [
        c
        for n in answer["nodes"]
        if n["node"] == node
        for c in n["checks"]
        if c["name"] == check
    ]
    return str(found["value"])


def cluster_file(
    lab: Lab, folder: Path, change: Callable[[Document, list[Document]], None]
) -> Path:
    """The lab's cluster file after `change(document, its nodes)`, in `folder`."""
    document = yaml.safe_load(lab.cluster_file.read_text("utf-8"))
    change(document, [document["cluster"]["master"], *document["workers"]])
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    return path


def made_python(
    folder: Path, torch: str = "", version: str = "2.13.0", cuda: str | None = "12.8"
) -> Path:
    """An environment's python; with `torch`, the words of a stand-in torch that it can import."""
    real = Path(sys.executable).resolve()
    packages = (
        folder
        / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    )
    for place in (packages, folder / "bin"):
        place.mkdir(parents=True)
    # All that makes an environment; the module venv takes half a second for it.
    (folder / "pyvenv.cfg").write_text(f"home = {real.parent}\n")
    for name in ("python", "python3"):
        (folder / "bin" / name).symlink_to(real)
    if torch:
        (packages / "torch").mkdir()
        (packages / "torch" / "__init__.py").write_text(torch)
        (packages / "torch" / "version.py").write_text(
            f"__version__ = {version!r}\ncuda = {cuda!r}\n"
        )
    return folder / "bin" / "python"


def ssh_config(lab: Lab, *lines: str) -> None:
    """Make these lines the user's ssh configuration."""
    lab.ssh_config.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def fingerprint(host: LabHost) -> str:
    """SHA256:... of the host's key, in OpenSSH's own words."""
    told = host.run(["ssh-keygen", "-lf", "/run/lab/ssh_host_ed25519_key.pub"]).stdout
    return told.split()[1]


def within(seconds: float, function: Callable[[], T]) -> T:
    """The function's result; AssertionError where it is not there after so many seconds."""
    outcome: list[T | Exception] = []

    def run() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"no result after {seconds:g} s"
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def must_not_return(result: object) -> NoReturn:
    raise AssertionError(f"this should have failed, it gave {result!r}")


def error_of(function: Callable[[], object], seconds: float = 20) -> HostError:
    """The HostError that the function raises within the time."""
    try:
        result = within(seconds, function)
    except HostError as error:
        return error
    must_not_return(result)


@contextmanager
def background(host: LabHost, shell: str) -> Iterator[int]:
    """The pid (on the host) of a shell command that goes on in a session of its own; ended afterwards."""
    started = host.run(
        ["sh", "-c", f"setsid {shell} >/dev/null 2>&1 </dev/null & echo $!"]
    )
    pid = int(started.stdout)
    try:
        yield pid
    finally:
        try:
            host.kill(pid)
        except ProcessLookupError:
            return
        wait_until(
            lambda: pid not in [p for p, _ in host.processes()], f"pid {pid} to end"
        )


@contextmanager
def listening(host: LabHost, port: int) -> Iterator[None]:
    """Something on the host takes connections on a port and never says a word."""
    argv = host.entered("--mount", "--pid", "--net", sys.executable, "-c", LISTEN)
    with subprocess.Popen(
        [*argv, host.address, str(port)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        try:
            yield
        finally:
            (inner,) = [p for p, words in host.processes() if LISTEN in words]
            host.kill(inner)


@contextmanager
def sshd_on(
    host: LabHost, port: int, path: str = LOGIN_PATH, *first: str
) -> Iterator[None]:
    """A second sshd, on another port and with another PATH for those who log in.

    The lines `first` of its configuration count before all others.
    """
    edit = [
        "sed",
        "-e",
        f"s|^Port .*|Port {port}|",
        "-e",
        f"s|^SetEnv .*|SetEnv PATH={path}|",
    ]
    text = host.run([*edit, "/run/lab/sshd_config"]).stdout
    text = "".join(f"{line}\n" for line in first) + text
    host.run(["tee", "/run/lab/second"], input=text)
    sshd = host.entered("--mount", "--uts", "--ipc", "--pid", "--net", "--wd")
    with subprocess.Popen(
        [*sshd, "/usr/sbin/sshd", "-D", "-e", "-f", "/run/lab/second"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "listening" in process.stderr.readline()
        # nsenter waits for sshd, which is the child of its own in the host's pid namespace.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (child,) = children.read_text().split()
        try:
            yield
        finally:
            subprocess.run(["kill", child], check=True)
            process.stderr.close()


@contextmanager
def mounted(host: LabHost, *words: str) -> Iterator[None]:
    """Something lies over the last word, a path on the host."""
    host.run(["mount", *words])
    try:
        yield
    finally:
        host.run(["umount", words[-1]])


@contextmanager
def covered(host: LabHost, path: str, text: str) -> Iterator[None]:
    """A file of the host has another text."""
    cover = host.run(["mktemp", "/run/lab/cover.XXXXXX"]).stdout.strip()
    host.run(["sh", "-c", 'chmod 644 "$0" && cat > "$0"', cover], input=text)
    with mounted(host, "--bind", cover, path):
        yield


@contextmanager
def login_runs(host: LabHost, lines: str) -> Iterator[None]:
    """Bash runs these lines at each login over SSH, as it does what stands in ~/.bashrc."""
    path = host.path(".bashrc")
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}{lines}\n")
    try:
        yield
    finally:
        path.unlink()
        if before:
            path.write_text(before)


@contextmanager
def rsync_says(host: LabHost, words: str) -> Iterator[None]:
    """Another program of that name comes first on the node."""
    host.run(
        ["sh", "-c", "cat > /run/lab/bin/rsync; chmod 755 /run/lab/bin/rsync"],
        input=words,
    )
    try:
        yield
    finally:
        host.run(["rm", "/run/lab/bin/rsync"])
