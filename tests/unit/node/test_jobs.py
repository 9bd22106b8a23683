"""What runs on a node, with real processes on this machine: torchrun's place is taken by small programs."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pwd
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from lab.proof import send_signal
from lab.tools import wait_until
from tests.ports import reserved_port
from tests.unit.factories import make_node, salt_of
from ugro_tasks.errors import NodeFault, NodesBusy, StreamFault, UgroError
from ugro_tasks.hosts.local import LocalHost
from ugro_tasks.hosts.operations import (
    MakeFolder,
    Meetings,
    Prepare,
    Probe,
    Request,
    Reset,
    Start,
    State,
    Stop,
    Visit,
)
from ugro_tasks.hosts.requests import BOOTSTRAP, ask, node_zip
from ugro_tasks.hosts.streams import Frame, follow
from ugro_tasks.node import probe, protocol
from ugro_tasks.node.environment import remember
from ugro_tasks.node.files import expand, read_json, read_text, write_json
from ugro_tasks.node.gpu import GPU_FIELDS
from ugro_tasks.node.lease import lease_holder, name_of, take_lease
from ugro_tasks.node.processes import (
    Process,
    boot_id,
    end_all,
    identity,
    memory_path,
    of_rank,
    of_slot,
    start_time,
    supervisor_of,
)
from ugro_tasks.node.supervisor import OPEN_FILES, last_words, names_in

NVIDIA_SMI = Path(__file__).parents[3] / "lab" / "nvidia_smi.py"
RECORDED_GPUS = Path(__file__).parents[3] / "lab" / "recordings" / "rtx4070.json"


def pythons() -> list[str]:
    """This one, and every other here that a node might have."""
    found = [sys.executable]
    for path in sorted(Path("~/.pyenv/versions").expanduser().glob("3.*/bin/python3")):
        minor = int(path.parts[-3].split(".")[1])
        if minor >= 8 and minor != sys.version_info.minor:
            found.append(str(path))
    return found


def told(host: LocalHost, request: Request[Any]) -> dict[str, Any]:
    """Ask a node, and give all that it says: more than a controller reads of it."""
    packed = node_zip()
    line = json.dumps(to_builtins(request)).encode() + b"\n"
    said = host.run(
        [host.node.python, "-ES", "-c", BOOTSTRAP, str(len(packed))], packed + line
    )
    answer: dict[str, Any] = json.loads(said.rpartition(protocol.MARK)[2])
    return answer


class Rank:
    """A job's rank on this machine, as a controller speaks to it."""

    def __init__(
        self, host: LocalHost, home: Path, slot: str, job: str = "exp1_20260120_120000"
    ) -> None:
        self.host, self.home, self.slot, self.job = host, home, slot, job
        self.token = f"{job}.c0ffee00:{host.node.name}:{slot}"
        self.at = f"~/ugro/jobs/{job}.c0ffee00"
        self.folder = home / self.at[2:]

    def prepare(
        self,
        *argv: str,
        env: dict[str, str] | None = None,
        hold_seconds: float = 30.0,
        **more: Any,
    ) -> None:
        zipped, code = node_zip(), archive({"train.py": "print('hello')\n"})
        request = Prepare(
            token=self.token,
            node=self.host.node.name,
            folder=self.at,
            argv=argv or ("true",),
            env=env or {},
            node_bytes=len(zipped),
            controller="/home/ada/experiments",
            hold_seconds=hold_seconds,
            **more,
        )
        ask(self.host, request, blob=zipped + code)

    def start(self) -> None:
        ask(self.host, Start(folder=self.at))

    def run(self, *argv: str, env: dict[str, str] | None = None) -> None:
        self.prepare(*argv, env=env)
        self.start()

    def script(self, text: str, env: dict[str, str] | None = None) -> None:
        """Run a shell script, and return when it says `ready` where it means to."""
        self.run("sh", "-c", text, env=env)
        if "echo ready" in text:
            wait_until(lambda: "ready" in self.log, "the script to be ready")

    def stop(self, grace_seconds: float = 5.0, **more: Any) -> dict[str, Any]:
        request = Stop(
            folder=self.at,
            token=self.token,
            grace_seconds=grace_seconds,
            reason="asked",
            **more,
        )
        return told(self.host, request)

    def state(self) -> dict[str, Any]:
        return told(self.host, State(folder=self.at, token=self.token))

    def follow(self, *, quiet_seconds: float = 0.1, **offsets: int) -> Iterator[Frame]:
        """The frames up to the one that says how it ended."""
        wanted = {
            getattr(protocol, kind): offset for kind, offset in offsets.items()
        } or {protocol.LOG: 0}
        for frame in follow(
            self.host,
            10.0,
            folder=self.at,
            token=self.token,
            offsets=wanted,
            heartbeat_seconds=quiet_seconds,
        ):
            yield frame
            if frame.kind in {protocol.EXIT, protocol.LOST}:
                return

    def ended(self) -> dict[str, Any]:
        """The exit record, once it is there."""
        wait_until((self.folder / "exit.json").exists, "the exit record")
        record: dict[str, Any] = json.loads((self.folder / "exit.json").read_text())
        return record

    def read(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / name).read_text())
        return value

    @property
    def log(self) -> str:
        return read_text(str(self.folder / "log"))

    @property
    def supervisor(self) -> int:
        return int(self.read("supervisor.json")["pid"])

    def kill_supervisor(self) -> None:
        """kill -9 it, if it is what the record says."""
        folder = str(self.folder)
        assert send_signal(
            self.supervisor, signal.SIGKILL, lambda pid: supervisor_of(folder) == pid
        )

    def processes(self) -> list[Process]:
        return of_rank(self.token)


def archive(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's home: leases and jobs of these tests are nobody else's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def slot(home: Path) -> Iterator[str]:
    """A slot of this test's own. What is left in it afterwards is ended."""
    made = f"test-{uuid.uuid4().hex[:8]}"
    yield made

    def left() -> list[Process]:
        found = of_slot(made)
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        return found

    wait_until(lambda: not left(), "the test's processes to end")


@pytest.fixture
def rank(home: Path, slot: str) -> Rank:
    node = make_node(
        transport="local", address="127.0.0.1", python=sys.executable, slot=slot
    )
    return Rank(LocalHost(node), home, slot)


@pytest.fixture
def other(rank: Rank) -> Rank:
    """Another job that wants the same node."""
    return Rank(rank.host, rank.home, rank.slot, "exp2_20260120_120001")


@pytest.fixture
def spawn(slot: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a shell script with a token and returns when it says `ready`."""
    started: list[subprocess.Popen[bytes]] = []

    def start(script: str, token: str = "") -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["sh", "-c", script], stdout=subprocess.PIPE,
            env=dict(os.environ, UGRO_TOKEN=token or f"exp1.c0ffee:gpu0:{slot}"),
        )  # fmt: skip
        started.append(process)
        assert process.stdout
        if "ready" in script:
            assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


# ---- processes ----

SLEEP = "echo ready; exec sleep 60"


def test_a_process_is_found_by_its_token(spawn: Any, slot: str) -> None:
    process = spawn(SLEEP)
    [found] = of_slot(slot)
    assert found.facts() == {
        "pid": process.pid, "token": f"exp1.c0ffee:gpu0:{slot}", "command": "sleep 60", "job": "exp1",
    }  # fmt: skip


@pytest.mark.parametrize(
    "token",
    ["exp1.c0ffee:gpu1:{}", "exp1.c0ffe:gpu0:{}", "exp1_b.c0ffee:gpu0:{}", "x:{}"],
)
def test_a_token_is_matched_whole(spawn: Any, slot: str, token: str) -> None:
    spawn(SLEEP, token.format(slot))
    assert of_rank(f"exp1.c0ffee:gpu0:{slot}") == []


def test_a_variable_whose_name_only_ends_like_the_token_is_none(slot: str) -> None:
    env = {"MY_UGRO_TOKEN": f"a.b:c:{slot}", "PATH": os.environ["PATH"]}
    with subprocess.Popen(["sleep", "60"], env=env) as process:
        assert of_slot(slot) == []
        process.kill()


def test_a_zombie_is_not_alive(spawn: Any, slot: str) -> None:
    process = spawn("echo ready")
    wait_until(
        lambda: " Z " in Path(f"/proc/{process.pid}/stat").read_text(),
        "the process to end",
    )
    assert (of_slot(slot), start_time(process.pid)) == ([], None)


def test_a_process_may_be_called_as_its_stat_line_would_confuse(
    tmp_path: Path, spawn: Any
) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    process = spawn(f"echo ready; exec '{program}' 60")
    wait_until(
        lambda: "a)" in Path(f"/proc/{process.pid}/stat").read_text(), "the program"
    )
    after = Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
    assert start_time(process.pid) == after[19]


def test_a_process_is_known_by_pid_start_time_and_boot(spawn: Any) -> None:
    process = spawn(SLEEP)
    assert identity(process.pid) == {
        "pid": process.pid,
        "start_time": start_time(process.pid),
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    }


def test_of_a_long_error_file_the_words_and_the_end_of_the_traceback_are_told(
    tmp_path: Path,
) -> None:
    stack = "Traceback\n" + "  File x\n" * 5000 + "RuntimeError: size mismatch"
    told = {
        "message": {
            "message": "RuntimeError: " + "m" * 30_000,
            "extraInfo": {"py_callstack": stack, "timestamp": "1"},
        }
    }
    (tmp_path / "error.json").write_text(json.dumps(told))
    words = json.loads(last_words(str(tmp_path / "error.json")) or "")["message"]
    assert words["message"].startswith("RuntimeError: mmm")
    assert words["extraInfo"]["py_callstack"].endswith("RuntimeError: size mismatch")
    assert len(json.dumps(words)) < 30_000


@pytest.mark.parametrize(
    "content", ["", "null" * 10_000, '{"message": 7, "x": "' + "y" * 30_000 + '"}']
)
def test_any_error_file_is_told_as_far_as_it_goes(tmp_path: Path, content: str) -> None:
    (tmp_path / "error.json").write_text(content)
    assert (last_words(str(tmp_path / "error.json")) or "") == content[:20_000]


def test_an_error_file_of_any_size_fills_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert (last_words(str(path)) or "").endswith("is too long to be an error: 1099511627776 bytes")  # fmt: skip


def test_a_script_may_remove_its_output_folder(tmp_path: Path) -> None:
    assert names_in(str(tmp_path / "output")) == []


@pytest.mark.parametrize(
    "change", [{"start_time": "1"}, {"boot_id": "another"}, {"pid": 2**22 + 1}]
)
def test_a_pid_that_was_used_again_is_no_supervisor(
    spawn: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    found = identity(spawn(SLEEP).pid)
    write_json(str(tmp_path / "supervisor.json"), found)
    assert supervisor_of(str(tmp_path)) == found["pid"]
    write_json(str(tmp_path / "supervisor.json"), {**found, **change})
    assert supervisor_of(str(tmp_path)) is None


def test_ending_is_polite_first(spawn: Any, slot: str) -> None:
    process = spawn("trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done")
    assert end_all(lambda: of_slot(slot), 5.0) == []
    assert process.poll() is not None


def test_what_ignores_term_is_killed_after_the_grace(spawn: Any, slot: str) -> None:
    spawn("trap '' TERM; echo ready; sleep 60")
    assert end_all(lambda: of_slot(slot), 0.2) == []
    assert of_slot(slot) == []


def test_what_forks_while_it_is_ended_is_ended_with_its_children(
    spawn: Any, slot: str
) -> None:
    spawn(
        "trap 'setsid sleep 60 & exit' TERM; echo ready; while :; do sleep 0.02; done"
    )
    assert end_all(lambda: of_slot(slot), 5.0) == []


def test_nothing_escapes_while_it_becomes_another_program(slot: str) -> None:
    """In the midst of execve a process shows no environment; one try in ten or so used to miss it."""
    env = dict(os.environ, UGRO_TOKEN=f"exp1.c0ffee:gpu0:{slot}")
    script = "setsid sleep 60 > /dev/null & echo $!"
    for _ in range(60):
        with subprocess.Popen(
            ["sh", "-c", script], env=env, stdout=subprocess.PIPE
        ) as process:
            process.wait()
            assert end_all(lambda: of_slot(slot), 1.0) == []
            assert process.stdout
            assert start_time(int(process.stdout.read())) is None


def test_nothing_to_end_takes_no_time(slot: str) -> None:
    assert end_all(lambda: of_slot(slot), 1e9) == []


# ---- files ----


def test_a_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        write_json(str(tmp_path / "x.json"), {})
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("path", ["~", "~root/x", "/~/x", "a/~/b", "$HOME/x"])
def test_only_a_leading_home_is_expanded(home: Path, path: str) -> None:
    assert (expand(path), expand("~/x")) == (path, f"{home}/x")


# ---- the lease ----


def holder_process(slot: str) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from ugro_tasks.node.lease import take_lease\n"
        f"lease = take_lease({slot!r}, {{'job': 'exp1'}})\n"
        "print(lease is not None, flush=True); sys.stdin.read()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_a_lease_that_nobody_took_is_free(slot: str) -> None:
    assert lease_holder(slot) is None


def test_a_lease_is_held_by_one_and_says_by_whom(slot: str) -> None:
    with holder_process(slot) as process:
        assert process.stdout
        assert process.stdout.readline() == b"True\n"
        assert lease_holder(slot) == {"job": "exp1", "pid": process.pid}
        assert take_lease(slot, {"job": "exp2"}) is None
        assert lease_holder(slot) == {"job": "exp1", "pid": process.pid}, (
            "a refusal leaves the holder's words alone"
        )
        process.kill()


def test_a_lease_is_free_when_its_holder_was_killed(slot: str) -> None:
    with holder_process(slot) as process:
        assert process.stdout
        assert process.stdout.readline() == b"True\n"
        process.kill()
    assert lease_holder(slot) is None
    lease = take_lease(slot, {"job": "exp2"})
    assert lease
    with lease:
        assert lease_holder(slot) == {"job": "exp2", "pid": os.getpid()}
    assert lease_holder(slot) is None


def test_slots_of_one_machine_are_independent(slot: str) -> None:
    lease = take_lease(slot, {"job": "exp1"})
    assert lease
    with lease:
        assert lease_holder(f"{slot}-2") is None


def test_a_lease_is_the_machines_whatever_becomes_of_the_home(
    slot: str, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with holder_process(slot) as process:
        assert process.stdout
        assert process.stdout.readline() == b"True\n"
        shutil.rmtree(home / ".ugro")
        assert lease_holder(slot) == {"pid": process.pid}
        monkeypatch.setenv("HOME", str(tmp_path))
        assert lease_holder(slot) == {"pid": process.pid}
        assert take_lease(slot, {"job": "exp2"}) is None
        process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_lease_of_another_user_counts_and_names_him(slot: str) -> None:
    code = (
        "import os, socket, sys; os.setuid(65534); kept = socket.socket(socket.AF_UNIX)\n"
        "kept.bind(sys.argv[1].replace('@', chr(0))); kept.listen(); print(flush=True); sys.stdin.read()"
    )
    name = name_of(slot).replace("\0", "@")
    with subprocess.Popen(
        [sys.executable, "-c", code, name], stdin=-1, stdout=-1
    ) as stranger:
        assert stranger.stdout
        stranger.stdout.readline()
        nobody = pwd.getpwuid(65534).pw_name
        assert lease_holder(slot) == {
            "pid": stranger.pid,
            "user": nobody,
            "job": None,
        }
        assert take_lease(slot, {"job": "exp2"}) is None
        stranger.kill()


def test_nobody_who_looks_for_long_can_hide_who_holds_a_lease(
    slot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ugro_tasks.node.lease.BACKLOG", 2)
    with take_lease(slot, {"job": "exp1"}) or pytest.fail("it is free") as lease:
        for _ in range(5):
            lease_holder(slot)
        assert lease_holder(slot) == {}, "it is held, by whom is not known"
        lease.clear()
        assert lease_holder(slot) == {"job": "exp1", "pid": os.getpid()}


@pytest.mark.parametrize(
    ("pid", "is_held"), [("here", True), ("elsewhere", False), (None, True)]
)
def test_a_lease_of_the_first_version_counts_if_its_holder_is_here(
    slot: str, home: Path, pid: str | None, is_held: bool
) -> None:
    told: dict[str, Any] = {"job": "exp0"}
    if pid:
        told["pid"] = os.getpid() if pid == "here" else (1 << 22) + 1
    (home / ".ugro").mkdir(exist_ok=True)
    path = home / f".ugro/lease-{slot}.json"
    path.write_text(json.dumps(told))
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lease_holder(slot) == (told if is_held else None)
        lease = take_lease(slot, {"job": "exp1"})
        assert (lease is None) == is_held
        if lease:
            with lease:
                assert lease_holder(slot) == {"job": "exp1", "pid": os.getpid()}
    assert lease_holder(slot) is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_home_without_locks_has_no_lease_of_the_first_version(
    slot: str, home: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(lease: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    (home / ".ugro").mkdir(exist_ok=True)
    (home / f".ugro/lease-{slot}.json").write_text('{"job": "exp0"}')
    monkeypatch.setattr("fcntl.flock", refused)
    assert lease_holder(slot) is None
    with take_lease(slot, {"job": "exp1"}) or pytest.fail("it is free"):
        assert lease_holder(slot) == {"job": "exp1", "pid": os.getpid()}


# ---- prepare ----


def test_preparing_again_only_says_so(rank: Rank) -> None:
    rank.prepare()
    first = rank.supervisor
    both = [process.pid for process in rank.processes()]
    rank.prepare()
    assert rank.supervisor == first
    # The supervisor and its guard.
    assert [process.pid for process in rank.processes()] == both
    assert len(both) == 2


def test_a_second_job_is_refused_and_told_who_has_the_node(
    rank: Rank, other: Rank
) -> None:
    rank.prepare()
    with pytest.raises(NodesBusy) as refused:
        other.prepare()
    assert refused.value.text == (
        f"gpu0: held by job {rank.job} of /home/ada/experiments (pid {rank.supervisor} there)"
    )
    assert not other.folder.exists()


def test_of_jobs_that_come_at_once_one_gets_the_node(rank: Rank) -> None:
    rivals = [
        Rank(rank.host, rank.home, rank.slot, f"exp{number}_20260120_120000")
        for number in range(4)
    ]
    faults: dict[str, UgroError] = {}

    def attempt(rival: Rank) -> None:
        try:
            rival.prepare()
        except UgroError as error:
            faults[rival.job] = error

    threads = [threading.Thread(target=attempt, args=(rival,)) for rival in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(fault) for fault in faults.values()] == [NodesBusy] * 3
    [winner] = [rival for rival in rivals if rival.job not in faults]
    holder = lease_holder(rank.slot)
    assert holder
    assert holder["token"] == winner.token


def test_a_prepared_node_that_is_never_told_to_start_frees_itself(
    rank: Rank, other: Rank
) -> None:
    rank.prepare(hold_seconds=0.1)
    assert rank.ended()["error"] == "prepared, but not told to start within 0.1 s"
    wait_until(lambda: not rank.processes(), "the supervisor to leave")
    other.prepare()


def test_a_job_of_another_job_that_lost_its_supervisor_still_has_the_node(
    rank: Rank, other: Rank
) -> None:
    rank.script("setsid sh -c 'trap \"\" TERM; echo ready; sleep 60' & wait")
    rank.kill_supervisor()
    wait_until(lambda: lease_holder(rank.slot) is None, "the lease to be free")
    with pytest.raises(NodesBusy, match=f"held by job {rank.job}"):
        other.prepare()


def test_what_was_begun_is_not_begun_again(rank: Rank) -> None:
    rank.script("echo ready; exec sleep 60")
    rank.kill_supervisor()
    wait_until(lambda: not rank.processes(), "the rank to end with its supervisor")
    rank.prepare()
    assert not rank.processes()
    assert rank.log == "ready\n"


def test_what_was_prepared_and_freed_itself_is_prepared_anew(rank: Rank) -> None:
    rank.prepare(hold_seconds=0.1)
    wait_until(lambda: not rank.processes(), "the node to free itself")
    rank.run("sh", "-c", "echo ready")
    assert rank.ended()["code"] == 0


def test_the_scripts_lie_where_the_script_runs(rank: Rank) -> None:
    rank.script("pwd; cat train.py")
    rank.ended()
    assert rank.log == f"{rank.folder}/code\nprint('hello')\n"


def test_the_plan_with_its_variables_is_readable_by_its_owner_only(rank: Rank) -> None:
    umask = os.umask(0)
    try:
        rank.prepare("true", env={"HF_TOKEN": "secret"})
    finally:
        os.umask(umask)
    readable = [
        path.name for path in rank.folder.iterdir()
        if path.is_file() and b"secret" in path.read_bytes() and path.stat().st_mode & 0o077
    ]  # fmt: skip
    assert readable == []


def test_the_folder_of_a_job_is_open_to_its_owner_only(rank: Rank) -> None:
    umask = os.umask(0)
    try:
        rank.prepare()
    finally:
        os.umask(umask)
    assert stat.S_IMODE(rank.folder.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_a_fault_with_its_path(rank: Rank) -> None:
    (rank.home / "ugro").write_text("a file in the way")
    with pytest.raises(NodeFault) as refused:
        rank.prepare()
    assert (
        refused.value.text == f"gpu0: prepare: {rank.home}/ugro/jobs: Not a directory"
    )


def test_making_the_project_folder_where_a_file_lies_is_a_fault(rank: Rank) -> None:
    (rank.home / "ugro").write_text("a file in the way")
    with pytest.raises(NodeFault, match=r"make_folder: .*/ugro: File exists"):
        ask(rank.host, MakeFolder(project="~/ugro"))


# ---- start, and how it ends ----


def test_starting_again_only_says_so(rank: Rank) -> None:
    rank.prepare("sh", "-c", "echo begun; exec sleep 60")
    request = Start(folder=rank.at)
    assert told(rank.host, request) == told(rank.host, request)
    wait_until(lambda: bool(rank.log), "the first line")
    assert rank.log == "begun\n"


def test_what_was_never_prepared_cannot_start(rank: Rank) -> None:
    with pytest.raises(NodeFault, match="start: the supervisor is gone"):
        rank.start()


@pytest.mark.parametrize("code", [0, 3, 143, 255])
def test_an_exit_code_is_recorded(rank: Rank, code: int) -> None:
    rank.script(f"exit {code}")
    record = rank.ended()
    assert (record["code"], record["signal"], record["error"], record["stopped"]) == (
        code,
        None,
        None,
        None,
    )
    assert record["started_at"] <= record["ended_at"]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_signal_is_recorded(rank: Rank, signum: signal.Signals) -> None:
    rank.script(f"kill -{signum.value} $$")
    record = rank.ended()
    assert (record["code"], record["signal"]) == (None, signum.value)


def test_a_program_that_is_not_there_is_recorded_and_told(rank: Rank) -> None:
    rank.prepare("~/env/bin/python")
    with pytest.raises(NodeFault, match=r"start: .*env/bin/python: No such file"):
        rank.start()
    assert rank.ended()["code"] == 127


def test_the_scripts_own_error_file_is_in_the_record(rank: Rank) -> None:
    rank.script('echo \'{"message": "it broke"}\' > "$TORCHELASTIC_ERROR_FILE"; exit 1')
    assert rank.ended()["error"] == '{"message": "it broke"}\n'


def test_the_topmost_outputs_are_named(rank: Rank) -> None:
    rank.script(
        "cd ../output; mkdir checkpoints; touch metrics.jsonl checkpoints/a checkpoints/b"
    )
    assert rank.ended()["outputs"] == ["checkpoints", "metrics.jsonl"]


def test_both_streams_come_in_the_order_of_their_writing(rank: Rank) -> None:
    rank.script("echo 1; echo 2 >&2; echo 3; printf '\\377\\000'")
    rank.ended()
    assert (rank.folder / "log").read_bytes() == b"1\n2\n3\n\xff\0"


MISLEADING = (
    "PET_NNODES", "TORCHELASTIC_RUN_ID", "TORCH_ELASTIC_WORKER_IDENTICAL", "UGRO_CLUSTER", "RANK", "LOCAL_RANK",
    "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def test_only_what_misleads_torchrun_is_taken_from_its_environment(
    rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*MISLEADING, "RANKING", "MY_RANK"):
        monkeypatch.setenv(name, "stray")
    rank.run("env")
    rank.ended()
    seen = dict(line.split("=", 1) for line in rank.log.splitlines() if "=" in line)
    assert [name for name in MISLEADING if seen.get(name) == "stray"] == []
    assert (seen["RANKING"], seen["MY_RANK"], seen["UGRO_TOKEN"]) == (
        "stray",
        "stray",
        rank.token,
    )


@pytest.mark.parametrize("name", ["UGRO_TOKEN", "TORCHELASTIC_ERROR_FILE"])
def test_a_plan_cannot_hide_a_rank_from_its_supervisor(rank: Rank, name: str) -> None:
    rank.run("sh", "-c", f'echo "${name}"', env={name: "mine"})
    rank.ended()
    assert rank.log != "mine\n"


def test_a_rank_may_open_as_many_files_as_the_node_lets_it(rank: Rank) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    rank.host.node = replace(
        rank.host.node, python=few_files(rank.home, sys.executable)
    )
    rank.run("sh", "-c", "ulimit -Sn; ulimit -Hn")
    rank.ended()
    allowed = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    assert rank.log == f"{allowed}\n{hard if hard >= 0 else 'unlimited'}\n"


def few_files(folder: Path, python: str) -> str:
    """A python whose user may open 64 files until one raises that."""
    path = folder / "few"
    path.write_text(f'#!/bin/sh\nulimit -Sn 64\nexec {python} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_home_that_cannot_be_written_is_a_fact_and_no_fault(
    rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rank.home / ".ugro").write_text("in the way")
    facts = probe.home_space()
    assert (facts["path"], facts["writable"]) == (f"{rank.home}/.ugro", False)
    remember(f"{rank.home}/.ugro/torch.json", {})
    assert (rank.home / ".ugro").read_text() == "in the way"


def test_the_home_of_the_node_is_filled_in(rank: Rank) -> None:
    rank.run(
        "sh",
        "-c",
        'echo "$0" "$DATA" "$OTHER"',
        "~/a",
        env={"DATA": "~/data", "OTHER": "a:~/b"},
    )
    rank.ended()
    assert rank.log == f"{rank.home}/a {rank.home}/data a:~/b\n"


def test_the_gpus_are_sampled_meanwhile(
    rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = rank.home / "bin"
    programs.mkdir()
    shutil.copy(RECORDED_GPUS, programs / "gpus.json")
    program = programs / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\n{NVIDIA_SMI.read_text()}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    rank.run("sleep", "60")
    samples = rank.folder / "gpu.jsonl"
    wait_until(
        lambda: samples.exists() and samples.read_bytes().endswith(b"\n"),
        "the first sample",
    )
    sample = json.loads(samples.read_text().splitlines()[0])
    assert (sample["node"], sample["memory.used"], sample["temperature.gpu"]) == (
        "gpu0",
        "12",
        "43",
    )
    assert set(GPU_FIELDS.split(",")) < sample.keys()


# ---- stop ----


def test_a_script_that_obeys_term_ends_in_its_own_way(rank: Rank) -> None:
    rank.script("trap 'echo saved; exit 5' TERM; sleep 60 & echo ready; wait")
    answer = rank.stop()
    assert (answer["left"], answer["exit"]["code"], answer["exit"]["stopped"]) == (
        [],
        5,
        "asked",
    )
    assert rank.log == "ready\nsaved\n"


LINGERING = """
import signal, subprocess, time
child = subprocess.Popen(["sleep", "60"])
def end(*_):
    child.terminate()
    child.wait()
    time.sleep(60)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
signal.pause()
"""


def test_torchrun_is_not_waited_for_when_its_rank_has_ended(rank: Rank) -> None:
    rank.prepare(sys.executable, "-c", LINGERING)
    rank.start()
    wait_until(lambda: rank.log == "ready\n", "the rank to be ready")
    answer = rank.stop(30.0)
    assert (answer["left"], answer["exit"]["stopped"]) == ([], "asked")
    assert (answer["exit"]["code"], answer["exit"]["signal"]) == (None, None)


def test_a_script_that_ignores_term_is_killed_after_its_grace(rank: Rank) -> None:
    rank.script("trap '' TERM; echo ready; sleep 60")
    answer = rank.stop(grace_seconds=0.3)
    assert answer["left"] == []
    assert (
        answer["exit"]["code"],
        answer["exit"]["signal"],
        answer["exit"]["stopped"],
    ) == (
        None,
        None,
        "asked",
    )
    assert 0.3 <= answer["seconds"] < 30  # the script would sleep for 60


def test_daemons_are_stopped_with_the_script(rank: Rank) -> None:
    rank.script(
        "setsid sleep 60 & setsid sh -c 'trap \"\" TERM; (sleep 60 &); echo ready; sleep 60' & wait"
    )
    assert rank.stop(grace_seconds=1)["left"] == []
    assert rank.processes() == []


def test_daemons_do_not_outlive_a_script_that_ended(rank: Rank) -> None:
    rank.script("setsid sleep 60 & exit 0")
    # The supervisor and its guard may still be leaving.
    assert (rank.ended()["code"], len(rank.processes()) <= 2) == (0, True)
    wait_until(lambda: not rank.processes(), "the supervisor to leave")


FOREIGN = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize("signum", FOREIGN)
def test_a_signal_that_is_no_order_interrupts_the_rank(
    rank: Rank, signum: signal.Signals
) -> None:
    """So do a shutdown, the end of a session, and a person."""
    rank.script("echo ready; sleep 60")
    os.kill(rank.supervisor, signum)
    record = rank.ended()
    assert (record["stopped"], record["interrupted"]) == (None, signum.value)
    assert (record["code"], record["signal"]) == (None, signal.SIGTERM.value)
    wait_until(lambda: not rank.processes(), "the supervisor to leave")


@pytest.mark.parametrize("signum", FOREIGN)
def test_a_signal_before_the_start_is_no_order_either(
    rank: Rank, signum: signal.Signals
) -> None:
    rank.prepare()
    os.kill(rank.supervisor, signum)
    record = rank.ended()
    assert (record["stopped"], record["interrupted"]) == (None, signum.value)
    assert record["started_at"] is None


def test_a_signal_that_a_script_survives_is_recorded_all_the_same(rank: Rank) -> None:
    rank.script("trap '' TERM; echo ready; sleep 0.5; exit 0")
    os.kill(rank.supervisor, signal.SIGTERM)
    record = rank.ended()
    assert (record["code"], record["interrupted"]) == (0, signal.SIGTERM.value)


def test_an_order_is_known_on_a_full_disk_too(rank: Rank) -> None:
    rank.script("echo ready; sleep 60")
    # Nothing can take the place of a folder that is not empty.
    (rank.folder / "stop.json" / "full").mkdir(parents=True)
    answer = rank.stop()
    assert answer["left"] == []
    assert (answer["exit"]["stopped"], answer["exit"]["interrupted"]) == ("asked", None)


def test_stopping_what_is_only_prepared_starts_nothing(rank: Rank) -> None:
    rank.prepare("sh", "-c", "echo begun")
    answer = rank.stop()
    assert (
        answer["left"],
        answer["exit"]["stopped"],
        answer["exit"]["started_at"],
    ) == ([], "asked", None)
    assert rank.log == ""


def test_stopping_what_has_ended_proves_it(rank: Rank) -> None:
    rank.script("exit 3")
    rank.ended()
    answer = rank.stop()
    assert (answer["left"], answer["exit"]["code"], answer["exit"]["stopped"]) == (
        [],
        3,
        None,
    )


def test_stopping_what_was_never_there_proves_it(rank: Rank) -> None:
    answer = rank.stop()
    assert (answer["left"], answer["exit"]) == ([], None)


def test_stopping_leaves_other_jobs_alone(rank: Rank, other: Rank) -> None:
    rank.prepare()
    assert other.stop(grace_seconds=0.1)["left"] == []
    assert rank.state()["supervised"]


def test_a_stop_that_discards_takes_the_folder(rank: Rank) -> None:
    rank.prepare()
    rank.stop(discard=True)
    assert not rank.folder.exists()


def test_when_the_supervisor_is_killed_its_script_ends_and_the_node_is_free(
    rank: Rank, other: Rank
) -> None:
    rank.script(
        "trap 'echo saved; exit' TERM; echo ready; while :; do sleep 0.02; done"
    )
    rank.kill_supervisor()
    wait_until(lambda: not rank.processes(), "the script to end")
    assert "saved" in rank.log
    other.prepare()


def test_what_outlives_a_killed_supervisor_is_stopped_by_its_token(rank: Rank) -> None:
    rank.script("setsid sh -c 'trap \"\" TERM; echo ready; sleep 60' & wait")
    rank.kill_supervisor()
    wait_until(lambda: not rank.state()["supervised"], "the supervisor to end")
    assert rank.state()["processes"]
    assert rank.stop(grace_seconds=0.1)["left"] == []
    assert rank.state()["processes"] == []


# ---- state and reset ----


def test_a_rank_that_was_halted_is_named_until_it_goes_on(rank: Rank) -> None:
    rank.script("echo ready; exec sleep 60")
    [halted] = [one.pid for one in rank.processes() if one.command == "sleep 60"]
    assert rank.state()["paused"] == []
    os.kill(halted, signal.SIGSTOP)
    wait_until(lambda: rank.state()["paused"] == [halted], "it to be named")
    os.kill(halted, signal.SIGCONT)
    wait_until(lambda: rank.state()["paused"] == [], "it to go on")
    os.kill(halted, signal.SIGSTOP)
    assert rank.stop(0.2)["left"] == []


def test_the_state_of_what_was_never_there(rank: Rank) -> None:
    assert rank.state() == {
        "known": False, "supervised": False, "started": False, "exit": None, "processes": [], "paused": [],
    }  # fmt: skip


def test_the_state_from_prepared_to_ended(rank: Rank) -> None:
    rank.prepare("true")
    prepared = rank.state()
    rank.start()
    rank.ended()
    wait_until(lambda: not rank.processes(), "the supervisor to leave")
    ended = rank.state()
    assert [(s["known"], s["supervised"], s["started"]) for s in (prepared, ended)] == [
        (True, True, False), (True, False, True),
    ]  # fmt: skip
    assert (prepared["exit"], ended["exit"]["code"]) == (None, 0)


def test_a_reset_ends_everything_in_its_slot_and_nothing_else(
    rank: Rank, spawn: Any, slot: str
) -> None:
    rank.script("trap '' TERM; echo ready; sleep 60")
    neighbour = spawn(SLEEP, f"exp9.c0ffee:gpu0:{slot}-2")
    supervisor = rank.supervisor
    answer = ask(rank.host, Reset(slot=slot, grace_seconds=0.1, by="ada@home"))
    assert supervisor in [process.pid for process in answer.ended]
    assert (answer.left, of_slot(slot), lease_holder(slot)) == ([], [], None)
    assert neighbour.poll() is None
    record = rank.ended()
    assert (record["stopped"], record["stopped_by"]) == ("reset", "ada@home")
    assert record["interrupted"] is None


# ---- follow ----


def joined(frames: list[Frame], kind: int) -> bytes:
    return b"".join(frame.payload for frame in frames if frame.kind == kind)


def test_a_stream_comes_from_its_offset_and_the_end_comes_last(rank: Rank) -> None:
    rank.script("printf abcdef")
    rank.ended()
    frames = [frame for frame in rank.follow(LOG=2) if frame.kind != protocol.HEARTBEAT]
    assert frames[0] == Frame(protocol.LOG, 2, b"cdef")
    assert [frame.kind for frame in frames] == [protocol.LOG, protocol.EXIT]
    assert json.loads(frames[-1].payload) == rank.ended()


def test_what_is_printed_meanwhile_comes_meanwhile(rank: Rank) -> None:
    rank.prepare(
        "sh", "-c", "echo one; while [ ! -e go ]; do sleep 0.02; done; echo two"
    )
    frames = rank.follow()
    assert next(frames).kind == protocol.HEARTBEAT
    rank.start()
    assert next(f for f in frames if f.kind == protocol.LOG) == Frame(
        protocol.LOG, 0, b"one\n"
    )
    (rank.folder / "code" / "go").touch()
    assert next(f for f in frames if f.kind == protocol.LOG) == Frame(
        protocol.LOG, 4, b"two\n"
    )


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/urandom"])
def test_a_bulk_of_output_comes_whole(rank: Rank, source: str) -> None:
    rank.script(f"head -c 1000000 {source}")
    frames = list(rank.follow())
    assert joined(frames, protocol.LOG) == (rank.folder / "log").read_bytes()
    assert frames[-1].kind == protocol.EXIT


def test_each_stream_has_offsets_of_its_own(rank: Rank) -> None:
    rank.script(
        "echo log; echo '{}' >> ../gpu.jsonl; echo '{\"step\": 1}' > ../output/metrics.jsonl"
    )
    rank.ended()
    frames = list(rank.follow(LOG=0, METRICS=3, GPU=0))
    streams = [
        joined(frames, kind) for kind in (protocol.LOG, protocol.METRICS, protocol.GPU)
    ]
    assert streams == [b"log\n", b'tep": 1}\n', b"{}\n"]


def test_a_quiet_job_gives_signs_of_life(rank: Rank) -> None:
    rank.prepare()
    frames = rank.follow(quiet_seconds=0.05)
    assert [next(frames).kind for _ in range(3)] == [protocol.HEARTBEAT] * 3


def test_a_killed_supervisor_is_a_rank_that_is_lost(rank: Rank) -> None:
    rank.script("setsid sh -c 'trap \"\" TERM; echo ready; sleep 60' & wait")
    rank.kill_supervisor()
    # Beside these two there is the supervisor's guard.
    wait_until(lambda: len(rank.processes()) == 3, "the script to end")
    last = list(rank.follow())[-1]
    told = json.loads(last.payload)
    assert (last.kind, told["known"], told["rebooted"]) == (protocol.LOST, True, False)


def test_the_last_words_of_a_rank_whose_supervisor_was_killed_are_sent(
    rank: Rank,
) -> None:
    rank.script(
        "trap 'sleep 0.3; echo last words; exit' TERM; echo ready; while :; do sleep 0.1; done"
    )
    rank.kill_supervisor()
    frames = list(rank.follow(quiet_seconds=0.05))
    assert frames[-1].kind == protocol.LOST
    assert b"".join(f.payload for f in frames if f.kind == protocol.LOG).endswith(
        b"last words\n"
    )
    assert rank.processes() == []


def test_a_rank_that_prints_on_without_its_supervisor_is_ended(rank: Rank) -> None:
    rank.script("trap '' TERM; echo ready; while :; do echo more; sleep 0.01; done")
    rank.kill_supervisor()
    frames = list(rank.follow(quiet_seconds=0.05))
    assert frames[-1].kind == protocol.LOST
    sent = b"".join(f.payload for f in frames if f.kind == protocol.LOG)
    assert sent == (rank.folder / "log").read_bytes()
    assert rank.processes() == []


def test_a_supervisor_of_an_earlier_boot_is_a_node_that_was_rebooted(
    rank: Rank,
) -> None:
    rank.script("exec sleep 60")
    identity = rank.read("supervisor.json")
    rank.stop(grace_seconds=1)
    (rank.folder / "exit.json").unlink()
    write_json(str(rank.folder / "supervisor.json"), {**identity, "boot_id": "another"})
    assert json.loads(list(rank.follow())[-1].payload) == {
        "known": True,
        "rebooted": True,
    }


def test_a_job_that_the_node_does_not_know_is_lost(rank: Rank) -> None:
    assert json.loads(list(rank.follow())[-1].payload) == {
        "known": False,
        "rebooted": False,
    }


def test_following_ends_when_the_reader_has_gone(rank: Rank) -> None:
    rank.prepare()
    request = {
        "op": "follow", "folder": rank.at, "token": rank.token, "offsets": {str(protocol.LOG): 0},
        "heartbeat_seconds": 0.05,
    }  # fmt: skip
    zipped = node_zip()
    process = subprocess.Popen(
        [sys.executable, "-c", BOOTSTRAP, str(len(zipped))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(zipped + json.dumps(request).encode() + b"\n")
    process.stdin.close()
    assert process.stdout.read(8)
    process.stdout.close()
    assert process.wait(timeout=60) == 0


# ---- the zip and its Pythons ----


def test_every_login_shell_reads_the_same_program() -> None:
    quoted = shlex.quote(BOOTSTRAP)
    # fish takes a backslash before a quote as an escape, csh a line feed or an exclamation mark as its own.
    assert "\\'" not in quoted
    assert "\n" not in quoted
    assert "!" not in quoted


def test_a_node_that_refuses_memory_files_is_spoken_to_all_the_same(
    rank: Rank, tmp_path: Path
) -> None:
    refusing = "import os;os.memfd_create=lambda name:os.open('/none',0);"
    zipped = node_zip()
    request = to_builtins(State(folder=rank.at, token=rank.token))
    done = subprocess.run(
        [sys.executable, "-ES", "-c", refusing + BOOTSTRAP, str(len(zipped))],
        input=zipped + json.dumps(request).encode() + b"\n",
        env=os.environ | {"TMPDIR": str(tmp_path / "home")},
        capture_output=True,
        check=True,
    )
    answer = json.loads(done.stdout.rpartition(protocol.MARK)[2])
    assert answer["known"] is False
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == [".ugro"]


@pytest.mark.parametrize("python", pythons(), ids=lambda path: Path(path).parts[-3])
def test_a_whole_life_under_each_python_of_this_machine(
    rank: Rank, python: str
) -> None:
    rank.host.node = replace(rank.host.node, python=python)
    version = subprocess.run(
        [python, "-V"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    with reserved_port() as port:
        salt = salt_of(port, 29500)
        visits = {"gpu0": Visit(address="127.0.0.1", salt=salt)}
        request = Probe(
            interpreter=python,
            project="~/ugro",
            slot=rank.slot,
            wants_cuda=False,
            role="single",
            address="127.0.0.1",
            master="127.0.0.1",
            port=29500,
            port_seconds=20,
            nonce="n",
            peers=Meetings(name="gpu0", salt=salt, visits=visits, visited_by=["gpu0"]),
            environment={"manager": "existing"},
        )
        facts = ask(rank.host, request)
    assert facts.python == version
    assert facts.peers
    assert (facts.peers.heard, facts.peers.reached["gpu0"].ok) == (["gpu0"], True)
    rank.run("sh", "-c", "echo hello; exec sleep 60")
    wait_until(lambda: bool(rank.log), "the first line")
    answer = rank.stop()
    frames = list(rank.follow())
    assert (answer["left"], answer["exit"]["signal"]) == ([], signal.SIGTERM)
    assert (joined(frames, protocol.LOG), frames[-1].kind) == (
        b"hello\n",
        protocol.EXIT,
    )


def test_the_zip_holds_no_file_of_the_rest_of_the_package() -> None:
    import zipfile

    with zipfile.ZipFile(io.BytesIO(node_zip())) as packed:
        assert {name.split("/")[0] for name in packed.namelist()} == {
            "__main__.py",
            "node",
        }
        # It travels with each request.
    assert len(node_zip()) < 80 << 10


# ---- what cannot be read ----


def test_what_cannot_be_read_is_told_once_and_the_rest_is_sent(rank: Rank) -> None:
    """A folder that only root may read is the usual case; a loop is one for root, too."""
    rank.script("echo ready; sleep 1")
    checkpoints = rank.folder / "output" / "checkpoints"
    checkpoints.symlink_to("checkpoints")
    frames = list(rank.follow())
    notices = [
        frame.payload.decode() for frame in frames if frame.kind == protocol.NOTICE
    ]
    assert notices == [f"{checkpoints}: {os.strerror(errno.ELOOP)}"]
    assert b"ready" in b"".join(f.payload for f in frames if f.kind == protocol.LOG)
    assert frames[-1].kind == protocol.EXIT


def test_a_torn_exit_record_is_none(rank: Rank) -> None:
    rank.script("echo ready; exec sleep 60")
    rank.kill_supervisor()
    wait_until(lambda: not rank.processes(), "torchrun to end with its supervisor")
    (rank.folder / "exit.json").write_bytes(b"\0" * 180)
    [*_, last] = rank.follow()
    told = json.loads(last.payload)
    assert (last.kind, told["known"], told["rebooted"]) == (protocol.LOST, True, False)
    assert rank.stop()["left"] == []


def test_what_keeps_all_streams_from_being_sent_is_said_in_the_last_frame(
    rank: Rank,
) -> None:
    rank.prepare()
    frames = follow(
        rank.host,
        10.0,
        folder=rank.at,
        token=rank.token,
        offsets={99: 0},
        heartbeat_seconds=0.1,
    )
    with pytest.raises(StreamFault, match="KeyError: 99"):
        list(frames)


# ---- a script that writes what is UGRO's ----


def test_an_exit_record_that_a_script_has_forged_is_not_its_end(rank: Rank) -> None:
    rank.script(
        'echo \'{"code": 0}\' > "$FOLDER/exit.json"; echo ready; sleep 0.5; echo more; exit 3',
        env={"FOLDER": str(rank.folder)},
    )
    frames = list(rank.follow(quiet_seconds=0.05))
    sent = b"".join(f.payload for f in frames if f.kind == protocol.LOG)
    assert sent == b"ready\nmore\n"
    assert json.loads(frames[-1].payload)["code"] == 3


def test_a_folder_in_the_place_of_the_exit_record_gives_way(rank: Rank) -> None:
    rank.run(
        *("sh", "-c", 'mkdir -p "$FOLDER/exit.json/deep"'),
        env={"FOLDER": str(rank.folder)},
    )
    assert json.loads(list(rank.follow())[-1].payload)["code"] == 0
    assert lease_holder(rank.slot) is None


def test_a_script_that_removes_its_jobs_folder_leaves_a_free_node(rank: Rank) -> None:
    rank.run(
        *("sh", "-c", 'sleep 0.5; rm -r "$FOLDER"'), env={"FOLDER": str(rank.folder)}
    )
    wait_until(lambda: lease_holder(rank.slot) is None, "the lease to be free")
    wait_until(lambda: not rank.processes(), "the supervisor to leave")


@pytest.mark.parametrize(
    "forged",
    [{}, {"pid": "1; true"}, {"pid": None}, {"pid": 1, "start_time": []}],
)
def test_what_a_script_says_of_its_supervisor_hinders_no_stop(
    rank: Rank, forged: dict[str, Any]
) -> None:
    rank.script("echo ready; exec sleep 60")
    write_json(str(rank.folder / "supervisor.json"), forged)
    assert rank.stop(grace_seconds=0.1)["left"] == []
    assert list(rank.follow())[-1].kind in {protocol.LOST, protocol.EXIT}


@pytest.mark.parametrize(
    "forged",
    [
        {},
        {"grace_seconds": "soon", "reason": "reset"},
        {"grace_seconds": 10**400, "reason": "reset"},
        {"grace_seconds": 1, "reason": ["reset"]},
        {"grace_seconds": 1, "reason": "reset", "by": 1},
    ],
)
def test_an_order_of_other_types_is_none(rank: Rank, forged: dict[str, Any]) -> None:
    rank.script("echo ready; exec sleep 60")
    write_json(str(rank.folder / "stop.json"), forged)
    os.kill(rank.supervisor, signal.SIGTERM)
    record = rank.ended()
    assert record["interrupted"] == signal.SIGTERM
    assert record["stopped"] is None


@pytest.mark.parametrize(
    "noted", [None, 7, [7], [[]], [["1", "2", "x:y:z"]], [[1, 2, 3]], ["x"]]
)
def test_nonsense_in_what_a_supervisor_remembers_is_passed_over(
    rank: Rank, noted: Any
) -> None:
    rank.script("echo ready; exec sleep 60")
    memory = {"boot_id": boot_id(), "processes": noted}
    write_json(memory_path(rank.slot), memory)
    assert len(rank.processes()) == 3
    assert rank.stop(grace_seconds=0.1)["left"] == []


def test_a_token_that_is_none_is_no_process(rank: Rank) -> None:
    rank.script("echo ready; exec sleep 60")
    noted = [rank.supervisor, start_time(rank.supervisor), "x"]
    memory = {"boot_id": boot_id(), "processes": [noted]}
    write_json(memory_path(rank.slot), memory)
    assert len(rank.processes()) == 3


@pytest.mark.parametrize("words", [{}, {"process": []}, {"holder": 1}])
def test_nonsense_in_what_a_holder_of_a_lease_tells_is_passed_over(
    rank: Rank, words: dict[str, Any]
) -> None:
    rank.script("echo ready; exec sleep 60")
    [path] = (rank.home / ".ugro").glob("on-*/lease-*.json")
    write_json(str(path), {"process": identity(rank.supervisor), **words})
    assert lease_holder(rank.slot) == {"pid": rank.supervisor}


# ---- processes that hide ----

HIDERS = {
    "an empty environment": "env -i sh -c 'exec sleep 60' & ",
    "a session of its own": "env -i setsid sh -c 'exec sleep 60' & ",
    "a daemon": "env -i setsid sh -c 'sh -c \"exec sleep 60\" &' ",
    "deaf": "env -i setsid sh -c 'trap \"\" TERM INT HUP; while :; do sleep 1; done' & ",
    "stopped": "env -i setsid sh -c 'kill -STOP $$; exec sleep 60' & ",
}


def noted(rank: Rank) -> int:
    """Give how many processes the supervisor has written down."""
    path = rank.home / f".ugro/on-{os.uname().nodename}/processes-{rank.slot}.json"
    return len((read_json(str(path)) or {"processes": []})["processes"])


hiding = pytest.mark.parametrize("hider", HIDERS.values(), ids=list(HIDERS))


@hiding
def test_what_hides_is_seen_while_the_rank_runs(rank: Rank, hider: str) -> None:
    rank.script(f"{hider}\necho ready; sleep 60")
    wait_until(lambda: len(rank.processes()) >= 4, "the hidden process to be seen")
    assert all(process.token == rank.token for process in rank.processes())
    assert rank.stop(1.0)["left"] == []
    assert rank.processes() == []


@hiding
def test_what_hides_ends_with_the_script_that_left_it(rank: Rank, hider: str) -> None:
    rank.script(f"{hider}\necho ready; sleep 0.3; exit 0")
    assert rank.ended()["code"] == 0
    wait_until(lambda: not rank.processes(), "nothing to be left")
    assert not (
        rank.home / f".ugro/on-{os.uname().nodename}/processes-{rank.slot}.json"
    ).exists()


@pytest.mark.parametrize("hider", [HIDERS["a daemon"], HIDERS["deaf"]])
def test_what_goes_on_after_a_rank_that_succeeded_is_named_and_ended(
    rank: Rank, hider: str
) -> None:
    rank.script(f"{hider}\necho ready; sleep 0.3; exit 0")
    outlived = rank.ended()["outlived"]
    assert outlived
    assert all("sleep" in one["command"] for one in outlived)
    assert [start_time(one["pid"]) for one in outlived] == [None] * len(outlived)


@pytest.mark.parametrize(
    "script",
    [
        "sleep 0.2 & echo ready; exit 0",
        "sleep 60 & echo ready; exit 3",
        "echo ready; exit 0",
    ],
    ids=["a helper that ends by itself", "a failure", "nothing"],
)
def test_what_ends_with_a_rank_is_not_named(rank: Rank, script: str) -> None:
    rank.script(script)
    assert rank.ended()["outlived"] == []
    wait_until(lambda: not rank.processes(), "nothing to be left")


@hiding
def test_what_hides_is_found_after_its_supervisor_was_killed(
    rank: Rank, hider: str
) -> None:
    rank.script(f"{hider}\necho ready; sleep 60")
    wait_until(lambda: noted(rank) >= 3, "the supervisor to note all but itself")
    rank.kill_supervisor()
    [*_, last] = rank.follow(quiet_seconds=0.05)
    assert last.kind == protocol.LOST
    assert rank.processes() == []
    assert rank.stop()["left"] == []


def test_a_node_with_a_hidden_process_is_not_free(rank: Rank, other: Rank) -> None:
    rank.script("env -i setsid sh -c 'exec sleep 60' & echo ready; sleep 60")
    wait_until(lambda: noted(rank) >= 3, "the supervisor to note all but itself")
    hidden = [one for one in rank.processes() if one.command == "sleep 60"]
    rank.kill_supervisor()
    for one in rank.processes():
        if one not in hidden:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
    with pytest.raises(NodesBusy, match=rank.job):
        other.prepare()
    ask(rank.host, Reset(slot=rank.slot, grace_seconds=1.0, by="ada@home"))
    assert rank.processes() == []
    other.prepare()


def test_a_process_with_a_remembered_pid_that_is_another_one_is_left_alone(
    rank: Rank,
) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        memory = {
            "boot_id": boot_id(),
            "processes": [[stranger.pid, "1", rank.token]],
        }
        path = rank.home / f".ugro/on-{os.uname().nodename}/processes-{rank.slot}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(str(path), memory)
        assert rank.processes() == []
        ask(rank.host, Reset(slot=rank.slot, grace_seconds=1.0, by="ada@home"))
        assert stranger.poll() is None
        stranger.kill()
