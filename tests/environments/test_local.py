"""Environments on this very machine: building aside, switching, repairing, being refused. Real uv and pip, no lab."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from msgspec.structs import replace

from lab.tools import read_proc, wait_until
from tests.environments.conftest import UV, Project, give_pixi
from tests.hosts.helpers import ugro
from tests.unit.node.test_jobs import archive
from ugro_tasks.cluster.file import read_cluster_file
from ugro_tasks.cluster.local import local_cluster
from ugro_tasks.environments.sync import Progress, Synced, make_locks, sync
from ugro_tasks.hosts.fleet import Fleet
from ugro_tasks.hosts.local import LocalHost
from ugro_tasks.hosts.operations import Prepare, Start
from ugro_tasks.hosts.requests import ask, node_zip
from ugro_tasks.node.processes import of_slot

SLOT = f"test-{os.getpid():x}"
HERE = f"here-{os.getpid():x}"
pytestmark = pytest.mark.skipif(
    not UV.exists(), reason="uv is not installed beside this Python"
)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with one local node, for a user with a home and leases of their own."""
    home = tmp_path / "home"
    (home / ".local" / "bin").mkdir(parents=True)
    (home / ".local" / "bin" / "uv").symlink_to(UV)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    # Two nodes of one address have leases by their names, and these names nobody else has.
    master, other = ({
        "name": f"{name}-{os.getpid():x}", "ip": "127.0.0.1", "transport": "local", "python": sys.executable,
        "paths": {"project": str(tmp_path / name)},
    } for name in ("here", "there"))  # fmt: skip
    made = Project(
        tmp_path / "project",
        {"cluster": {"name": "mine", "master": master}, "workers": [other]},
    )
    made.always = ("--nodes", HERE)
    made.manage("uv", name="main")
    made.pin_for_uv("1.0")
    return made


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """Where the node's environment belongs."""
    return tmp_path / "here" / ".venv"


def torch_of(venv: Path) -> str:
    (path,) = venv.glob("lib/python*/site-packages/torch/version.py")
    return path.read_text().split("'")[1]


def builds(venv: Path) -> list[str]:
    return [path.name for path in venv.with_name(".venv.sync").glob("env-*")]


def made_by_hand(venv: Path) -> None:
    """An environment of the user's own making."""
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / "mine.txt").write_text("precious")


def test_nodes_that_share_an_environment_make_it_once(
    tmp_path: Path, mine: Project
) -> None:
    mine.pin_for_pip("1.0")
    cluster = local_cluster(tmp_path)
    nodes = tuple(
        replace(node, slot=f"{node.slot}-{os.getpid():x}") for node in cluster.nodes
    )
    cluster = replace(cluster, scripts=mine.root / "scripts", nodes=nodes)
    told: list[tuple[str, str]] = []

    def tell(node: str, progress: Progress) -> None:
        told.append((node, progress.phase))

    with Fleet.of(cluster) as fleet:
        first = sync(fleet, cluster, tell)
        again = sync(fleet, cluster, tell)
    made = [
        result
        for result in first.values()
        if isinstance(result, Synced) and result.bytes
    ]
    assert (len(made), len(first)) == (1, 3)
    assert (
        len(
            {
                str(result.after)
                for result in first.values()
                if isinstance(result, Synced)
            }
        )
        == 1
    )
    assert len([node for node, phase in told if phase == "looking at it"]) == 1
    assert [result.why for result in again.values() if isinstance(result, Synced)] == [
        None
    ] * 3
    assert len(list((tmp_path / ".ugro" / "env.sync").glob("env-*"))) == 1


def test_an_environment_that_somebody_made_is_kept(mine: Project, venv: Path) -> None:
    made_by_hand(venv)
    node = mine.synced()[HERE]
    assert node["why"] == "made by somebody else, or a sync was interrupted"
    assert node["kept"] == f"{venv}.before"
    assert (venv.with_name(".venv.before") / "mine.txt").read_text() == "precious"
    assert torch_of(venv) == "1.0+stand.in"


def test_ugros_own_environment_is_left_alone(mine: Project, venv: Path) -> None:
    made_by_hand(venv)
    (venv / "bin" / "ugro").touch()
    done = mine.sync()
    assert done.returncode == 10
    assert f"{venv} is UGRO's own environment" in done.stderr
    assert f"environment.path of {HERE}" in done.stderr
    assert (venv / "mine.txt").exists()


def test_what_was_damaged_is_made_anew(mine: Project, venv: Path) -> None:
    mine.synced()
    (package,) = venv.glob("lib/python*/site-packages/torch")
    shutil.rmtree(package)
    assert (
        mine.synced()[HERE]["why"]
        == "changed since it was made: torch 1.0+stand.in is now gone, CUDA 12.8 is now gone"
    )
    assert torch_of(venv) == "1.0+stand.in"


def test_a_switch_that_was_interrupted_is_undone(mine: Project, venv: Path) -> None:
    # The old one has gone from its place, the new one has not yet come; and half of another build lies about.
    work = venv.with_name(".venv.sync")
    made_by_hand(work / "replaced")
    (work / "env-0123456789ab-1" / "bin").mkdir(parents=True)
    mine.pin_for_uv("9.9", lock=False)
    assert mine.sync().returncode == 10  # it cannot be made: there is no such torch
    mine.pin_for_uv("1.0")
    assert mine.synced()[HERE]["kept"] == f"{venv}.before"
    assert torch_of(venv) == "1.0+stand.in"
    assert len(builds(venv)) == 1
    assert not (work / "replaced").exists()


def test_a_build_that_cannot_be_finished_leaves_what_was_in_use(
    mine: Project, venv: Path
) -> None:
    mine.synced()
    (venv.parents[1] / "home" / ".local" / "bin" / "uv").unlink()
    mine.pin_for_uv("2.0")
    done = mine.sync()
    assert (done.returncode, torch_of(venv), len(builds(venv))) == (
        10,
        "1.0+stand.in",
        1,
    )


def test_a_python_that_is_not_there(mine: Project) -> None:
    mine.pin_for_pip("1.0")
    mine.manage("venv", python_version="3.99")
    done = mine.sync()
    assert done.returncode == 10
    assert f"{HERE}: there is no Python 3.99 on it" in done.stderr
    assert f"environment.python of {HERE}" in done.stderr


def test_a_second_build_waits_for_the_first(mine: Project, venv: Path) -> None:
    work = venv.with_name(".venv.sync")
    work.mkdir(parents=True)
    told: list[str] = []
    waiting = threading.Event()

    def tell(_node: str, progress: Progress) -> None:
        told.append(progress.phase)
        if progress.phase == "waiting for another build":
            waiting.set()

    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Thread(target=free, args=(lock, waiting), daemon=True).start()
        cluster = read_cluster_file(mine.cluster_file)
        with Fleet.of(cluster) as fleet:
            (result,) = sync(fleet, cluster, tell, [HERE]).values()
    assert isinstance(result, Synced)
    assert "waiting for another build" in told
    assert torch_of(venv) == "1.0+stand.in"


def free(lock: IO[str], waiting: threading.Event) -> None:
    waiting.wait(20)
    lock.close()


def slow_uv(tmp_path: Path) -> Callable[[], int]:
    """A uv that never ends takes its place; gives what tells its pid, 0 before it runs."""
    program, told = tmp_path / "home" / ".local" / "bin" / "uv", tmp_path / "pid"
    program.unlink()
    program.write_text(f"#!/bin/sh\necho $$ > {told}\nexec sleep 60\n")
    program.chmod(0o755)
    return lambda: int(told.read_text().strip() or 0) if told.exists() else 0


def build_request(mine: Project, venv: Path, **more: Any) -> bytes:
    place = {
        "manager": "uv",
        "name": "main",
        "folder": str(venv),
        "work": str(venv.with_name(".venv.sync")),
    }
    request = {
        "op": "build_environment", "environment": place, "interpreter": str(venv / "bin" / "python"), "slot": SLOT,
        "slots": [SLOT], "python": None, "digest": "d" * 64, "bad": None, "offline": False, "files": {},
        "token": f"sync-envs.{os.getpid():x}:here:{SLOT}", "controller": "test", "silence_seconds": 20.0, **more,
    }  # fmt: skip
    return json.dumps(request).encode() + b"\n"


@pytest.mark.parametrize("how", ["killed", "controller gone", "controller silent"])
def test_nothing_is_left_of_a_build_whose_end_nobody_sees(
    mine: Project, venv: Path, tmp_path: Path, how: str
) -> None:
    sleeper = slow_uv(tmp_path)
    (tmp_path / "node.zip").write_bytes(node_zip())
    process = subprocess.Popen(
        [sys.executable, "-ES", str(tmp_path / "node.zip")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(
        build_request(
            mine, venv, silence_seconds=1.0 if how == "controller silent" else 20.0
        )
    )
    process.stdin.flush()
    wait_until(lambda: bool(sleeper()), "the build to be under way")
    pid = sleeper()
    if how == "killed":
        process.send_signal(signal.SIGKILL)
    elif how == "controller gone":
        process.stdin.close()
    wait_until(lambda: not read_proc(pid, "cmdline"), "the program to end", 5)
    process.wait(5)
    process.stdin.close()
    process.stdout.close()
    assert how == "killed" or builds(venv) == []
    assert not venv.exists()
    assert of_slot(SLOT) == []


def test_ctrl_c_ends_what_was_under_way(
    mine: Project, venv: Path, tmp_path: Path
) -> None:
    mine.synced()
    mine.pin_for_uv("2.0")
    make_locks(read_cluster_file(mine.cluster_file), [HERE], lambda *_: None)
    pid = slow_uv(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "ugro_tasks.cli.program", "sync-envs", *mine.always],
        env={**os.environ, "UGRO_CLUSTER": str(mine.cluster_file)}, stderr=subprocess.PIPE, text=True, process_group=0,
    ) as command:  # fmt: skip
        wait_until(lambda: bool(pid()), "the build to be under way", 20)
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=20)
    assert command.returncode == 130
    assert "interrupted: environments that were being made are not in use" in err
    wait_until(lambda: not read_proc(pid(), "cmdline"), "the program to end", 5)
    assert torch_of(venv) == "1.0+stand.in"


def test_a_stop_ends_what_a_launch_has_under_way(
    mine: Project, venv: Path, tmp_path: Path
) -> None:
    mine.document["timeouts"] = {"agent_linger_seconds": 1}
    mine.manage("uv", name="main")
    (mine.root / "scripts" / "train.py").write_text("")
    mine.synced()
    mine.pin_for_uv("2.0")
    make_locks(read_cluster_file(mine.cluster_file), [HERE], lambda *_: None)
    pid = slow_uv(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "ugro_tasks.cli.program", "launch", "--name=exp1", "--script=train.py", *mine.always],
        env={**os.environ, "UGRO_CLUSTER": str(mine.cluster_file)}, stderr=subprocess.PIPE, text=True,
    ) as launch:  # fmt: skip
        wait_until(lambda: bool(pid()), "the build to be under way", 20)
        done = ugro("stop", "exp1", cluster=mine.cluster_file)
        assert done.returncode == 0, done.stderr
        _, err = launch.communicate(timeout=10)
    assert launch.returncode == 130, err
    assert not read_proc(pid(), "cmdline")
    (record,) = (mine.root / "experiments").glob("exp1_*/state.json")
    state = json.loads(record.read_text())
    assert state["state"] == "stopped"
    assert state["cause"]["message"].endswith("what was in use stays in use")
    assert torch_of(venv) == "1.0+stand.in"


# ---- pixi's activation ----


def test_a_rank_gets_what_the_activation_sets(
    tmp_path: Path, mine: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    give_pixi(home)
    mine.manage("pixi", name="main")
    mine.pin_for_pixi("1.0")
    mine.synced()
    cluster = read_cluster_file(mine.cluster_file)
    host = LocalHost(cluster.master)
    project = tmp_path / "here"
    activation = [
        str(home / ".pixi/bin/pixi"), "shell-hook", "--json", "--frozen", "--no-install", "--environment", "main",
        "--manifest-path", str(project / "pyproject.toml"),
    ]  # fmt: skip
    token, folder = (
        f"exp1_20260120_120000.c0ffee00:here:test-{os.getpid():x}",
        tmp_path / "job",
    )
    zipped = node_zip()
    request = Prepare(
        token=token,
        node="here",
        folder=str(folder),
        argv=("env",),
        env={"CONDA_PREFIX": "the plan's"},
        activation=tuple(activation),
        node_bytes=len(zipped),
        controller="test",
        hold_seconds=30.0,
    )
    ask(host, request, blob=zipped + archive({"train.py": ""}))
    ask(host, Start(folder=str(folder)))
    wait_until((folder / "exit.json").exists, "the exit record")
    seen = dict(
        line.split("=", 1)
        for line in (folder / "log").read_text().splitlines()
        if "=" in line
    )
    prefix = project / ".pixi/envs/main"
    assert seen["STAND_IN_ACTIVATED"] == f"by a script of {prefix}"
    assert seen["PATH"].startswith(f"{prefix}/bin:")
    assert seen["CONDA_PREFIX"] == "the plan's"
    assert seen["UGRO_TOKEN"] == token
