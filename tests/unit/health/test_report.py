"""Fit or not? Judged from what probes told (recordings/health.json: a fit node, and what is changed in each case)."""
# ruff: noqa: ARG002 (a stand-in has the whole seam, whether it needs it or not)

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.factories import make_cluster, make_node
from ugro_tasks.cluster.model import Cluster, Environment, Node
from ugro_tasks.codec import convert
from ugro_tasks.errors import HostUnreachable, NodesBusy, NotFit
from ugro_tasks.health.cluster_checks import judge_all
from ugro_tasks.health.node_checks import Check, judge
from ugro_tasks.health.probe import visited_by
from ugro_tasks.health.report import ClusterHealth, NodeHealth, examine
from ugro_tasks.hosts.answers import ProbeAnswer
from ugro_tasks.hosts.fleet import Fleet
from ugro_tasks.hosts.nvidia import GpuProcess, parse_apps, parse_gpus
from ugro_tasks.node.gpu import APP_FIELDS, GPU_FIELDS, nvidia_smi
from ugro_tasks.node.protocol import MARK

RECORDED = json.loads(
    (Path(__file__).parents[1] / "recordings" / "health.json").read_text()
)
CASES = RECORDED["cases"]
LAB = Path(__file__).parents[3] / "lab"
GPU = {"gpu_model": "RTX 4070", "vram_gb": 8}


def facts_with(changes: dict[str, Any]) -> dict[str, Any]:
    """The facts of a fit node with these changed; `torch.code` is a value in an object."""
    facts: dict[str, Any] = copy.deepcopy(RECORDED["fit"])
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = facts
        for parent in parents:
            place = place[parent]
        place[last] = value
    return facts


def node_with(changes: dict[str, Any]) -> Node:
    given = {**GPU, **changes}
    if "environment" in given:
        given["environment"] = Environment(**given["environment"])
    return make_node(**given)


def checks_of(
    cluster: Cluster, node: Node, facts: dict[str, Any], clock: float = 0.0
) -> dict[str, Check]:
    told = convert(ProbeAnswer, facts)
    return {check.name: check for check in judge(cluster, node, told, clock)}


def test_a_fit_node_passes_every_check(tmp_path: Path) -> None:
    node = node_with({})
    checks = checks_of(make_cluster(tmp_path, (node,)), node, facts_with({}))
    assert [name for name, check in checks.items() if not check.ok] == []
    assert list(checks) == [
        "environment", "gpu", "gpu errors", "vram", "cuda", "address", "own name", "port", "disk", "home",
        "shared memory", "rsync", "open files", "login shell", "logout", "leftovers", "clock",
    ]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["what"])
def test_a_check_as_recorded(case: dict[str, Any], tmp_path: Path) -> None:
    node = node_with(case["node"])
    cluster = make_cluster(tmp_path, (make_node(0),))
    check = checks_of(
        cluster, node, facts_with(case["facts"]), case["clock_offset_seconds"]
    )[case["check"]]
    assert check.ok == case["ok"], check.value
    assert case["value"] in check.value
    assert case["fix"] in check.fix
    assert check.ok or check.fix
    assert check.note or not case.get("note")


@pytest.mark.parametrize(
    "name", sorted({case["check"] for case in CASES} - {"own name"})
)
def test_every_check_is_recorded_passing_and_failing_or_noted(name: str) -> None:
    found = {
        (case["ok"], case.get("note", False)) for case in CASES if case["check"] == name
    }
    assert (True, False) in found
    assert {(False, False), (True, True)} & found


def test_a_node_without_a_promised_gpu_is_not_asked_for_one(tmp_path: Path) -> None:
    node = make_node()
    broken = facts_with(
        {
            "gpus": {
                "code": None,
                "stdout": "",
                "stderr": "nvidia-smi: No such file or directory",
            }
        }
    )
    assert {"gpu", "gpu errors", "vram", "cuda"}.isdisjoint(
        checks_of(make_cluster(tmp_path, (node,)), node, broken)
    )


# ---- nvidia-smi ----


def answered(recording: str, what: str, fields: str, folder: Path) -> tuple[int, str]:
    """What nvidia-smi says to the probe's own question, as recorded."""
    shutil.copy(LAB / "nvidia_smi.py", folder / "nvidia_smi.py")
    shutil.copy(LAB / "recordings" / f"{recording}.json", folder / "gpus.json")
    argv = [
        sys.executable,
        str(folder / "nvidia_smi.py"),
        *nvidia_smi(what, fields)[1:],
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("recording", "model", "vram_gb"),
    [
        ("rtx5070ti", "RTX 5070 Ti", 12),
        ("rtx4070", "RTX 4070", 8),
        ("rtx3070ti", "RTX 3070 Ti", 8),
        ("ecc_errors", "RTX 4000 Ada", 20),
    ],
)
def test_a_recorded_card_keeps_its_promise(
    recording: str, model: str, vram_gb: float, tmp_path: Path
) -> None:
    code, output = answered(recording, "gpu", GPU_FIELDS, tmp_path)
    node = node_with({"gpu_model": model, "vram_gb": vram_gb})
    facts = facts_with({"gpus": {"code": code, "stdout": output, "stderr": ""}})
    assert checks_of(make_cluster(tmp_path, (node,)), node, facts)["gpu"].ok


@pytest.mark.parametrize("recording", ["driver_not_loaded", "fallen_off_bus"])
def test_a_recorded_card_out_of_order_is_not_fit(
    recording: str, tmp_path: Path
) -> None:
    code, output = answered(recording, "gpu", GPU_FIELDS, tmp_path)
    node = node_with({})
    facts = facts_with({"gpus": {"code": code, "stdout": output, "stderr": ""}})
    check = checks_of(make_cluster(tmp_path, (node,)), node, facts)["gpu"]
    assert (check.ok, output.splitlines()[0] in check.value) == (False, True)


def test_the_values_of_a_recorded_card(tmp_path: Path) -> None:
    [card] = parse_gpus(answered("vram_held", "gpu", GPU_FIELDS, tmp_path)[1])
    assert msgspec.to_builtins(card) == {
        "index": "0", "name": "NVIDIA GeForce RTX 4070 Laptop GPU",
        "uuid": "GPU-3f0c6f1e-8a52-4c7d-9e0b-52d1a7c4b901", "driver_version": "580.95.05",
        "memory.total": "8188", "memory.used": "6154", "utilization.gpu": "97", "temperature.gpu": "71",
        "power.draw": "98.43",
    }  # fmt: skip


def test_the_processes_on_a_recorded_card(tmp_path: Path) -> None:
    _, output = answered("vram_held", "compute-apps", APP_FIELDS, tmp_path)
    assert parse_apps(output) == (
        GpuProcess(pid=4127, used_mib=6130, name="/usr/bin/blender"),
    )


@pytest.mark.parametrize(
    "output",
    [
        "",
        "\n\n",
        "hello",
        "pid, used, name",
        "," * 8 + ",,",
        "\0\x1b[31m",
        "No devices were found\n",
    ],
)
def test_nonsense_is_no_card_and_no_process(output: str) -> None:
    assert (parse_gpus(output), parse_apps(output)) == ((), ())


@pytest.mark.parametrize(
    ("line", "app"),
    [
        ("7, 100, a, b, c", GpuProcess(pid=7, used_mib=100, name="a, b, c")),
        ("7, [N/A], x", GpuProcess(pid=7, used_mib=0, name="x")),
        ("7", GpuProcess(pid=7, used_mib=0, name="")),
    ],
)
def test_a_process_whose_line_is_odd(line: str, app: GpuProcess) -> None:
    assert parse_apps(line) == (app,)


@pytest.mark.parametrize(
    ("total", "used", "errors", "numbers"),
    [
        ("8188", "12", "0", (8188.0, 12.0, 0.0)),
        ("[N/A]", "[N/A]", "[N/A]", (None, None, 0.0)),
        ("²", "9" * 40, "3", (None, None, 3.0)),
    ],
)
def test_the_numbers_of_a_card(
    total: str, used: str, errors: str, numbers: tuple[float | None, ...]
) -> None:
    [card] = parse_gpus(
        f"0, RTX, GPU-1, 580.1, {total}, {used}, 0, 40, ERR!, {errors}\n"
    )
    assert (card.total_mib, card.used_mib, card.error_count) == numbers
    assert card.faults == ["ERR! (power.draw)"]


# ---- the whole cluster ----


class Told:
    """A node that answers its probe with these facts."""

    round_trip_seconds = 0.001

    def __init__(self, node: Node, facts: dict[str, Any]) -> None:
        self.node, self.facts = node, facts

    def run(
        self, argv: Any, stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        return MARK + json.dumps(self.facts).encode()

    def close(self) -> None: ...


class Silent(Told):
    """A node that cannot be reached."""

    def run(
        self, argv: Any, stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        raise HostUnreachable(self.node.name, "no route to it", "is the machine on?")


def examined(tmp_path: Path, *changes: dict[str, Any] | None) -> ClusterHealth:
    """The health of a cluster whose nodes differ from a fit one in this; None: it cannot be reached."""
    gang = tuple(
        make_node(rank, address="10.0.0.1", name=f"gpu{rank}")
        for rank in range(len(changes))
    )
    cluster = make_cluster(tmp_path, gang)
    hosts = [
        Silent(node, {})
        if change is None
        else Told(node, facts_with({"home.identity": f"machine {node.rank}", **change}))
        for node, change in zip(gang, changes, strict=True)
    ]
    return examine(Fleet.from_connections(hosts), cluster)


HELD = {
    "lease": {
        "job": "exp1",
        "token": "exp1.c0:gpu1:node",
        "pid": 7,
        "controller": "/a",
    }
}


def faults(health: ClusterHealth) -> list[tuple[str, str]]:
    # The recorded clock stands still, so every clock is wrong; that check has its own tests.
    return [
        (node, check.name) for node, check in health.faults if "clock" not in check.name
    ]


def test_a_cluster_of_equals_has_no_fault(tmp_path: Path) -> None:
    assert faults(examined(tmp_path, {}, {}, {})) == []


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"torch.torch": "2.12.0+cu128"}, "same torch"),
        ({"torch.cuda": "13.0"}, "same CUDA"),
        ({"torch.cuda": None}, "same CUDA"),
        ({"torch.python": "3.12.1"}, "same Python"),
        ({"interfaces.enp3s0.mtu": 9000}, "same MTU"),
        ({"home.identity": "machine 0"}, "machines"),
    ],
)
def test_a_node_unlike_the_others_is_a_fault_of_the_cluster(
    tmp_path: Path, change: dict[str, Any], check: str
) -> None:
    assert faults(examined(tmp_path, {}, change)) == [("cluster", check)]


# ---- from node to node ----


def met(
    rank: int,
    *,
    listens: bool = True,
    heard: bool = True,
    port: int = 0,
    **reached: Any,
) -> dict[str, Any]:
    """What gpu0 or gpu1 tells of the other."""
    other = 1 - rank
    return {
        "seconds": 4.0, "port": port or 40000 + rank, "listens": listens, "heard": [f"gpu{other}"] if heard else [],
        "reached": {f"gpu{other}": {"tried": 40000 + other, "ok": True, **reached}},
    }  # fmt: skip


REFUSED: dict[str, Any] = {"ok": False, "stalled": False, "error": "timed out"}
STALLED: dict[str, Any] = {"ok": False, "stalled": True, "error": "timed out"}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (met(0), met(1), ""),
        (
            met(0, **REFUSED),
            met(1, heard=False),
            "gpu0 does not reach gpu1 on port 40001: timed out",
        ),
        (
            met(0, **STALLED),
            met(1, heard=False),
            "large packets between gpu0 and gpu1 are lost",
        ),
        (met(0), met(1, heard=False), "large packets between gpu0 and gpu1 are lost"),
        # Nothing is known where the other could not listen, listened elsewhere, or was not asked.
        (met(0, **REFUSED), met(1, listens=False, heard=False), ""),
        (met(0, **REFUSED), met(1, heard=False, port=50000), ""),
        (met(0, **REFUSED), None, ""),
    ],
)
def test_what_is_in_the_way_from_node_to_node(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any] | None, words: str
) -> None:
    health = examined(tmp_path, {"peers": first}, {"peers": second})
    found = [check.value for _, check in health.faults if check.name == "peers"]
    assert found == ([words] if words else [])


@pytest.mark.parametrize(
    ("late", "offset", "names"),
    [(3.0, 0.0, []), (1.0, 0.0, ["peers"]), (3.0, 3.0, ["peers"])],
)
def test_nodes_that_did_not_look_at_the_same_time_know_nothing_of_each_other(
    tmp_path: Path, late: float, offset: float, names: list[str]
) -> None:
    started = RECORDED["fit"]["started"] + late
    other = {
        "peers": met(1, heard=False),
        "started": started,
        "home.identity": "another",
    }
    told = {"gpu0": facts_with({"peers": met(0, **REFUSED)}), "gpu1": facts_with(other)}
    facts = {name: convert(ProbeAnswer, one) for name, one in told.items()}
    checks = judge_all(make_cluster(tmp_path, 2), facts, {"gpu0": 0.0, "gpu1": offset})
    assert [
        check.name for check in checks if not check.ok and check.name != "clock spread"
    ] == names


def test_a_firewall_between_nodes_comes_with_its_remedy(tmp_path: Path) -> None:
    first, second = {"peers": met(0, **REFUSED)}, {"peers": met(1, heard=False)}
    (check,) = [
        check
        for _, check in examined(tmp_path, first, second).faults
        if check.name == "peers"
    ]
    assert "let gpu1 take connections from gpu0, on all ports" in check.fix
    assert "sudo ufw allow from 10.0.0.1" in check.fix


@pytest.mark.parametrize(("count", "visits"), [(2, 1), (3, 2), (5, 4), (9, 4)])
def test_whom_a_node_visits(tmp_path: Path, count: int, visits: int) -> None:
    cluster = make_cluster(tmp_path, count)
    visited = [
        [other.rank for other in visited_by(cluster, node)] for node in cluster.nodes
    ]
    assert [len(set(ranks) - {0}) for ranks in visited[1:]] == [
        visits - (0 in ranks[:visits]) for ranks in visited[1:]
    ]
    assert all(0 in ranks for ranks in visited[1:])  # its port is the rendezvous's
    assert visited[-1] == [*range(visits)]
    assert all(node.rank not in visited[node.rank] for node in cluster.nodes)


# ---- the cluster again ----


def test_a_node_without_the_package_is_named_so_beside_those_that_differ(
    tmp_path: Path,
) -> None:
    health = examined(
        tmp_path, {}, {"torch.torch": "2.12.0+cpu"}, {"torch.torch": None}
    )
    (check,) = [check for check in health.across if check.name == "same torch"]
    assert check.value.endswith(", gpu1 2.12.0+cpu, gpu2 none")


def test_another_patch_of_python_is_no_fault(tmp_path: Path) -> None:
    assert faults(examined(tmp_path, {}, {"torch.python": "3.11.9"})) == []


def test_a_node_out_of_reach_is_the_only_one_with_a_fault(tmp_path: Path) -> None:
    health = examined(tmp_path, {}, None, {})
    assert [node.reachable for node in health.nodes] == [True, False, True]
    assert faults(health) == [("gpu1", "reachable")]
    [check] = health.nodes[1].checks
    assert (check.value, check.fix) == ("no route to it", "is the machine on?")


def test_a_cluster_that_is_not_reached_at_all_is_judged_all_the_same(
    tmp_path: Path,
) -> None:
    health = examined(tmp_path, None, None)
    assert (health.fit, health.facts(), health.busy()) == (False, {}, {})


def test_a_node_that_a_job_holds_is_busy_and_fit(tmp_path: Path) -> None:
    health = examined(tmp_path, {}, HELD)
    assert health.busy() == {"gpu1": "held by job exp1 of /a (pid 7 there)"}
    assert faults(health) == []


def test_what_is_left_of_a_job_keeps_a_node_busy_and_comes_with_its_remedy(
    tmp_path: Path,
) -> None:
    left = {
        "jobs": [
            {"job": "exp1", "token": "exp1.c0:gpu1:node", "pid": 7, "command": "python"}
        ]
    }
    health = examined(tmp_path, {}, left)
    assert health.busy() == {
        "gpu1": "held by job exp1 (pid 7 there)\n    end them: inv reset --nodes gpu1"
    }
    assert faults(health) == [("gpu1", "leftovers")]


def test_what_a_launch_would_mend_does_not_refuse_it(tmp_path: Path) -> None:
    health = examined(tmp_path, {}, {"torch.torch": None})
    assert ("gpu1", "environment") in faults(health)
    refused = health.refusal(force=False)
    assert isinstance(refused, NotFit)
    assert "gpu1: environment" in refused.text
    told = health.refusal(force=False, late=["gpu1"])
    assert "environment" not in (told.text if told else "")
    assert health.refusal(force=True) is None


def test_busy_nodes_refuse_even_by_force(tmp_path: Path) -> None:
    assert isinstance(examined(tmp_path, {}, HELD).refusal(force=True), NodesBusy)


def test_a_node_out_of_reach_refuses_even_by_force(tmp_path: Path) -> None:
    assert isinstance(examined(tmp_path, {}, None).refusal(force=True), NotFit)


def test_health_is_what_it_says() -> None:
    good, bad = (
        Check(name="a", ok=True, value=""),
        Check(name="b", ok=False, value="", fix="x"),
    )
    node = NodeHealth(
        node="gpu0", rank=0, address="10.0.0.1", reachable=True, checks=(good, bad)
    )
    assert (
        node.fit,
        NodeHealth(node="n", rank=0, address="", reachable=True, checks=(good,)).fit,
    ) == (
        False,
        True,
    )
