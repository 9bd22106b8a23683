"""`inv sync-envs` on the lab: real pip and uv make real environments on three hosts."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, LabHost
from lab.tools import wait_until
from tests.environments.conftest import UV, Project, give_pixi, sha256, torch_wheel
from tests.hosts.helpers import background, faults, health, mounted, ugro, value
from tests.unit.node.test_jobs import archive
from ugro_tasks.cluster.file import read_cluster_file
from ugro_tasks.cluster.model import Node
from ugro_tasks.environments.recipe import place_of
from ugro_tasks.environments.sync import make_locks
from ugro_tasks.hosts.fleet import connect
from ugro_tasks.hosts.operations import Prepare
from ugro_tasks.hosts.requests import ask, node_zip
from ugro_tasks.hosts.ssh import host as ssh

NAMES = ["lab0", "lab1", "lab2"]
pytestmark = pytest.mark.skipif(
    not UV.exists(), reason="uv is not installed beside this Python"
)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The node of each command that goes out over SSH."""
    sent: list[str] = []
    execute = ssh.SshHost._start

    def counted(host: Any, *args: Any, **more: Any) -> Any:
        sent.append(host.node.name)
        return execute(host, *args, **more)

    monkeypatch.setattr(ssh.SshHost, "_start", counted)
    return sent


def folder_of(host: LabHost, project: Project) -> Path:
    """The project's folder on a host, as the controller sees it."""
    return host.path(str(project.nodes()[0]["paths"]["project"]).removeprefix("~/"))


def builds(host: LabHost, project: Project) -> list[str]:
    """The environments that lie on a host, in use or not."""
    work = folder_of(host, project) / ".venv.sync"
    return sorted(path.name for path in work.glob("env-*"))


def torch_of(host: LabHost, project: Project) -> str:
    """The torch that the host's environment imports."""
    python = f"{host.home}/{str(project.nodes()[0]['paths']['project'])[2:]}/.venv/bin/python"
    return host.run(
        [python, "-c", "import torch.version; print(torch.version.__version__)"]
    ).stdout.strip()


def test_uv_brings_the_same_environment_to_all_nodes(
    project: Project, hosts: list[LabHost], requests: list[str]
) -> None:
    project.manage("uv", name="main")
    project.pin_for_uv("1.0")
    dry = project.sync("--dry-run")
    assert "uv.lock is missing" in dry.stdout
    first = project.synced()
    assert [node["why"] for node in first.values()] == ["not made yet"] * 3
    assert len({json.dumps(node["after"]) for node in first.values()}) == 1
    assert first["lab0"]["after"]["torch"] == "1.0+stand.in"
    # Nothing to do: one request to a node, and no other.
    requests.clear()
    again = project.sync()
    assert (again.returncode, sorted(requests)) == (0, NAMES)
    assert again.stdout.count("as it should be") == 3
    assert health(cluster=project.cluster_file)[0] == 0
    # Other pins: health sees it, a sync mends it, and nothing of the old is left.
    project.pin_for_uv("2.0")
    project.synced("--nodes", "lab1")
    code, answer = health(cluster=project.cluster_file)
    assert (
        code,
        [node for node, check in faults(answer) if check == "environment"],
    ) == (5, ["lab0", "lab2"])
    assert "behind: made from another uv.lock" in value(answer, "lab0", "environment")
    assert "inv sync-envs --nodes lab0" in faults(answer)["lab0", "environment"]
    done = project.sync()
    assert (
        done.returncode,
        done.stdout.count("1.0+stand.in"),
        done.stdout.count("2.0+stand.in"),
    ) == (
        0,
        2,
        3,
    )
    assert [torch_of(host, project) for host in hosts] == ["2.0+stand.in"] * 3
    assert [len(builds(host, project)) for host in hosts] == [1, 1, 1]


def test_venv_takes_only_what_is_pinned(
    project: Project, hosts: list[LabHost], requests: list[str]
) -> None:
    project.manage("venv")
    good, other = (
        project.wheels / f"torch-{version}-py3-none-any.whl"
        for version in ("1.0", "2.0")
    )
    project.pin_for_pip(
        "1.0",
        f"torch==1.0 \\\n    --hash={sha256(other)} \\\n    --hash={sha256(good)}\n",
    )
    first = project.synced()
    assert len({json.dumps(node["after"]) for node in first.values()}) == 1
    assert [torch_of(host, project) for host in hosts] == ["1.0+stand.in"] * 3
    requests.clear()
    assert project.sync().returncode == 0
    assert sorted(requests) == NAMES
    # Somebody serves another file under the same name.
    project.pin_for_pip("1.0", f"torch==1.0 --hash={sha256(other)}\n")
    done = project.sync("--nodes", "lab0")
    assert done.returncode == 10
    assert (
        "lab0: pip would install another file than constraints.txt pins: torch 1.0 with sha256"
        in done.stderr
    )
    assert torch_of(hosts[0], project) == "1.0+stand.in"
    assert len(builds(hosts[0], project)) == 1


def test_what_a_job_uses_on_another_machine_with_the_same_folder_stays(
    project: Project, hosts: list[LabHost], tmp_path: Path
) -> None:
    project.document["workers"] = project.document["workers"][:1]
    project.manage("venv")
    project.pin_for_pip("1.0")
    place = str(project.nodes()[0]["paths"]["project"]).removeprefix("~/")
    with ExitStack() as shared:
        for host in hosts[:2]:
            host.path(place).mkdir(parents=True)
            over = f"{host.home}/{place}"
            host.run(["mount", "--bind", str(tmp_path), over])
            shared.callback(host.run, ["umount", "--lazy", over])
        project.synced()
        cluster = read_cluster_file(project.cluster_file)
        job = prepared(cluster.nodes[1])
        project.pin_for_pip("2.0")
        done = project.sync("--nodes", "lab0")
        assert done.returncode == 6
        assert f"lab0: held by job {job} on lab1 of /home/ada" in done.stderr
        assert torch_of(hosts[1], project) == "1.0+stand.in"
        assert ugro("reset", cluster=project.cluster_file).returncode == 0
        project.synced("--nodes", "lab0")
        assert torch_of(hosts[1], project) == "2.0+stand.in"


def prepared(node: Node) -> str:
    """A job that waits on a node for its start; its id."""
    job = "exp1_20260120_120000"
    zipped = node_zip()
    request = Prepare(
        token=f"{job}.c0ffee00:{node.name}:{node.slot}",
        node=node.name,
        folder=f"{node.project}/jobs/{job}.c0ffee00.{node.name}",
        argv=("true",),
        env={},
        environment_work=place_of(node)["work"],
        node_bytes=len(zipped),
        controller="/home/ada/experiments",
        hold_seconds=60.0,
    )
    host = connect(node, connect_seconds=10.0)
    ask(host, request, blob=zipped + archive({"train.py": ""}))
    host.close()
    return job


def test_a_stale_lock_is_said_once(project: Project, hosts: list[LabHost]) -> None:
    project.manage("uv", name="main")
    project.pin_for_uv("1.0")
    project.synced("--nodes", "lab0,lab1")
    project.pin_for_uv("2.0", lock=False)
    done = project.sync("--nodes", "lab0,lab1")
    assert done.returncode == 10
    assert done.stderr.count("uv.lock does not fit the manifest") == 1
    assert "rebuild the lock on this machine: uv lock" in done.stderr
    assert "behind, or not known: lab0, lab1" in done.stderr
    assert [torch_of(host, project) for host in hosts[:2]] == ["1.0+stand.in"] * 2


@contextmanager
def serving(
    folder: Path, address: str
) -> Iterator[tuple[str, set[str], threading.Event]]:
    """(url, who has asked for a wheel, what must be set before it is sent) of a folder."""
    asked: set[str] = set()
    gate = threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith(".whl"):
                asked.add(self.client_address[0])
                gate.wait(20)
            super().do_GET()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer((address, 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_port}/", asked, gate
    finally:
        gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def in_background(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    return thread, results


def test_a_host_that_is_cut_off_in_the_middle(
    home: Lab, project: Project, hosts: list[LabHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ugro_tasks.environments.sync.SILENCE_SECONDS", 1.5)
    project.manage("uv", name="main")
    project.pin_for_uv("1.0")
    project.synced()
    torch_wheel(project.wheels, "4.0")  # of which no cache knows anything yet
    controller = home.subnet.replace(".0/24", ".1")
    with serving(project.wheels, controller) as (url, asked, gate):
        gate.set()  # for the lock
        project.pin_for_uv("4.0", source=url)
        make_locks(read_cluster_file(project.cluster_file), None, lambda *_: None)
        gate.clear()
        asked.clear()
        thread, results = in_background(project.sync)
        wait_until(lambda: len(asked) == 3, "all hosts to ask for the wheel")
        hosts[1].cut()
        # The others go on; that one ends what it was at, without a word from us.
        threading.Timer(0.5, gate.set).start()
        thread.join(30)
        (done,) = results
        assert done.returncode == 21, done.stderr
        assert "lab1: " in done.stderr
        assert (
            "behind, or not known: lab1; what was in use there stays in use. Up to date: lab0, lab2"
            in done.stderr
        )
        wait_until(
            lambda: not hosts[1].processes(token=b"UGRO_"), "the build to end", 5
        )
        wait_until(
            lambda: len(builds(hosts[1], project)) == 1, "its folder to be removed", 5
        )
        assert [torch_of(host, project) for host in hosts] == [
            "4.0+stand.in",
            "1.0+stand.in",
            "4.0+stand.in",
        ]
        hosts[1].mend()
        again = project.synced()
    assert {name for name, node in again.items() if node["why"]} == {"lab1"}
    assert torch_of(hosts[1], project) == "4.0+stand.in"


def test_a_node_with_a_job_is_left_alone(
    project: Project, hosts: list[LabHost]
) -> None:
    project.manage("uv", name="main")
    project.pin_for_uv("1.0")
    with background(
        hosts[1], "env UGRO_TOKEN=exp7_20260101_000000.5f2c:lab1:node sleep 60"
    ):
        done = project.sync("--nodes", "lab0,lab1")
    assert done.returncode == 6
    assert "lab1: held by job exp7_20260101_000000" in done.stderr
    assert "a running job still imports from it" in done.stderr
    assert [len(builds(host, project)) for host in hosts] == [1, 0, 0]


def test_a_node_is_held_while_its_environment_is_built(
    home: Lab, project: Project, hosts: list[LabHost]
) -> None:
    project.manage("uv", name="main")
    torch_wheel(project.wheels, "5.0")
    controller = home.subnet.replace(".0/24", ".1")
    with serving(project.wheels, controller) as (url, asked, gate):
        gate.set()
        project.pin_for_uv("5.0", source=url)
        project.synced("--nodes", "lab1")
        gate.clear()
        asked.clear()
        thread, results = in_background(lambda: project.sync("--nodes", "lab0"))
        wait_until(lambda: bool(asked), "the host to ask for the wheel")
        _, answer = health("--nodes", "lab0", cluster=project.cluster_file)
        gate.set()
        thread.join(30)
    assert answer["nodes"][0]["held_by"].startswith("held by job sync-envs of ")
    assert results[0].returncode == 0


def test_a_disk_that_is_full(project: Project, hosts: list[LabHost]) -> None:
    torch_wheel(project.wheels, "3.0", ballast=9 << 20)
    project.manage("uv", name="main")
    project.pin_for_uv("3.0")
    folder = folder_of(hosts[1], project)
    there = f"{hosts[1].home}/{folder.relative_to(hosts[1].path(''))}"
    hosts[1].run(["mkdir", "-p", there])
    with mounted(hosts[1], "-t", "tmpfs", "-o", "size=4m", "lab", there):
        done = project.sync("--nodes", "lab1")
        assert done.returncode == 10
        assert "lab1: its disk is full" in done.stderr
        assert "free some space on lab1" in done.stderr
        assert builds(hosts[1], project) == []


def test_a_node_without_uv(project: Project, hosts: list[LabHost]) -> None:
    hosts[1].path(".local/bin/uv").unlink()
    project.manage("uv", name="main")
    project.pin_for_uv("1.0")
    done = project.sync("--nodes", "lab0,lab1")
    assert done.returncode == 10
    assert "lab1: uv was not found" in done.stderr
    assert "Up to date: lab0" in done.stderr


@pytest.mark.parametrize("manager", ["uv", "venv"])
def test_a_node_without_internet(
    project: Project, hosts: list[LabHost], manager: str
) -> None:
    own = project.root / "only-here"
    project.wheels.rename(own)
    project.wheels = own
    project.manage(manager, **({"name": "main"} if manager == "uv" else {}))
    project.pin_for_uv("1.0")
    project.pin_for_pip("1.0")
    # What the controller can reach, the host cannot.
    hosts[0].run(["mkdir", "-p", "/tmp/nothing"])
    with mounted(hosts[0], "--bind", "/tmp/nothing", str(own)):
        without = project.sync("--nodes", "lab0")
        assert without.returncode == 10
        project.synced("--nodes", "lab0", "--offline")
        assert torch_of(hosts[0], project) == "1.0+stand.in"


# ---- pixi, by a stand-in ----


@pytest.fixture
def by_pixi(project: Project, home: Lab, hosts: list[LabHost]) -> Project:
    """A project with a pixi environment `main`; the stand-in is on all hosts and here."""
    project.manage("pixi", name="main")
    project.pin_for_pixi("1.0")
    for place in (home.home, *(host.path("") for host in hosts)):
        give_pixi(place)
    return project


def pixi_torch(host: LabHost, project: Project) -> str:
    (path,) = folder_of(host, project).glob(
        ".pixi/envs/main/lib/python*/site-packages/torch/version.py"
    )
    return path.read_text().split("'")[1]


def test_pixi_brings_the_same_environment_to_all_nodes(
    by_pixi: Project, hosts: list[LabHost], requests: list[str]
) -> None:
    done = by_pixi.sync()
    assert done.returncode == 0, done.stderr
    assert "making pixi.lock" in done.stderr
    assert [pixi_torch(host, by_pixi) for host in hosts] == ["1.0+stand.in"] * 3
    requests.clear()
    assert by_pixi.sync().returncode == 0
    assert sorted(requests) == NAMES
    assert health(cluster=by_pixi.cluster_file)[0] == 0
    by_pixi.always = ("--nodes", "lab0,lab1")
    # A stale lock.
    by_pixi.pin_for_pixi("2.0")
    done = by_pixi.sync()
    assert done.returncode == 10
    assert done.stderr.count("pixi.lock does not fit the manifest") == 1
    assert "pixi lock" in done.stderr
    # pixi makes its environments in place: what was interrupted is repaired by the next run.
    (by_pixi.root / "pixi.lock").unlink()
    assert {node["after"]["torch"] for node in by_pixi.synced().values()} == {
        "2.0+stand.in"
    }


def test_a_node_without_pixi(by_pixi: Project, hosts: list[LabHost]) -> None:
    hosts[1].remove(".pixi")
    done = by_pixi.sync("--nodes", "lab0,lab1")
    assert done.returncode == 10
    assert "lab1: pixi was not found (looked in ~/.pixi/bin and PATH)" in done.stderr
    assert "the pixi of pip is another program" in done.stderr
    assert "Up to date: lab0" in done.stderr


def test_another_pixi_than_elsewhere(by_pixi: Project, hosts: list[LabHost]) -> None:
    give_pixi(hosts[1].path(""), "0.60.0")
    done = by_pixi.sync("--nodes", "lab0,lab1")
    assert done.returncode == 10
    assert "lab1: pixi 0.60.0 is there, 0.77.0 elsewhere" in done.stderr
    assert "on lab1: pixi self-update --version 0.77.0" in done.stderr
    _, answer = health("--nodes", "lab0,lab1", cluster=by_pixi.cluster_file)
    assert "lab1 0.60.0" in faults(answer)["cluster", "same pixi"]


def test_no_cuda_driver(by_pixi: Project, hosts: list[LabHost]) -> None:
    hosts[0].nvidia_smi("rtx4070")
    by_pixi.pin_for_pixi(
        "1.0", '[{name = "linux-64-cuda", platform = "linux-64", cuda = "12.0"}]'
    )
    done = by_pixi.sync("--nodes", "lab0,lab1")
    assert done.returncode == 10
    assert "lab1: pixi finds no CUDA driver there" in done.stderr
    assert "CONDA_OVERRIDE_CUDA" in done.stderr
    # With a platform for machines without one both get something, and it is said that it is not the same.
    (by_pixi.root / "pixi.lock").unlink()
    both = (
        '[{name = "linux-64-cuda", platform = "linux-64", cuda = "12.0"}, "linux-64"]'
    )
    by_pixi.pin_for_pixi("1.0", both)
    done = by_pixi.sync("--nodes", "lab0,lab1")
    assert done.returncode == 10
    assert "CUDA: lab0 12.9, lab1 none" in done.stderr


def test_no_lock_and_no_pixi_to_make_it(by_pixi: Project, home: Lab) -> None:
    (home.home / ".pixi" / "bin" / "pixi").unlink()
    done = by_pixi.sync()
    assert done.returncode == 11
    assert (
        "pixi.lock is missing, and pixi, which makes it, is not on this machine"
        in done.stderr
    )


def test_a_pixi_node_without_internet(
    by_pixi: Project, home: Lab, hosts: list[LabHost]
) -> None:
    done = by_pixi.sync("--nodes", "lab0", "--offline")
    assert done.returncode == 11
    assert "pixi-pack is not on this machine" in done.stderr
    give_pixi(home.home, "0.77.0", "pixi", "pixi-pack")
    done = by_pixi.sync("--nodes", "lab0", "--offline")
    assert done.returncode == 10
    assert "lab0: pixi-unpack was not found" in done.stderr
    give_pixi(hosts[0].path(""), "0.77.0", "pixi", "pixi-unpack")
    by_pixi.synced("--nodes", "lab0", "--offline")
    assert pixi_torch(hosts[0], by_pixi) == "1.0+stand.in"
    _, answer = health("--nodes", "lab0", cluster=by_pixi.cluster_file)
    assert answer["nodes"][0]["facts"]["environment"]["activate"].endswith(
        "/activate.sh"
    )
