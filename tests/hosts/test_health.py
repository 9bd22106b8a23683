"""`inv health` on the lab: every check is made to fail for real, and names its cause and its fix."""

import json
import os
import time
from pathlib import Path

import pytest

from lab import Lab, LabHost
from tests.hosts.helpers import (
    Document,
    background,
    cluster_file,
    faults,
    health,
    inv,
    listening,
    made_python,
    ssh_config,
    ugro,
    value,
)
from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.health.check import check

TORCH_VERSION = "2.13.0"


@pytest.fixture(scope="session")
def cuda_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that finds a GPU, as far as it is asked."""
    stand_in = "class cuda:\n    is_available = staticmethod(lambda: True)\n"
    return made_python(tmp_path_factory.mktemp("cuda") / "env", stand_in)


# ---- fit ----


def test_a_fit_cluster(home: Lab, hosts: list[LabHost]) -> None:
    done = inv(home, "health")
    assert (done.returncode, done.stderr) == (0, "")
    for host in hosts:
        assert f"✓  {host.name}  {host.address}" in done.stdout
    assert "lab: fit, 3 nodes" in done.stdout


def test_the_answer_in_json(home: Lab, hosts: list[LabHost]) -> None:
    code, answer = health()
    assert (code, answer["fit"], answer["cluster"]) == (0, True, "lab")
    assert [(n["node"], n["rank"], n["address"]) for n in answer["nodes"]] == [
        (host.name, rank, host.address) for rank, host in enumerate(hosts)
    ]
    for node in answer["nodes"]:
        assert node["reachable"]
        assert 0 < node["round_trip_seconds"] < 30
        assert abs(node["clock_offset_seconds"]) <= 0.1 + node["round_trip_seconds"]
        names = [check["name"] for check in node["checks"]]
        assert {"environment", "address", "own name", "disk", "rsync", "clock"} <= set(
            names
        )
        assert all(check["ok"] for check in node["checks"])
    assert {"same Python", "same torch", "clock spread"} <= {
        check["name"] for check in answer["across"]
    }


def test_the_nodes_own_facts_are_told(home: Lab, hosts: list[LabHost]) -> None:
    _, answer = health()
    for host, node in zip(hosts, answer["nodes"], strict=True):
        assert TORCH_VERSION in value(answer, host.name, "environment")
        assert f"{host.address} on {host.interface}" in value(
            answer, host.name, "address"
        )
        assert node["facts"]["boot_id"] == host.boot_id


def test_a_choice_of_nodes(home: Lab) -> None:
    code, answer = health("--nodes", "lab2,lab1")
    assert code == 0
    assert [(node["node"], node["rank"]) for node in answer["nodes"]] == [
        ("lab1", 0),
        ("lab2", 1),
    ]


def test_an_unknown_node_is_an_error_of_usage(home: Lab) -> None:
    done = ugro("health", "--nodes", "lab0,lba1")
    assert done.returncode == 2
    assert "Did you mean lab1?" in done.stderr


def test_the_last_result_is_kept(home: Lab) -> None:
    _, answer = health()
    kept = json.loads((home.experiments / "cluster_state.json").read_text())
    assert kept["probed_at"] == answer["probed_at"]
    assert kept["nodes"] == answer["nodes"]


def test_verbose_shows_what_passed(home: Lab) -> None:
    assert "✓ lab2: rsync: /usr/bin/rsync" in ugro("health", "--verbose").stdout


# ---- not reached ----


@pytest.mark.usefixtures("one_node_is_away")
def test_a_node_that_is_down_does_not_hide_the_others(
    home: Lab, hosts: list[LabHost], tmp_path: Path
) -> None:
    def change(document: Document, _: list[Document]) -> None:
        document["timeouts"] = {"connect_seconds": 2}

    impatient = cluster_file(home, tmp_path, change)
    hosts[1].cut()
    begun = time.monotonic()
    done = ugro("health", cluster=impatient)
    assert time.monotonic() - begun < 30, "as long as TCP itself would try"
    assert done.returncode == 5
    assert "✗ lab1: reachable:" in done.stdout
    assert "no answer" in done.stdout
    assert [line[:7] for line in done.stdout.splitlines()[1:4]] == [
        "✓  lab0",
        "✗  lab1",
        "✓  lab2",
    ]


@pytest.mark.usefixtures("one_node_is_away")
@pytest.mark.parametrize(
    ("index", "others"),
    [(0, ["lab1", "lab2"]), (1, ["lab0", "lab2"])],
    ids=["master", "worker"],
)
def test_only_the_node_that_refuses_is_at_fault(
    home: Lab, hosts: list[LabHost], index: int, others: list[str]
) -> None:
    hosts[index].stop_sshd()
    code, answer = health()
    assert code == 5
    assert ("lab" + str(index), "reachable") in faults(answer)
    assert [node["node"] for node in answer["nodes"] if node["reachable"]] == others


@pytest.mark.usefixtures("one_node_is_away")
def test_without_python_on_the_node_the_cluster_file_can_name_one(
    home: Lab, tmp_path: Path
) -> None:
    def change(_: Document, nodes: list[Document]) -> None:
        nodes[1]["python"] = "/opt/none/bin/python3"

    code, answer = health(cluster=cluster_file(home, tmp_path, change))
    assert code == 5
    found = faults(answer)["lab1", "reachable"]
    assert "/opt/none/bin/python3" in found
    assert "`python` of lab1" in found


# ---- the environment ----


def with_python(lab: Lab, folder: Path, python: str, **more: object) -> Path:
    def change(_: Document, nodes: list[Document]) -> None:
        nodes[1]["environment"] = {"manager": "existing", "python": python, **more}

    return cluster_file(lab, folder, change)


def test_an_environment_that_is_not_there(home: Lab, tmp_path: Path) -> None:
    code, answer = health(cluster=with_python(home, tmp_path, "/opt/none/bin/python"))
    assert code == 5
    found = faults(answer)["lab1", "environment"]
    assert "/opt/none/bin/python: No such file or directory" in found
    assert "environment.python of lab1" in found


def test_an_environment_without_torch(home: Lab, tmp_path: Path) -> None:
    python = made_python(tmp_path / "env")
    code, answer = health(cluster=with_python(home, tmp_path, str(python)))
    assert code == 5
    assert f"{python} has no torch" in faults(answer)["lab1", "environment"]


def test_an_environment_that_is_broken(home: Lab, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho libpython3.11.so.1.0: cannot open shared object file >&2\nexit 127\n"
    )
    python.chmod(0o755)
    code, answer = health(cluster=with_python(home, tmp_path, str(python)))
    assert code == 5
    assert "libpython3.11.so.1.0" in faults(answer)["lab1", "environment"]


@pytest.mark.parametrize("talk", ["welcome", "{}", "[1]"])
def test_an_environment_that_answers_nonsense(
    home: Lab, tmp_path: Path, talk: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{talk}'\n")
    python.chmod(0o755)
    code, answer = health(cluster=with_python(home, tmp_path, str(python)))
    assert code == 5
    assert ("lab1", "environment") in faults(answer)


@pytest.mark.parametrize(
    "promise",
    [{"torch_version": "2.12"}, {"python_version": "3.1"}, {"cuda_version": "12.8"}],
)
def test_another_version_than_promised(
    home: Lab, tmp_path: Path, promise: dict[str, str]
) -> None:
    python = training_python(home)
    code, answer = health(
        "--nodes", "lab1", cluster=with_python(home, tmp_path, python, **promise)
    )
    assert code == 5
    (wanted,) = promise.values()
    assert (
        f"the cluster file says {wanted_name(promise)} {wanted}"
        in faults(answer)["lab1", "environment"]
    )


def training_python(lab: Lab) -> str:
    """The training environment that the lab's cluster file names."""
    return load_cluster(str(lab.cluster_file)).environment.interpreter("~/ugro")


def wanted_name(promise: dict[str, str]) -> str:
    return {
        "torch_version": "torch",
        "python_version": "Python",
        "cuda_version": "CUDA",
    }[next(iter(promise))]


# ---- the network ----


def test_a_port_that_is_taken_is_no_fault_while_another_is_free(
    home: Lab, hosts: list[LabHost]
) -> None:
    with listening(hosts[0], 29500):
        done = ugro("health")
        _, answer = health()
    assert done.returncode == 0
    assert "29500 is taken, 29501 serves instead" in done.stdout
    assert faults(answer) == {}


@pytest.mark.usefixtures("one_node_is_away")
def test_an_address_that_no_interface_has(
    home: Lab, hosts: list[LabHost], tmp_path: Path
) -> None:
    wrong = home.subnet.replace(".0/24", ".77")
    own = home.ssh_config.read_text().splitlines()
    ssh_config(home, f"Host {wrong}", f"  HostName {hosts[1].address}", *own)

    def change(_: Document, nodes: list[Document]) -> None:
        nodes[1]["ip"] = wrong

    code, answer = health(cluster=cluster_file(home, tmp_path, change))
    assert code == 5
    assert list(faults(answer)) == [("lab1", "address")]
    found = faults(answer)["lab1", "address"]
    assert f"no interface has {wrong}" in found
    assert hosts[1].address in found


@pytest.mark.needs("rsync")
def test_rsyncs_own_connection_is_tried_until_it_has_worked(
    home: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "bin"
    folder.mkdir()
    broken = folder / "ssh"
    broken.write_text(
        "#!/bin/sh\n"
        'PATH=${PATH#*:}\n[ "$1" = -G ] && exec ssh "$@"\n'
        "echo it has its day off >&2; exit 255\n"
    )
    path = os.environ["PATH"]

    def troubles(*, works: bool, deep: bool = False) -> list[str]:
        broken.chmod(0o644 if works else 0o755)
        monkeypatch.setenv("PATH", f"{folder}:{path}")
        found = check(load_cluster(str(home.cluster_file)), deep=deep)
        assert found.fit
        return [
            told.value
            for node in found.nodes
            for told in node.checks
            if told.name == "rsync's connection"
        ]

    for value_ in troubles(works=False):
        assert "it has its day off" in value_
        assert "files travel without it, slower" in value_
    assert len(troubles(works=False)) == 3
    assert troubles(works=True) == []
    assert troubles(works=False) == [], "it is known to work"
    assert len(troubles(works=False, deep=True)) == 3
    assert len(troubles(works=False)) == 3, "it is known no longer"


# ---- who is there ----


def test_a_node_whose_lease_is_held_is_shown_as_held_and_is_fit(
    home: Lab, hosts: list[LabHost]
) -> None:
    lease = f"{hosts[2].home}/.ugro/lease-node.json"
    hosts[2].run(["mkdir", "-p", f"{hosts[2].home}/.ugro"])
    hosts[2].run(
        ["tee", lease],
        input='{"job": "exp8_20260101_000000", "controller": "someone@desk"}',
    )
    with background(hosts[2], f"flock {lease} sleep 60"):
        done = ugro("health")
        _, answer = health()
        hosts[2].run(["pkill", "-x", "sleep"])
    hosts[2].run(["rm", lease])
    assert done.returncode == 0
    assert "held by job exp8_20260101_000000 of someone@desk" in done.stdout
    assert [bool(node["held_by"]) for node in answer["nodes"]] == [False, False, True]


# ---- GPUs ----


@pytest.fixture
def promised(
    home: Lab, hosts: list[LabHost], tmp_path: Path, cuda_python: Path
) -> Path:
    """A cluster file that promises lab0 an RTX 4070 with 8 GB, which it has."""
    hosts[0].nvidia_smi("rtx4070")

    def change(document: Document, nodes: list[Document]) -> None:
        nodes[0]["hardware"] = {"gpu_model": "RTX 4070", "vram_gb": 8}
        document["environment"]["python"] = str(cuda_python)

    return cluster_file(home, tmp_path, change)


def test_a_gpu_as_promised(home: Lab, promised: Path) -> None:
    code, answer = health("--nodes", "lab0", cluster=promised)
    assert (code, faults(answer)) == (0, {})
    (card,) = answer["nodes"][0]["gpus"]
    assert card["name"] == "NVIDIA GeForce RTX 4070 Laptop GPU"
    assert {card[f] for f in ("memory.total", "memory.used", "driver_version")} == {
        "8188",
        "12",
        "580.95.05",
    }
    assert (card["utilization.gpu"], card["temperature.gpu"], card["power.draw"]) == (
        "0",
        "43",
        "6.84",
    )


def test_a_gpu_in_the_table(home: Lab, promised: Path) -> None:
    done = ugro("health", "--nodes", "lab0", cluster=promised)
    assert "NVIDIA GeForce RTX 4070 Laptop GPU 12/8188 MiB 43 °C" in done.stdout


def test_a_gpu_without_nvidia_smi(
    home: Lab, hosts: list[LabHost], promised: Path
) -> None:
    hosts[0].nvidia_smi(None)
    code, answer = health("--nodes", "lab0", cluster=promised)
    assert code == 5
    assert (
        "RTX 4070 is promised, nvidia-smi says: nvidia-smi: "
        in faults(answer)["lab0", "gpu"]
    )


@pytest.mark.parametrize("recording", ["rtx5070ti", "rtx3070ti"])
def test_another_model_than_promised(
    home: Lab, hosts: list[LabHost], promised: Path, recording: str
) -> None:
    hosts[0].nvidia_smi(recording)
    code, answer = health("--nodes", "lab0", cluster=promised)
    assert code == 5
    found = faults(answer)["lab0", "gpu"]
    assert f"{recording[3:7]} Ti" in found
    assert "the cluster file promises RTX 4070" in found


def test_less_memory_than_promised(
    home: Lab, hosts: list[LabHost], promised: Path
) -> None:
    promised.write_text(promised.read_text().replace("vram_gb: 8", "vram_gb: 12"))
    code, answer = health("--nodes", "lab0", cluster=promised)
    assert code == 5
    assert "12" in faults(answer)["lab0", "gpu"]


def test_a_gpu_that_nobody_promised_is_shown_and_not_checked(
    home: Lab, hosts: list[LabHost]
) -> None:
    hosts[0].nvidia_smi("rtx4070")
    code, answer = health("--nodes", "lab0")
    assert code == 0
    assert len(answer["nodes"][0]["gpus"]) == 1


def test_a_cpu_build_of_torch_does_not_serve_a_gpu(
    home: Lab, hosts: list[LabHost], tmp_path: Path
) -> None:
    hosts[0].nvidia_smi("rtx4070")

    def change(_: Document, nodes: list[Document]) -> None:
        nodes[0]["hardware"] = {"gpu_model": "RTX 4070"}

    code, answer = health(
        "--nodes", "lab0", cluster=cluster_file(home, tmp_path, change)
    )
    assert code == 5
    assert list(faults(answer)) == [("lab0", "cuda")]
    found = faults(answer)["lab0", "cuda"]
    assert "CPU build" in found
    assert "for CUDA" in found
