"""What is planned is what is shown and run."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.factories import make_cluster, make_node, make_probe, make_record
from ugro_tasks.backends.ssh.plan import make_plan
from ugro_tasks.cluster.model import Cluster, Environment, Node, Timeouts
from ugro_tasks.codec import UNREADABLE
from ugro_tasks.errors import LaunchFailed
from ugro_tasks.hosts.answers import ProbeAnswer
from ugro_tasks.jobs.plan import LaunchPlan

JOB = "exp1_20260120_120000"
FOLDER = f"~/ugro/jobs/{JOB}.c0ffee00.gpu"  # with the nonce that the builders give


def interfaces_of(node: Node) -> dict[str, Any]:
    return {
        "lo": {"addresses": ["127.0.0.1"], "mtu": 65536},
        f"eth{node.rank}": {"addresses": ["192.168.0.1", node.address], "mtu": 1500},
    }


def seen(cluster: Cluster, **master: Any) -> dict[str, ProbeAnswer]:
    """What the nodes' probes told: each owns its address on an interface of its own name."""
    facts = {
        node.name: make_probe(interfaces=interfaces_of(node)) for node in cluster.nodes
    }
    given = {
        "interfaces": interfaces_of(cluster.master),
        "free_port": cluster.master_port,
        **master,
    }
    facts[cluster.master.name] = make_probe(**given)
    return facts


def plan_of(
    cluster: Cluster, facts: dict[str, ProbeAnswer] | None = None, **record: Any
) -> LaunchPlan:
    return make_plan(
        make_record(cluster, job_id=JOB, **record), cluster, facts or seen(cluster)
    )


def flag(plan: LaunchPlan, rank: int, name: str) -> str:
    argv = plan.nodes[rank].argv
    return argv[argv.index(f"--{name}") + 1]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return make_cluster(tmp_path)


def test_the_argv_of_each_of_three_nodes(cluster: Cluster) -> None:
    plan = plan_of(cluster, args=("--seed", "7"))
    for rank, node in enumerate(plan.nodes):
        assert node.argv == (
            "/opt/env/bin/python", "-m", "torch.distributed.run",
            "--nnodes", "3", "--node-rank", str(rank), "--nproc-per-node", "1",
            "--master-addr", "10.0.0.1", "--master-port", "29500", "--local-addr", f"10.0.0.{rank + 1}",
            "--max-restarts", "0", "--rdzv-conf", "timeout=300", "--log-dir", f"{FOLDER}{rank}/torchrun",
            "train.py",
            "--model-name", "tiny", "--dataset-name", "text", "--num-epochs", "3",
            "--learning-rate", "0.0002", "--job-id", JOB,
            "--seed", "7",
        )  # fmt: skip


def test_the_environment_of_each_of_three_nodes(cluster: Cluster) -> None:
    for rank, node in enumerate(plan_of(cluster, env={"SEED": "7"}).nodes):
        assert node.env == {
            "GLOO_SOCKET_IFNAME": f"eth{rank}",
            "NCCL_SOCKET_IFNAME": f"eth{rank}",
            "PYTHONUNBUFFERED": "1",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "15",
            "SEED": "7",
            "UGRO_JOB_ID": JOB,
            "UGRO_NODE": f"gpu{rank}",
            "UGRO_OUTPUT_DIR": f"{FOLDER}{rank}/output",
            "UGRO_BATCH_SIZES": "1,1,1",
        }


def test_the_launch_as_a_whole(cluster: Cluster) -> None:
    plan = plan_of(cluster)
    assert (plan.job_id, plan.world_size) == (JOB, 3)
    assert (plan.master_address, plan.master_port) == ("10.0.0.1", 29500)
    assert [(node.node, node.rank, node.interface) for node in plan.nodes] == [
        ("gpu0", 0, "eth0"), ("gpu1", 1, "eth1"), ("gpu2", 2, "eth2"),
    ]  # fmt: skip


def test_jobs_of_one_name_and_second_from_two_controllers_are_told_apart(
    cluster: Cluster,
) -> None:
    mine, yours = (plan_of(cluster, nonce=nonce).nodes[1] for nonce in ("aaaa", "bbbb"))
    assert (mine.token, yours.token) == (
        f"{JOB}.aaaa:gpu1:node",
        f"{JOB}.bbbb:gpu1:node",
    )
    assert mine.folder != yours.folder


def test_ranks_follow_the_file_and_not_the_addresses(tmp_path: Path) -> None:
    gang = (make_node(0, address="10.0.0.9"), make_node(1, address="10.0.0.1"))
    plan = plan_of(make_cluster(tmp_path, gang))
    assert [node.address for node in plan.nodes] == ["10.0.0.9", "10.0.0.1"]
    assert flag(plan, 1, "master-addr") == "10.0.0.9"


def test_ipv6_addresses_stand_in_brackets_for_torchrun_only(tmp_path: Path) -> None:
    gang = (make_node(0, address="fd00::1"), make_node(1, address="fd00::2"))
    plan = plan_of(make_cluster(tmp_path, gang))
    assert (flag(plan, 1, "master-addr"), flag(plan, 1, "local-addr")) == (
        "[fd00::1]",
        "[fd00::2]",
    )
    assert (plan.master_address, plan.nodes[1].address) == ("fd00::1", "fd00::2")


def test_the_free_port_that_the_master_found_is_used_by_all(cluster: Cluster) -> None:
    plan = plan_of(cluster, seen(cluster, free_port=29507))
    assert plan.master_port == 29507
    assert {flag(plan, rank, "master-port") for rank in range(3)} == {"29507"}


@pytest.mark.parametrize(
    "facts", [{"free_port": None}, {"free_port": None, "port": "unbindable"}]
)
def test_no_free_port_is_a_launch_that_fails(
    cluster: Cluster, facts: dict[str, Any]
) -> None:
    with pytest.raises(
        LaunchFailed, match=r"gpu0: no free port from 29500 on.*master_port"
    ):
        plan_of(cluster, seen(cluster, **facts))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_node_without_its_address_is_a_launch_that_fails(
    cluster: Cluster, rank: int
) -> None:
    facts = seen(cluster)
    del facts[f"gpu{rank}"].interfaces[f"eth{rank}"]
    with pytest.raises(
        LaunchFailed, match=rf"gpu{rank}: none of its interfaces .*10\.0\.0\.{rank + 1}"
    ):
        plan_of(cluster, facts)


@pytest.mark.parametrize("near", ["10.0.0.11", "110.0.0.1"])
def test_an_address_is_matched_whole(near: str) -> None:
    facts = make_probe(interfaces={"eth0": {"addresses": [near], "mtu": 1500}})
    assert facts.interface_of(make_node().address) is None


def test_an_address_with_a_prefix_is_none() -> None:
    with pytest.raises(UNREADABLE):
        make_probe(interfaces={"eth0": {"addresses": ["10.0.0.1/24"], "mtu": 1500}})


@pytest.mark.parametrize(
    "name", ["UGRO_JOB_ID", "UGRO_NODE", "UGRO_OUTPUT_DIR", "UGRO_TOKEN"]
)
def test_a_user_cannot_override_what_ugro_finds_its_jobs_by(
    cluster: Cluster, name: str
) -> None:
    assert all(
        node.env.get(name) != "mine"
        for node in plan_of(cluster, env={name: "mine"}).nodes
    )


def test_a_user_may_choose_another_interface(cluster: Cluster) -> None:
    plan = plan_of(cluster, env={"NCCL_SOCKET_IFNAME": "ib0"})
    assert (
        plan.nodes[0].env["NCCL_SOCKET_IFNAME"],
        plan.nodes[0].env["GLOO_SOCKET_IFNAME"],
    ) == (
        "ib0",
        "eth0",
    )


@pytest.mark.parametrize(
    ("environment", "interpreter"),
    [
        ({"manager": "existing"}, "python3"),
        ({"manager": "existing", "python": "~/conda/bin/python"}, "~/conda/bin/python"),
        ({"manager": "venv"}, "~/ugro/.venv/bin/python"),
        ({"manager": "uv", "path": "/srv/env"}, "/srv/env/bin/python"),
        ({"manager": "pixi", "name": "cuda"}, "~/ugro/.pixi/envs/cuda/bin/python"),
    ],
)
def test_the_python_of_the_nodes_own_environment_runs(
    tmp_path: Path, environment: dict[str, Any], interpreter: str
) -> None:
    gang = (make_node(environment=Environment(**environment)),)
    assert plan_of(make_cluster(tmp_path, gang)).nodes[0].argv[0] == interpreter


def test_time_limits_come_from_the_cluster_file(tmp_path: Path) -> None:
    timeouts = Timeouts(rendezvous_seconds=77, stop_grace_seconds=0.2)
    plan = plan_of(make_cluster(tmp_path, timeouts=timeouts))
    assert flag(plan, 0, "rdzv-conf") == "timeout=77"
    assert plan.nodes[0].env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "1"


@pytest.mark.parametrize(
    "word", ["; rm -rf ~", "$(id)", "a b", "", "'", "--nnodes", "\n"]
)
def test_arguments_stay_whole_words_behind_the_script(
    cluster: Cluster, word: str
) -> None:
    argv = plan_of(cluster, args=(word,)).nodes[0].argv
    assert argv[-1] == word
    assert argv.index("train.py") < len(argv) - 1
