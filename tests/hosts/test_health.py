"""`inv health` on the lab: every check is made to fail for real, and names its cause and its fix."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hosts.helpers import (
    Document,
    background,
    cluster_file,
    covered,
    faults,
    health,
    inv,
    listening,
    mounted,
    ssh_config,
    sshd_on,
    ugro,
    value,
)
from tests.lab import Lab, LabHost
from ugro_tasks.cluster_file import load_cluster
from ugro_tasks.experiments import Experiments

TORCH_VERSION = "2.13.0"


def made_python(folder: Path, torch: str = "") -> Path:
    """An environment's python; with `torch`, the words of a stand-in torch that it can import."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    if torch:
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "torch").mkdir()
        (packages / "torch" / "__init__.py").write_text(torch)
        (packages / "torch" / "version.py").write_text(f"__version__ = '{TORCH_VERSION}'\ncuda = '12.8'\n")
    return folder / "bin" / "python"


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
        assert 0 < node["round_trip_seconds"] < 1
        assert abs(node["clock_offset_seconds"]) < 1
        names = [check["name"] for check in node["checks"]]
        assert {"environment", "address", "own name", "disk", "rsync", "clock"} <= set(names)
        assert all(check["ok"] for check in node["checks"])
    assert {"same Python", "same torch", "clock spread"} <= {check["name"] for check in answer["across"]}


def test_the_nodes_own_facts_are_told(home: Lab, hosts: list[LabHost]) -> None:
    _, answer = health()
    for host, node in zip(hosts, answer["nodes"], strict=True):
        assert TORCH_VERSION in value(answer, host.name, "environment")
        assert f"{host.address} on {host.interface}" in value(answer, host.name, "address")
        assert node["facts"]["boot_id"] == host.boot_id


def test_a_choice_of_nodes(home: Lab) -> None:
    code, answer = health("--nodes", "lab2,lab1")
    assert code == 0
    assert [(node["node"], node["rank"]) for node in answer["nodes"]] == [("lab1", 0), ("lab2", 1)]


def test_an_unknown_node_is_an_error_of_usage(home: Lab) -> None:
    done = ugro("health", "--nodes", "lab0,lba1")
    assert done.returncode == 2
    assert "Did you mean lab1?" in done.stderr


def test_the_last_result_is_kept(home: Lab) -> None:
    _, answer = health()
    kept = json.loads(Experiments(home.experiments).cluster_state.read_text())
    assert kept["probed_at"] == answer["probed_at"]
    assert kept["nodes"] == answer["nodes"]


def test_verbose_shows_what_passed(home: Lab) -> None:
    assert "✓ lab2: rsync: /usr/bin/rsync" in ugro("health", "--verbose").stdout


# ---- not reached ----


def test_a_node_that_is_down_does_not_hide_the_others(
    home: Lab, hosts: list[LabHost], tmp_path: Path
) -> None:
    def change(document: Document, _: list[Document]) -> None:
        document["timeouts"] = {"connect_seconds": 2}

    impatient = cluster_file(home, tmp_path, change)
    hosts[1].cut()
    begun = time.monotonic()
    done = ugro("health", cluster=impatient)
    assert time.monotonic() - begun < 2 + 1
    assert done.returncode == 5
    assert "✗ lab1: reachable:" in done.stdout
    assert "no answer" in done.stdout
    assert [line[:7] for line in done.stdout.splitlines()[1:4]] == ["✓  lab0", "✗  lab1", "✓  lab2"]


@pytest.mark.parametrize(
    ("index", "others"), [(0, ["lab1", "lab2"]), (1, ["lab0", "lab2"])], ids=["master", "worker"]
)
def test_only_the_node_that_refuses_is_at_fault(
    home: Lab, hosts: list[LabHost], index: int, others: list[str]
) -> None:
    hosts[index].stop_sshd()
    code, answer = health()
    assert code == 5
    assert ("lab" + str(index), "reachable") in faults(answer)
    assert [node["node"] for node in answer["nodes"] if node["reachable"]] == others


def test_an_unknown_key_points_to_init(home: Lab) -> None:
    home.known_hosts.write_text("")
    code, answer = health()
    assert code == 5
    assert set(faults(answer)) == {(f"lab{i}", "reachable") for i in range(3)}
    assert all("inv init" in fault for fault in faults(answer).values())


def test_without_python_on_the_node_the_cluster_file_can_name_one(home: Lab, tmp_path: Path) -> None:
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
    python.write_text("#!/bin/sh\necho libpython3.11.so.1.0: cannot open shared object file >&2\nexit 127\n")
    python.chmod(0o755)
    code, answer = health(cluster=with_python(home, tmp_path, str(python)))
    assert code == 5
    assert "libpython3.11.so.1.0" in faults(answer)["lab1", "environment"]


@pytest.mark.parametrize("talk", ["welcome", "{}", "[1]"])
def test_an_environment_that_answers_nonsense(home: Lab, tmp_path: Path, talk: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{talk}'\n")
    python.chmod(0o755)
    code, answer = health(cluster=with_python(home, tmp_path, str(python)))
    assert code == 5
    assert ("lab1", "environment") in faults(answer)


@pytest.mark.parametrize(
    "promise", [{"torch_version": "2.12"}, {"python_version": "3.1"}, {"cuda_version": "12.8"}]
)
def test_another_version_than_promised(home: Lab, tmp_path: Path, promise: dict[str, str]) -> None:
    python = training_python(home)
    code, answer = health("--nodes", "lab1", cluster=with_python(home, tmp_path, python, **promise))
    assert code == 5
    (wanted,) = promise.values()
    assert f"the cluster file says {wanted_name(promise)} {wanted}" in faults(answer)["lab1", "environment"]


def training_python(lab: Lab) -> str:
    """The training environment that the lab's cluster file names."""
    return load_cluster(str(lab.cluster_file)).environment.interpreter("~/ugro")


def wanted_name(promise: dict[str, str]) -> str:
    return {"torch_version": "torch", "python_version": "Python", "cuda_version": "CUDA"}[next(iter(promise))]


def test_different_versions_across_the_nodes(home: Lab, tmp_path: Path, cuda_python: Path) -> None:
    code, answer = health(cluster=with_python(home, tmp_path, str(cuda_python)))
    assert code == 5
    found = faults(answer)["cluster", "same torch"]
    assert f"lab1 {TORCH_VERSION}" in found
    assert "lab0" in found
    assert "same versions" in found


# ---- the network ----


def test_a_firewall_before_the_master(home: Lab, hosts: list[LabHost]) -> None:
    hosts[0].firewall(29500)
    code, answer = health()
    assert code == 5
    found = faults(answer)
    assert set(found) == {("lab1", "master port"), ("lab2", "master port")}
    assert f"{hosts[0].address}:29500" in found["lab1", "master port"]
    assert f"sudo ufw allow from {hosts[1].address}" in found["lab1", "master port"]


def test_a_port_that_is_taken_is_no_fault_while_another_is_free(home: Lab, hosts: list[LabHost]) -> None:
    with listening(hosts[0], 29500):
        done = ugro("health")
        _, answer = health()
    assert done.returncode == 0
    assert "29500 is taken, 29501 serves instead" in done.stdout
    assert faults(answer) == {}


def test_an_address_that_no_interface_has(home: Lab, hosts: list[LabHost], tmp_path: Path) -> None:
    wrong = home.subnet.replace(".0/24", ".77")
    own = home.ssh_config.read_text().splitlines()
    ssh_config(home, f"Host {wrong}", f"  HostName {hosts[1].address}", *own)

    def change(_: Document, nodes: list[Document]) -> None:
        nodes[1]["ip"] = wrong

    code, answer = health(cluster=cluster_file(home, tmp_path, change))
    assert code == 5
    found = faults(answer)["lab1", "address"]
    assert f"no interface has {wrong}" in found
    assert hosts[1].address in found


def test_an_address_that_no_interface_has_is_one_fault(
    home: Lab, hosts: list[LabHost], tmp_path: Path
) -> None:
    wrong = home.subnet.replace(".0/24", ".77")
    own = home.ssh_config.read_text().splitlines()
    ssh_config(home, f"Host {wrong}", f"  HostName {hosts[1].address}", *own)

    def change(_: Document, nodes: list[Document]) -> None:
        nodes[1]["ip"] = wrong

    _, answer = health(cluster=cluster_file(home, tmp_path, change))
    assert list(faults(answer)) == [("lab1", "address")]


@pytest.mark.parametrize("resolved", [None, "127.0.1.1"])
def test_how_a_node_resolves_its_own_name_is_told_and_no_fault(
    home: Lab, hosts: list[LabHost], resolved: str | None
) -> None:
    own = f"{resolved} lab1\n" if resolved else ""
    with covered(hosts[1], "/etc/hosts", f"127.0.0.1 localhost\n{own}"):
        code, answer = health()
    assert code == 0
    assert value(answer, "lab1", "own name").startswith(f"lab1 is {resolved or 'not resolved'}")


def test_another_mtu_than_the_others(home: Lab, hosts: list[LabHost]) -> None:
    link = ["ip", "link", "set", "dev", hosts[1].interface, "mtu"]
    hosts[1].run([*link, "1400"])
    try:
        code, answer = health()
    finally:
        hosts[1].run([*link, "1500"])
    assert code == 5
    assert "lab1 1400" in faults(answer)["cluster", "same MTU"]


# ---- the machine ----


@pytest.fixture
def project(home: Lab, hosts: list[LabHost]) -> str:
    """The project folder on lab1, which is there."""
    path = home.project.replace("~", hosts[1].home, 1)
    hosts[1].run(["mkdir", "-p", path])
    return path


def test_a_disk_that_cannot_be_written(home: Lab, hosts: list[LabHost], project: str) -> None:
    with mounted(hosts[1], "-t", "tmpfs", "-o", "ro,size=9g", "lab", project):
        code, answer = health()
    assert code == 5
    found = faults(answer)["lab1", "disk"]
    assert "not writable" in found
    assert project in found


def test_a_disk_that_is_nearly_full(home: Lab, hosts: list[LabHost], project: str) -> None:
    with mounted(hosts[1], "-t", "tmpfs", "-o", "size=1g", "lab", project):
        code, answer = health()
    assert code == 5
    found = faults(answer)["lab1", "disk"]
    assert "1.0 GiB free" in found
    assert "free some space on lab1" in found


def test_little_shared_memory(home: Lab, hosts: list[LabHost]) -> None:
    with mounted(hosts[1], "-t", "tmpfs", "-o", "size=8m", "lab", "/dev/shm"):
        code, answer = health()
    assert code == 5
    assert "8 MiB in /dev/shm" in faults(answer)["lab1", "shared memory"]


def test_rsync_is_missing(home: Lab, hosts: list[LabHost], tmp_path: Path) -> None:
    home.known_hosts.write_text(
        home.known_hosts.read_text() + f"[{hosts[1].address}]:2222 {hosts[1].public_key}\n"
    )

    def change(_: Document, nodes: list[Document]) -> None:
        nodes[1] |= {"ssh_port": 2222, "python": "/usr/bin/python3"}

    with sshd_on(hosts[1], 2222, path="/run/lab/bin"):
        code, answer = health(cluster=cluster_file(home, tmp_path, change))
    assert code == 5
    assert list(faults(answer)) == [("lab1", "rsync")]
    assert "sudo apt install rsync" in faults(answer)["lab1", "rsync"]


@pytest.mark.parametrize("late_seconds", [-100, 100])
def test_a_clock_that_is_wrong(home: Lab, tmp_path: Path, late_seconds: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import time\nreal = time.time\ntime.time = lambda: real() + {late_seconds}\n"
    )
    python = tmp_path / "python"
    # Without the flags that would keep sitecustomize out.
    python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={tmp_path} exec python3 "$@"\n')
    python.chmod(0o755)

    def change(_: Document, nodes: list[Document]) -> None:
        nodes[1]["python"] = str(python)

    code, answer = health(cluster=cluster_file(home, tmp_path, change))
    assert code == 5
    told = faults(answer)["lab1", "clock"]
    assert float(told.split()[0]) == pytest.approx(late_seconds, abs=0.5)
    assert "timedatectl" in told
    assert ("cluster", "clock spread") in faults(answer)


# ---- who is there ----


def test_a_node_with_a_job_is_shown_as_held_and_is_fit(home: Lab, hosts: list[LabHost]) -> None:
    with background(hosts[1], "env UGRO_TOKEN=exp7_20260101_000000.5f2c:lab1:node sleep 60") as pid:
        done = ugro("health")
        _, answer = health()
    assert done.returncode == 0
    assert f"held by job exp7_20260101_000000 (pid {pid} there)" in done.stdout
    assert [bool(node["held_by"]) for node in answer["nodes"]] == [False, True, False]


def test_a_lease_without_a_process_of_the_job_holds_a_node(home: Lab, hosts: list[LabHost]) -> None:
    lease = f"{hosts[2].home}/.ugro/lease-node.json"
    hosts[2].run(["mkdir", "-p", f"{hosts[2].home}/.ugro"])
    hosts[2].run(["tee", lease], input='{"job": "exp8_20260101_000000", "controller": "someone@desk"}')
    with background(hosts[2], f"flock {lease} sleep 60"):
        done = ugro("health")
        hosts[2].run(["pkill", "-x", "sleep"])
    hosts[2].run(["rm", lease])
    assert done.returncode == 0
    assert "held by job exp8_20260101_000000 of someone@desk" in done.stdout


def test_a_file_left_by_a_dead_job_holds_nothing(home: Lab, hosts: list[LabHost]) -> None:
    lease = f"{hosts[2].home}/.ugro/lease-node.json"
    hosts[2].run(["tee", lease], input='{"job": "exp8_20260101_000000"}')
    _, answer = health()
    hosts[2].run(["rm", lease])
    assert answer["nodes"][2]["held_by"] is None


# ---- GPUs ----


@pytest.fixture
def promised(home: Lab, hosts: list[LabHost], tmp_path: Path, cuda_python: Path) -> Path:
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
    assert {card[f] for f in ("memory.total", "memory.used", "driver_version")} == {"8188", "12", "580.95.05"}
    assert (card["utilization.gpu"], card["temperature.gpu"], card["power.draw"]) == ("0", "43", "6.84")


def test_a_gpu_in_the_table(home: Lab, promised: Path) -> None:
    done = ugro("health", "--nodes", "lab0", cluster=promised)
    assert "NVIDIA GeForce RTX 4070 Laptop GPU 12/8188 MiB 43 °C" in done.stdout


@pytest.mark.parametrize(
    ("recording", "said"),
    [
        ("fallen_off_bus", "Unable to determine the device handle for GPU0000:01:00.0"),
        ("driver_not_loaded", "couldn't communicate with the NVIDIA driver"),
        (None, "nvidia-smi: "),
    ],
)
def test_a_gpu_that_does_not_answer(
    home: Lab, hosts: list[LabHost], promised: Path, recording: str | None, said: str
) -> None:
    hosts[0].nvidia_smi(recording)
    code, answer = health("--nodes", "lab0", cluster=promised)
    assert code == 5
    found = faults(answer)["lab0", "gpu"]
    assert "RTX 4070 is promised" in found
    assert said in found
    assert "reboot" in found


@pytest.mark.parametrize("recording", ["rtx5070ti", "rtx3070ti"])
def test_another_model_than_promised(home: Lab, hosts: list[LabHost], promised: Path, recording: str) -> None:
    hosts[0].nvidia_smi(recording)
    code, answer = health("--nodes", "lab0", cluster=promised)
    assert code == 5
    found = faults(answer)["lab0", "gpu"]
    assert f"{recording[3:7]} Ti" in found
    assert "the cluster file promises RTX 4070" in found


def test_less_memory_than_promised(home: Lab, hosts: list[LabHost], promised: Path) -> None:
    promised.write_text(promised.read_text().replace("vram_gb: 8", "vram_gb: 12"))
    code, answer = health("--nodes", "lab0", cluster=promised)
    assert code == 5
    assert "12" in faults(answer)["lab0", "gpu"]


def test_memory_that_somebody_else_holds(home: Lab, hosts: list[LabHost], promised: Path) -> None:
    hosts[0].nvidia_smi("vram_held")
    code, answer = health("--nodes", "lab0", cluster=promised)
    assert code == 5
    assert list(faults(answer)) == [("lab0", "vram")]
    found = faults(answer)["lab0", "vram"]
    assert "/usr/bin/blender (pid 4127) holds 6130 MiB" in found
    assert "kill 4127" in found


def test_a_gpu_that_nobody_promised_is_shown_and_not_checked(home: Lab, hosts: list[LabHost]) -> None:
    hosts[0].nvidia_smi("rtx4070")
    code, answer = health("--nodes", "lab0")
    assert code == 0
    assert len(answer["nodes"][0]["gpus"]) == 1


def test_a_cpu_build_of_torch_does_not_serve_a_gpu(home: Lab, hosts: list[LabHost], tmp_path: Path) -> None:
    hosts[0].nvidia_smi("rtx4070")

    def change(_: Document, nodes: list[Document]) -> None:
        nodes[0]["hardware"] = {"gpu_model": "RTX 4070"}

    code, answer = health("--nodes", "lab0", cluster=cluster_file(home, tmp_path, change))
    assert code == 5
    assert list(faults(answer)) == [("lab0", "cuda")]
    found = faults(answer)["lab0", "cuda"]
    assert "CPU build" in found
    assert "for CUDA" in found
