"""A node of the lab that has turned against its controller, over real SSH: another python3, another rsync, no sshd."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lab import Lab, LabHost
from lab.lab import LOGIN_PATH
from tests.hostile.profiles import examples
from tests.hostile.running import ugro
from tests.hostile.test_hostile_trees import no_way_out
from tests.hosts.helpers import sshd_on
from tests.unit.factories import (
    asked_to_stop,
    make_cluster,
    make_node,
    make_node_plan,
    make_plan_of,
    make_record,
    make_scripts,
)
from ugro_tasks.errors import HostError, UgroError
from ugro_tasks.hosts.fleet import Fleet
from ugro_tasks.hosts.host import Host
from ugro_tasks.hosts.operations import State
from ugro_tasks.hosts.requests import ask
from ugro_tasks.hosts.ssh.host import SshHost
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import JobState
from ugro_tasks.outputs.fetch import fetch_outputs

HERE = Path(__file__).parent
PORT = 2299


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the hosts see too, with programs that are not what they are called."""
    folder = tmp_path_factory.mktemp("evil")
    for name in ("python3", "rsync"):
        program = folder / name
        program.write_text(
            f"#!{sys.executable} -I\n" + (HERE / f"evil_{name}.py").read_text()
        )
        program.chmod(0o755)
    return folder


@pytest.fixture
def turned(
    hosts: list[LabHost], login: Callable[..., Host], evil: Path
) -> Iterator[Host]:
    """The lab's first host, as somebody finds it who logs in where these programs come first on PATH."""
    with sshd_on(hosts[0], PORT, f"{evil}:{LOGIN_PATH}"):
        yield login(ssh_port=PORT)


MODES = [
    "garbage without end",
    "an answer without end",
    "a complaint without end",
    "a byte now and then",
    "tricks",
    "nesting",
    "another answer",
    "nothing",
]


@pytest.mark.parametrize("mode", MODES)
def test_a_login_that_answers_anything_is_a_fault_soon(
    turned: Host, evil: Path, mode: str
) -> None:
    (evil / "mode").write_text(mode)
    begun = time.monotonic()
    with pytest.raises(HostError) as fault:
        ask(turned, State(folder="/x", token="a:b:c"), timeout_seconds=1.5)
    assert time.monotonic() - begun < 20
    assert len(fault.value.text) < 2_000


@pytest.mark.usefixtures("one_node_is_away")
def test_a_health_check_of_such_a_node_is_an_answer_for_all(
    home: Lab, turned: Host, evil: Path, tmp_path: Path
) -> None:
    (evil / "mode").write_text("tricks")
    text = home.cluster_file.read_text().replace("    port: 22", f"    port: {PORT}", 1)
    (tmp_path / "cluster.yaml").write_text(text)
    done = ugro(
        "health",
        "--cluster",
        str(tmp_path / "cluster.yaml"),
        "--verbose",
        folder=tmp_path,
    )
    assert done.code == 5
    assert "owned" not in done.out
    assert "lab1" in done.out


# ---- rsync ----


@pytest.fixture
def job(tmp_path: Path) -> Experiment:
    """A job that ended, beside another one and something precious."""
    cluster = make_cluster(tmp_path, 1)
    plan = make_plan_of((make_node_plan(0, folder="/tmp/there"),))
    (tmp_path / "precious").write_text("precious")
    made = Experiments(cluster.experiments).create(
        make_record(cluster, plan=plan), make_scripts(tmp_path / "scripts")
    )
    made.save_state(JobState(phase=Phase.FAILED))
    shutil.copytree(made.folder, made.folder.with_name("other_20260120_120000"))
    return made


def evil_tree(folder: Path, job: Experiment) -> None:
    """Links in all directions, UGRO's own names, and programs that belong to the superuser."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sub").mkdir(parents=True)
    links = {
        "absolute": str(job.folder.parent.parent / "precious"),
        "up": "../other_20260120_120000",
        "sub/up": "../../../precious",
        "here": ".",
        "chain": "here/here/here/../../..",
        "sub/config": "../config.json",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    for name in ("config.json", "state.json", "events.jsonl", "stop", "harmless"):
        (folder / name).write_text("forged")
    (folder / "logs").mkdir()
    (folder / "logs" / "training_rank0.log").write_text("forged")
    (folder / "root").write_text("#!/bin/sh\n")
    (folder / "root").chmod(0o4755)
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "device", stat.S_IFCHR | 0o666, os.makedev(1, 8))


@pytest.mark.parametrize("mode", ["tree", "named", "garbage", "tricks"])
def test_an_rsync_that_sends_other_things_changes_nothing_outside_the_jobs_outputs(
    turned: Host, evil: Path, job: Experiment, mode: str
) -> None:
    (evil / "mode").write_text(mode)
    evil_tree(evil / "tree", job)
    own = {path.name: path.read_bytes() for path in job.folder.glob("*.json*")}
    root = job.folder.parent.parent
    others = {
        path: path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and job.folder not in path.parents
    }
    plan = job.record().plan
    assert plan
    node_plan = msgspec.structs.replace(plan.nodes[0], node=turned.node.name)
    fleet = Fleet.from_connections([turned])
    for _ in range(2):
        for error in fetch_outputs(job, [node_plan], fleet):
            assert isinstance(error, UgroError)
            assert len(error.text) < 2_000
        no_way_out(job.folder)
        assert {
            path.name: path.read_bytes() for path in job.folder.glob("*.json*")
        } == own
        assert not asked_to_stop(job)
        assert not job.log(0).exists()
        assert {path: path.read_bytes() for path in others} == others


# ---- not even an sshd ----


class Listener:
    """Takes one connection after the other and says the same to each."""

    def __init__(self) -> None:
        self.says: list[bytes] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.server.accept()
                with peer, contextlib.suppress(OSError):
                    peer.settimeout(1)
                    for piece in self.says:
                        peer.sendall(piece)
                    peer.shutdown(socket.SHUT_WR)
                    while peer.recv(1 << 16):
                        pass


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.server.close()


BANNER = b"SSH-2.0-OpenSSH_9.0\r\n"
KEXINIT = (
    b"\x14"
    + bytes(16)
    + b"".join(
        len(names).to_bytes(4, "big") + names
        for names in [
            b"curve25519-sha256",
            b"ssh-ed25519",
            b"aes128-ctr",
            b"aes128-ctr",
            b"hmac-sha2-256",
            b"hmac-sha2-256",
            b"none",
            b"none",
            b"",
            b"",
        ]
    )
    + bytes(5)
)


def packet(payload: bytes) -> bytes:
    padding = 8 - (len(payload) + 5) % 8
    padding += 8 if padding < 4 else 0
    return (
        (len(payload) + padding + 1).to_bytes(4, "big")
        + bytes([padding])
        + payload
        + bytes(padding)
    )


@examples(25)
@given(
    banner=st.sampled_from(
        [
            BANNER,
            BANNER,
            b"SSH-1.5-old\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
            b"\x1b[2J\r\n" * 200,
            b"",
            b"x" * 100_000,
        ]
    ),
    packets=st.lists(
        st.binary(max_size=60).map(packet)
        | st.just(packet(KEXINIT))
        | st.binary(max_size=40),
        max_size=3,
    ),
)
@example(banner=BANNER, packets=[packet(KEXINIT), packet(b"\x1f" + bytes(100))])
@example(banner=BANNER, packets=[b"\xff" * 100])
@example(
    banner=BANNER, packets=[packet(b"\x01" + bytes(4) + b"\x00\x00\x00\x05\x1b[2Jx")]
)
@example(banner=BANNER, packets=[packet(KEXINIT[:-3])])
@example(banner=BANNER, packets=[packet(b"\x14")])
def test_whatever_listens_on_a_port_is_a_host_error(
    listener: Listener, tmp_path: Path, banner: bytes, packets: list[bytes]
) -> None:
    listener.says = [banner, *packets]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        host = SshHost(
            make_node(address="127.0.0.1", ssh_port=listener.port, user="x"), 0.5
        )
        with pytest.raises(HostError) as fault:
            host.open()
        host.close()
    assert len(fault.value.text) < 2_000
