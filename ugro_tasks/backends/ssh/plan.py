"""Cluster + facts of the probes + JobRecord -> LaunchPlan. Pure: the plan shown is the plan run."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ...cluster.model import Cluster, Node
from ...environments.recipe import activation_of, place_of
from ...errors import LaunchFailed
from ...hosts.answers import ProbeAnswer
from ...jobs.attempt_names import folder_of, token_of
from ...jobs.plan import LaunchPlan, Memory, NodePlan
from ...jobs.record import JobRecord
from ...jobs.spec import Resume
from ...training.batch_sizes import batch_sizes, effective_batch, memories


def make_plan(
    record: JobRecord,
    cluster: Cluster,
    facts: Mapping[str, ProbeAnswer],
    *,
    attempt: int = 1,
    resume: Resume | None = None,
) -> LaunchPlan:
    """Plan the launch of a job on the cluster's nodes; `facts` is {node: the answer of `node/probe.py`}.

    Static rendezvous by address: the c10d backend would give ranks in the order of the addresses, and names need
    not resolve on a node. Raises LaunchFailed if a node has no interface for its address or no port is free, and
    UsageError as `batch_sizes` does.
    """
    master = cluster.master
    port = facts[master.name].free_port
    if port is None:
        raise LaunchFailed(
            f"{master.name}: no free port from {cluster.master_port} on; "
            "see what listens there (ss -ltnp) or set cluster.communication.master_port"
        )
    # A restart on the same nodes shall be the same run, whatever a card's memory is taken by in the meantime.
    before = (
        {plan.node: plan.batch_size for plan in record.plan.nodes}
        if record.plan
        else {}
    )
    same = list(before) == [node.name for node in cluster.nodes]
    sizes = before if same else batch_sizes(cluster, record.settings, facts)
    needed = memories(cluster, record.settings, facts, sizes)
    plans = [
        _node_plan(record, cluster, node, port, facts[node.name], attempt, resume)
        for node in cluster.nodes
    ]
    return LaunchPlan(
        job_id=record.job_id,
        world_size=len(cluster.nodes),
        master_address=master.address,
        master_port=port,
        nodes=tuple(
            _with_share(plan, record, sizes, needed[plan.node]) for plan in plans
        ),
        effective_batch=effective_batch(record, sizes),
        attempt=attempt,
        resume=resume,
    )


def _node_plan(
    record: JobRecord,
    cluster: Cluster,
    node: Node,
    port: int,
    facts: ProbeAnswer,
    attempt: int,
    resume: Resume | None,
) -> NodePlan:
    interface = facts.interface_of(node.address)
    if interface is None:
        raise LaunchFailed(
            f"{node.name}: none of its interfaces has the address {node.address}; correct the cluster file"
        )
    folder = folder_of(record, attempt, node)
    torchrun = {
        "nnodes": len(cluster.nodes),
        "node-rank": node.rank,
        "nproc-per-node": 1,
        "master-addr": _bracketed(cluster.master.address),
        "master-port": port,
        "local-addr": _bracketed(node.address),
        "max-restarts": 0,
        "rdzv-conf": f"timeout={cluster.timeouts.rendezvous_seconds}",
        "log-dir": f"{folder}/torchrun",  # else torchrun leaves a folder in /tmp
    }
    script = {
        "model-name": record.model,
        "dataset-name": record.dataset,
        "num-epochs": record.epochs,
        "learning-rate": record.learning_rate,
        "job-id": record.job_id,
    }
    return NodePlan(
        node=node.name,
        rank=node.rank,
        address=node.address,
        interface=interface,
        token=token_of(record, attempt, node),
        folder=folder,
        argv=(
            node.environment.interpreter(node.project),
            "-m",
            "torch.distributed.run",
            *_flags(torchrun),
            record.script,
            *_flags(script),
            *record.args,
        ),
        env={
            # Without these, gloo and NCCL follow the host's own name, which may resolve to 127.0.1.1 or not at all.
            "GLOO_SOCKET_IFNAME": interface,
            "NCCL_SOCKET_IFNAME": interface,
            "PYTHONUNBUFFERED": "1",
            # Several ranks on one machine that promises no GPU: they must not all take the one that may be there.
            **({"CUDA_VISIBLE_DEVICES": ""} if node.hides_card else {}),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(
                max(1, round(cluster.timeouts.stop_grace_seconds))
            ),
            **{
                key: value
                for key, value in record.env.items()
                if not key.startswith("UGRO_")
            },
            "UGRO_JOB_ID": record.job_id,
            "UGRO_NODE": node.name,
            "UGRO_OUTPUT_DIR": f"{folder}/output",
            **(
                {"UGRO_RESUME": f"{folder}/resume/{resume.checkpoint}"}
                if resume
                else {}
            ),
        },
        activation=activation_of(node, facts.environment),
        environment_work=place_of(node).get("work"),
    )


def _with_share(
    plan: NodePlan, record: JobRecord, sizes: Mapping[str, int], needed: Memory | str
) -> NodePlan:
    """Add the rank's part of the work to its plan, and the script's settings to its environment."""
    # In the order of the ranks, as the nodes are.
    told = {"UGRO_BATCH_SIZES": ",".join(map(str, sizes.values()))}
    if record.settings:
        told["UGRO_SETTINGS"] = msgspec.json.encode(
            record.settings, order="sorted"
        ).decode()
    # Who forces a launch wants no second refusal on the node.
    if isinstance(needed, Memory) and not record.force:
        told["UGRO_MEMORY_MIB"] = str(needed.total_mib)
    return msgspec.structs.replace(
        plan,
        env=plan.env | told,
        batch_size=sizes[plan.node],
        memory=needed if isinstance(needed, Memory) else None,
        memory_unknown=needed if isinstance(needed, str) and needed else None,
    )


def _flags(values: Mapping[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
