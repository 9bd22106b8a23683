"""Is a cluster fit to train? What the probes saw, judged: checks, each with its cause and its fix."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from .cluster import Cluster, Node
from .errors import HostError
from .hosts import Fleet, Host
from .nvidia import is_number, parse_apps, parse_gpus
from .plan import interface_of
from .remote import ask, describe_holder

PORT_SECONDS = 4.0  # how long master and workers look for each other
PROBE_SECONDS = 90.0  # the first import of torch on a slow disk takes that long
DISK_MIN_BYTES = 2 << 30
SHM_MIN_BYTES = 64 << 20
CLOCK_MAX_SECONDS = 2.0
VRAM_TOLERANCE = 0.15  # a "12 GB" card shows 11.6 to 12.0 GiB
FOREIGN_VRAM_MIN_MIB = 300  # a desktop's compositor and browser stay below


class Check(Struct, frozen=True, kw_only=True):
    """One thing that was looked at; `fix` says what to do about it. `note` marks an oddity that is no fault."""

    name: str
    ok: bool
    value: str
    fix: str = ""
    note: bool = False


class NodeHealth(Struct, frozen=True, kw_only=True):
    """A node as its probe found it."""

    node: str
    rank: int
    address: str
    reachable: bool
    checks: tuple[Check, ...]
    round_trip_seconds: float | None = None
    clock_offset_seconds: float | None = None
    held_by: str | None = None
    gpus: tuple[dict[str, str], ...] = ()
    facts: dict[str, Any] = {}

    @property
    def fit(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)


class ClusterHealth(Struct, frozen=True, kw_only=True):
    """A cluster as its probes found it."""

    cluster: str
    probed_at: float
    seconds: float
    nodes: tuple[NodeHealth, ...]
    across: tuple[Check, ...]

    @property
    def fit(self) -> bool:
        """Whether every check on every node and across them passed."""
        return all(node.fit for node in self.nodes) and all(check.ok for check in self.across)

    @property
    def faults(self) -> list[tuple[str, Check]]:
        """(node or "cluster", check) of everything that failed."""
        own = [(node.node, check) for node in self.nodes for check in node.checks if not check.ok]
        return own + [("cluster", check) for check in self.across if not check.ok]

    def busy(self) -> dict[str, str]:
        """{node: who holds it}."""
        return {node.node: node.held_by for node in self.nodes if node.held_by}

    def facts(self) -> dict[str, Mapping[str, Any]]:
        """What each reachable node told of itself."""
        return {node.node: node.facts for node in self.nodes if node.reachable}


def examine(fleet: Fleet, cluster: Cluster, asking: Callable[..., dict[str, Any]] = ask) -> ClusterHealth:
    """Probe all nodes at once, one round trip each, and judge what they say.

    `asking` is how a node is asked: `remote.ask`, or a conversation that goes on.
    """
    begun, probed_at = time.monotonic(), time.time()
    nonce = secrets.token_hex(8)
    answers = fleet.map(lambda host: _probe(host, cluster, nonce, asking))
    nodes = tuple(_judge_answer(cluster, node, answers[node.name]) for node in cluster.nodes)
    return ClusterHealth(
        cluster=cluster.name,
        probed_at=probed_at,
        seconds=time.monotonic() - begun,
        nodes=nodes,
        across=tuple(_across(cluster, nodes)),
    )


class _Answer(Struct, frozen=True):
    facts: dict[str, Any]
    round_trip_seconds: float
    clock_offset_seconds: float


def _probe(host: Host, cluster: Cluster, nonce: str, asking: Callable[..., dict[str, Any]]) -> _Answer:
    node, master = host.node, cluster.master
    alone = len(cluster.nodes) == 1
    sent = time.time()
    facts = asking(
        host,
        "probe",
        timeout_seconds=PROBE_SECONDS,
        interpreter=node.environment.interpreter(node.project),
        project=node.project,
        slot=node.slot,
        wants_cuda=node.gpu_model is not None,
        role="master" if node.rank == 0 else "worker",
        address=node.address,
        master=master.address,
        port=cluster.master_port,
        workers=0 if alone else len(cluster.nodes) - 1,
        port_seconds=PORT_SECONDS,
        nonce=nonce,
    )
    received = time.time()
    # The node's clock at the middle of its own work against ours at the middle of the whole.
    offset = (facts["started"] + facts["ended"]) / 2 - (sent + received) / 2
    uncertain = (received - sent - (facts["ended"] - facts["started"])) / 2
    return _Answer(facts, host.round_trip_seconds, 0.0 if abs(offset) <= uncertain else offset)


def _judge_answer(cluster: Cluster, node: Node, answer: _Answer | HostError) -> NodeHealth:
    common: dict[str, Any] = {"node": node.name, "rank": node.rank, "address": node.address}
    if isinstance(answer, HostError):
        check = Check(name="reachable", ok=False, value=answer.what, fix=answer.fix)
        return NodeHealth(**common, reachable=False, checks=(check,))
    facts, holder = answer.facts, _holder(answer.facts)
    return NodeHealth(
        **common,
        reachable=True,
        round_trip_seconds=answer.round_trip_seconds,
        clock_offset_seconds=answer.clock_offset_seconds,
        held_by=describe_holder(holder) if holder else None,
        gpus=parse_gpus(facts["gpus"]["stdout"]),
        checks=tuple(judge(cluster, node, facts, answer.clock_offset_seconds)),
        facts=facts,
    )


def _holder(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The lease's holder, or an orphan with a token; {} where the node is free."""
    holder: dict[str, Any] = facts["lease"] or next(iter(facts["jobs"]), {})
    return holder


# ---- one node ----


def judge(
    cluster: Cluster, node: Node, facts: Mapping[str, Any], clock_offset_seconds: float
) -> Iterator[Check]:
    """The checks of one node that was reached. Pure: facts in, checks out."""
    yield _environment(node, facts["torch"])
    if node.gpu_model is not None:
        yield from _gpu(node, facts)
    yield from _network(cluster, node, facts)
    yield from _machine(node, facts)
    yield Check(
        name="clock",
        ok=abs(clock_offset_seconds) <= CLOCK_MAX_SECONDS,
        value=f"{clock_offset_seconds:+.1f} s",
        fix=f"set the clock of {node.name}: sudo timedatectl set-ntp true",
    )


def _environment(node: Node, torch: Mapping[str, Any]) -> Check:
    interpreter = node.environment.interpreter(node.project)
    make = _how_to_make(node)
    if torch["code"] is None:
        return Check(name="environment", ok=False, value=_last(torch), fix=make)
    if torch["code"] != 0:
        return Check(name="environment", ok=False, value=f"{interpreter} fails: {_last(torch)}", fix=make)
    if not torch.get("torch"):
        return Check(name="environment", ok=False, value=f"{interpreter} has no torch", fix=make)
    words = f"Python {torch['python']}, torch {torch['torch']}"
    promised = {
        "Python": (node.environment.python_version, torch["python"]),
        "torch": (node.environment.torch_version, torch["torch"]),
        "CUDA": (node.environment.cuda_version, torch.get("cuda") or "none"),
    }
    wrong = [
        f"{what} {wanted}" for what, (wanted, found) in promised.items() if not _is_version(found, wanted)
    ]
    if wrong:
        value = f"{words}; the cluster file says {', '.join(wrong)}"
        return Check(name="environment", ok=False, value=value, fix=make)
    return Check(name="environment", ok=True, value=words)


def _how_to_make(node: Node) -> str:
    manager = node.environment.manager
    if manager == "venv" and node.transport == "local":
        return "the next launch makes it"
    if manager == "existing":
        return f"install torch there, or name another Python as environment.python of {node.name}"
    return f"make it there with {manager}, in {node.project}"


def _is_version(found: str, wanted: str | None) -> bool:
    """As far as the wanted version is written: 2.13 is any 2.13.x."""
    return wanted is None or f"{found.split('+')[0]}.".startswith(f"{wanted}.")


def _last(answer: Mapping[str, Any]) -> str:
    lines = str(answer["stderr"]).strip().splitlines()
    return lines[-1] if lines else f"exit code {answer['code']}"


def _gpu(node: Node, facts: Mapping[str, Any]) -> Iterator[Check]:
    answer, found = facts["gpus"], parse_gpus(facts["gpus"]["stdout"])
    if answer["code"] != 0 or not found:
        said = answer["stderr"].strip() or answer["stdout"].strip() or "no GPU"
        value = said.splitlines()[0]  # "No devices were found" comes last, whatever the reason
        yield Check(
            name="gpu",
            ok=False,
            value=f"{node.gpu_model} is promised, nvidia-smi says: {value}",
            fix=f"on {node.name}: see `nvidia-smi` and `sudo dmesg | grep -i nvrm`; "
            "a card that fell off the bus comes back with a reboot, a missing driver with its package",
        )
        return
    card = found[0]
    total_mib = float(card["memory.total"]) if is_number(card["memory.total"]) else 0.0
    same = (node.gpu_model or "").lower() in card["name"].lower()
    large = node.vram_gb is None or total_mib / 1024 >= node.vram_gb * (1 - VRAM_TOLERANCE)
    yield Check(
        name="gpu",
        ok=same and large,
        value=f"{card['name']}, {total_mib / 1024:.1f} GiB, driver {card['driver_version']}",
        fix=f"the cluster file promises {node.gpu_model} with {node.vram_gb or '?'} GB; correct it or the card's seat",
    )
    foreign = [
        app for app in parse_apps(facts["apps"]["stdout"])
        if app["pid"] not in facts["our_pids"] and app["used_mib"] >= FOREIGN_VRAM_MIN_MIB
    ]  # fmt: skip
    yield Check(
        name="vram",
        ok=not foreign,
        value=", ".join(f"{a['name']} (pid {a['pid']}) holds {a['used_mib']} MiB" for a in foreign)
        or f"{card['memory.used']} MiB used",
        fix=f"end it on {node.name}: kill {' '.join(str(a['pid']) for a in foreign)}",
    )
    if "cuda_available" in facts["torch"]:
        build = facts["torch"].get("cuda")
        yield Check(
            name="cuda",
            ok=facts["torch"]["cuda_available"],
            value=f"torch built for CUDA {build}" if build else "torch is a CPU build",
            fix="torch.cuda.is_available() is False: "
            + (
                f"the driver may be too old for CUDA {build}, see nvidia-smi"
                if build
                else "install a build of torch for CUDA"
            ),
        )


def _network(cluster: Cluster, node: Node, facts: Mapping[str, Any]) -> Iterator[Check]:
    interface = interface_of(node, facts)
    mtu = facts["interfaces"][interface]["mtu"] if interface else None
    yield Check(
        name="address",
        ok=interface is not None,
        value=f"{node.address} on {interface}, MTU {mtu}"
        if interface
        else f"no interface has {node.address}",
        fix=f"correct the address of {node.name} in the cluster file; it has "
        + ", ".join(a for i in facts["interfaces"].values() for a in i["addresses"] if ":" not in a),
    )
    own = facts["resolves_to"]
    yield Check(
        name="own name",
        ok=True,
        value=f"{facts['hostname']} is {own or 'not resolved'}"
        + ("" if own == node.address else " (no harm: launches go by address and interface)"),
    )
    port = cluster.master_port
    if "port" in facts:
        taken = facts["port"] == "taken"
        yield Check(
            name="port",
            ok=facts["port"] == "free" or facts.get("free_port") is not None or bool(facts["lease"]),
            note=taken,
            value=f"{port} is {facts['port']}"
            + (f", {facts['free_port']} serves instead" if facts.get("free_port") != port else ""),
            fix=f"see who listens on {node.name} (ss -ltnp) or set cluster.communication.master_port",
        )
    if "reach" in facts:
        reach = facts["reach"]
        yield Check(
            name="master port",
            ok=reach["ok"],
            value=f"{cluster.master.address}:{port} "
            + ("answers" if reach["ok"] else f"does not: {reach['error']}"),
            fix=f"let {cluster.master.name} take connections from {node.name}, on all ports "
            f"(gloo and NCCL choose theirs freely): sudo ufw allow from {node.address}",
        )


def _machine(node: Node, facts: Mapping[str, Any]) -> Iterator[Check]:
    disk = facts["project"]
    writable, roomy = disk["writable"], disk["free_bytes"] >= DISK_MIN_BYTES
    yield Check(
        name="disk",
        ok=writable and roomy,
        value=f"{disk['free_bytes'] / 2**30:.1f} GiB free for {disk['path']}"
        + ("" if writable else ", not writable"),
        fix=f"free some space on {node.name}"
        if writable
        else f"make {disk['path']} writable for the user, or set paths.project",
    )
    yield Check(
        name="shared memory",
        ok=facts["shm"]["total_bytes"] >= SHM_MIN_BYTES,
        value=f"{facts['shm']['total_bytes'] / 2**20:.0f} MiB in /dev/shm",
        fix=f"enlarge it on {node.name}: sudo mount -o remount,size=1G /dev/shm",
    )
    yield Check(
        name="rsync",
        ok=facts["rsync"] is not None,
        value=facts["rsync"] or "not installed",
        fix=f"install it on {node.name}: sudo apt install rsync",
    )


# ---- across the nodes ----


def _across(cluster: Cluster, nodes: tuple[NodeHealth, ...]) -> Iterator[Check]:
    reached = [node for node in nodes if node.reachable]
    if len(reached) < 2:
        return
    for name, value in _COMPARED.items():
        values = {node.node: value(node.facts) for node in reached}
        known = {v for v in values.values() if v}
        if known:
            yield Check(
                name=f"same {name}",
                ok=len(known) == 1,
                value=known.pop() if len(known) == 1 else ", ".join(f"{n} {v}" for n, v in values.items()),
                fix="install the same versions everywhere",
            )
    offsets = [node.clock_offset_seconds or 0.0 for node in reached]
    yield Check(
        name="clock spread",
        ok=max(offsets) - min(offsets) <= CLOCK_MAX_SECONDS,
        value=f"{max(offsets) - min(offsets):.1f} s",
        fix="let all machines keep time: sudo timedatectl set-ntp true",
    )
    mtus = {node.node: mtu for node in reached if (mtu := _mtu(cluster, node))}
    if len(set(mtus.values())) > 1:
        yield Check(
            name="same MTU",
            ok=False,
            value=", ".join(f"{name} {mtu}" for name, mtu in mtus.items()),
            fix="give all the same: sudo ip link set dev <interface> mtu 1500",
        )


_COMPARED: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "Python": lambda facts: ".".join(str(facts["torch"].get("python", "")).split(".")[:2]),
    "torch": lambda facts: facts["torch"].get("torch"),
    "CUDA": lambda facts: facts["torch"].get("cuda") or ("none" if facts["torch"].get("torch") else None),
}


def _mtu(cluster: Cluster, health: NodeHealth) -> int | None:
    """The MTU of the interface that the others reach a node by; None where it has none, or is this machine."""
    node = next(node for node in cluster.nodes if node.name == health.node)
    interface = interface_of(node, health.facts)
    mtu: int | None = (
        health.facts["interfaces"][interface]["mtu"] if interface and node.transport == "ssh" else None
    )
    return mtu
