"""What the owner's documents print of a cluster at work: one session on his three machines shows each fact of it.

The lab's hosts have his names and his cards. The cards are stand-ins that no torch can use, so the cluster file
promises none. What is a file, or needs no cluster, is in tests/unit/test_owners_examples.py, and so is the list of what
is otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from lab import Lab
from lab.ugro import Job, Ugro

ROOT = Path(__file__).parents[2]
# One session for all of them: 20 seconds.
pytestmark = pytest.mark.xdist_group("owners_examples")


class Machine(NamedTuple):
    """One of the owner's machines."""

    name: str
    card: str
    vram_gb: int
    recording: str


MACHINES = [
    Machine("gpu-master", "RTX 5070 Ti", 12, "rtx5070ti"),
    Machine("gpu1", "RTX 4070", 8, "rtx4070"),
    Machine("gpu2", "RTX 3070 Ti", 8, "rtx3070ti"),
]
NAMES = [machine.name for machine in MACHINES]
EACH = pytest.mark.parametrize("machine", MACHINES, ids=NAMES)
RANKS = pytest.mark.parametrize(("rank", "name"), list(enumerate(NAMES)))
# A short training in the owner's words; the other values are those of the lab's cluster file.
LAUNCH = "launch --name quick_test --epochs 2 --lr 1e-3 --verbose"
GIVEN = {
    "job_name": "quick_test",
    "model": "char-transformer",
    "dataset": "shakespeare",
    "epochs": 2,
    "learning_rate": 1e-3,
    "nodes": NAMES,
}


@dataclass
class Session:
    """What each command printed, and what came of it."""

    ugro: Ugro
    addresses: dict[str, str]
    said: dict[str, str]
    job: Job

    def row(self, command: str, name: str) -> str:
        """The row of a machine in a table."""
        rows = [
            line for line in self.said[command].splitlines() if name in line.split()
        ]
        assert rows, f"{command} has no row of {name}"
        return rows[0]


@pytest.fixture(scope="module")
def session(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Look at the machines, train, look at the job; then a machine is away, and then its torch cannot use its card."""
    for host, machine in zip(lab.hosts, MACHINES, strict=True):
        host.reset()
        host.nvidia_smi(machine.recording)
    lab.trust()
    ugro = Ugro(lab, tmp_path_factory.mktemp("owners"), ROOT / "scripts")
    document = yaml.safe_load(ugro.cluster_file.read_text())
    nodes = [document["cluster"]["master"], *document["workers"]]
    for node, name in zip(nodes, NAMES, strict=True):
        node["name"] = name
    ugro.cluster_file.write_text(yaml.safe_dump(document))
    said: dict[str, str] = {}

    def run(command: str, exit_code: int = 0, *more: str) -> None:
        done = ugro.run(*command.split(), *more)
        assert done.returncode == exit_code, done.stdout + done.stderr
        said[command] = done.stdout + done.stderr

    run("health --verbose")
    run(LAUNCH, 0, "--args", "--steps-per-epoch 4")
    for command in (
        "logs quick_test",
        "logs quick_test --rank 1",
        "results quick_test",
        "status",
        "status quick_test",
    ):
        run(command)
    run("logs nothing_of_this_name", 4)
    lab.hosts[1].stop_sshd()
    run("health", 5)
    lab.hosts[1].start_sshd()
    nodes[1]["hardware"] = {"gpu_model": "RTX 4070"}  # which torch is asked for then
    ugro.cluster_file.write_text(yaml.safe_dump(document))
    run("launch --name unfit", 5)
    addresses = {
        name: host.address for name, host in zip(NAMES, lab.hosts, strict=True)
    }
    yield Session(ugro, addresses, said, ugro.job("quick_test"))
    ugro.close()
    for host in lab.hosts:
        host.reset()


# Health


@EACH
def test_health_has_a_row_a_node_with_card_memory_and_readiness(
    session: Session, machine: Machine
) -> None:
    row = session.row("health --verbose", machine.name)
    memory = re.search(r"/(\d+) MiB", row)
    assert row.startswith("✓")
    assert machine.card in row
    assert memory
    assert round(int(memory[1]) / 1024) == machine.vram_gb
    assert row.endswith("free")


@EACH
def test_health_looks_at_the_login_the_card_and_torch(
    session: Session, machine: Machine
) -> None:
    said = session.said["health --verbose"]
    row = session.row("health --verbose", machine.name)
    assert re.search(r" \d+\.\d ms ", row)  # for a request there and back, logged in
    state = json.loads((session.ugro.experiments / "cluster_state.json").read_text())
    (node,) = [node for node in state["nodes"] if node["node"] == machine.name]
    assert machine.card in node["gpus"][0]["name"]
    assert re.search(rf"^✓ {machine.name}: environment: .*, torch 2\.", said, re.M)
    refused = session.said["launch --name unfit"]
    assert (f"{machine.name}: cuda: torch " in refused) == (machine.name == "gpu1")


def test_health_looks_at_the_port_of_the_master_from_each_worker(
    session: Session,
) -> None:
    where = re.escape(f"{session.addresses['gpu-master']}:29500")
    for name in NAMES[1:]:
        line = rf"^✓ {name}: master port: {where} answers$"
        assert re.search(line, session.said["health --verbose"], re.M)


def test_a_node_out_of_reach_is_told_apart_from_the_others(session: Session) -> None:
    marks = {name: session.row("health", name)[0] for name in NAMES}
    assert marks == {"gpu-master": "✓", "gpu1": "✗", "gpu2": "✓"}
    assert "not reachable" in session.row("health", "gpu1")
    assert re.search(r"^✗ gpu1: reachable: .*\n    \S", session.said["health"], re.M)


# Launch


def test_a_launch_tells_what_it_launches_when_asked_for_every_command(
    session: Session,
) -> None:
    said = session.said[LAUNCH]
    for flag in (
        "--model-name char-transformer",
        "--dataset-name shakespeare",
        "--num-epochs 2",
        "--learning-rate 0.001",
        f"--job-id {session.job.folder.name}",
    ):
        assert said.count(flag) == len(MACHINES)


@RANKS
def test_a_launch_tells_the_command_of_each_rank_and_its_place(
    session: Session, rank: int, name: str
) -> None:
    said = session.said[LAUNCH]
    _, _, command = said.partition(f"rank {rank} on {name} ({session.addresses[name]})")
    command = command.splitlines()[1]
    assert "-m torch.distributed.run " in command
    for flag in (
        "--nnodes 3",
        "--nproc-per-node 1",
        f"--node-rank {rank}",
        f"--master-addr {session.addresses['gpu-master']}",
        "--master-port ",
        " train_single_test.py ",
    ):
        assert flag in command


def test_a_launch_checks_then_starts_all_ranks_then_shows_them_then_says_what_next(
    session: Session,
) -> None:
    said = session.said[LAUNCH]
    places = [
        said.find(words)
        for words in (
            "checking 3 nodes",
            "gpu-master: rank 0 runs",
            "gpu-master │ ",
            "gpu-master: rank 0 ended: exit code 0",
            f"{session.job.folder.name} succeeded in ",
        )
    ]
    assert -1 not in places
    assert places == sorted(places)
    assert all(f"{name}: rank {rank} runs" in said for rank, name in enumerate(NAMES))
    assert said.rstrip().endswith("see: ugro results quick_test")
    assert "\x1b" not in said


def test_a_launch_on_nodes_that_are_not_fit_is_refused_and_starts_nothing(
    session: Session,
) -> None:
    assert "refused: gpu1: cuda: torch " in session.said["launch --name unfit"]
    job = session.ugro.job("unfit")
    assert job.state()["state"] == "refused"
    assert not list((job.folder / "logs").iterdir())
    assert job.left() == []


# Logs, results, status


def test_logs_show_every_rank_under_the_name_of_its_file(session: Session) -> None:
    said = session.said["logs quick_test"]
    parts = re.split(r"^--- (training_rank\d\.log) ---\n", said, flags=re.M)
    assert parts[1::2] == [f"training_rank{rank}.log" for rank in range(3)]
    for rank, text in enumerate(parts[2::2]):
        assert f"rank {rank} of 3" in text
        assert len(text.splitlines()) <= 50


def test_logs_of_one_rank_are_of_that_rank_alone(session: Session) -> None:
    said = session.said["logs quick_test --rank 1"]
    assert "rank 1 of 3" in said
    assert not re.search(r"rank [02] of 3", said)


def test_a_job_that_there_is_not_is_said_by_its_name(session: Session) -> None:
    assert "nothing_of_this_name" in session.said["logs nothing_of_this_name"]


def test_results_show_place_settings_nodes_checkpoints_and_logs(
    session: Session,
) -> None:
    said = session.said["results quick_test"]
    started = json.loads((session.job.folder / "config.json").read_text())["started_at"]
    for label, value in {
        "folder": str(session.job.folder),
        "model": "char-transformer",
        "data set": "shakespeare",
        "epochs": "2",
        "learning rate": "0.001",
        "started": started,
        "nodes": ", ".join(NAMES),
    }.items():
        assert re.search(rf"^  {label} +{re.escape(value)}$", said, re.M), label
    for epoch in (1, 2):
        assert re.search(rf"^  epoch_{epoch}\.pt .*\d MiB ", said, re.M)
    for rank in range(3):
        assert re.search(rf"^  logs/training_rank{rank}\.log +\d+ B$", said, re.M)


def test_status_shows_the_jobs_and_the_ranks_of_one(session: Session) -> None:
    row = session.row("status", session.job.folder.name)
    assert row.split()[1:3] == ["succeeded", ",".join(NAMES)]
    one = session.said["status quick_test"]
    for rank, name in enumerate(NAMES):
        assert re.search(rf"^  rank {rank}  {name} +exit code 0$", one, re.M)


# What lies where afterwards


def test_the_folder_of_an_experiment_is_called_after_it_and_has_each_part(
    session: Session,
) -> None:
    folder = session.job.folder
    assert re.fullmatch(r"quick_test_\d{8}_\d{6}", folder.name)
    assert {path.name for path in folder.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "logs",
        "checkpoints",
        "artifacts",
    }
    logs = sorted(path.name for path in (folder / "logs").iterdir())
    assert logs == [f"training_rank{rank}.log" for rank in range(3)]
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == [
        "epoch_1.pt",
        "epoch_2.pt",
    ]
    assert all(there == here for there, here in session.job.digests())


def test_beside_the_experiments_are_the_state_of_the_cluster_and_all_jobs(
    session: Session,
) -> None:
    experiments = session.ugro.experiments
    assert (experiments / "cluster_state.json").is_file()
    lines = (experiments / "job_history.jsonl").read_text().splitlines()
    assert session.job.folder.name in [json.loads(line)["job_id"] for line in lines]


def test_the_config_of_a_job_has_every_field_with_what_was_given(
    session: Session,
) -> None:
    config = json.loads((session.job.folder / "config.json").read_text())
    assert {key: config[key] for key in GIVEN} == GIVEN
    assert config["job_id"] == session.job.folder.name
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", config["started_at"])


def test_the_metrics_are_a_line_a_step_and_the_loss_falls(session: Session) -> None:
    text = (session.job.folder / "metrics.jsonl").read_text()
    metrics: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    assert metrics[-1]["step"] == metrics[-1]["total_steps"] == 8
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_ugros_own_logs_are_three(session: Session) -> None:
    """Each begins anew at midnight: the day before's has its date after the name."""
    names = {path.name for path in (session.ugro.folder / "logs").iterdir()}
    of_today = {name for name in names if name.endswith(".log")}
    before = {name.rpartition(".")[0] for name in names - of_today}
    assert of_today | before == {"agent.log", "launcher.log", "health.log"}


@EACH
def test_a_worker_holds_no_more_than_the_scripts_and_what_ran(
    session: Session, machine: Machine
) -> None:
    host = session.ugro.hosts[NAMES.index(machine.name)]
    project = host.path("ugro")
    assert [path.name for path in project.iterdir()] == ["jobs"]
    (folder,) = project.glob(f"jobs/{session.job.folder.name}.*")
    assert session.job.left() == []
    scripts = {path.name for path in (folder / "code").iterdir()}
    assert scripts >= {"train_single_test.py", "train_production.py"}
