"""Cluster + what the probes saw + JobRecord -> LaunchPlan. Pure: what is planned here is what is shown and run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cluster import Cluster, Node
from .errors import LaunchFailed
from .job import JobRecord, LaunchPlan, NodePlan


def make_plan(record: JobRecord, cluster: Cluster, facts: Mapping[str, Mapping[str, Any]]) -> LaunchPlan:
    """The launch of a job on the cluster's nodes; `facts` is what `node/probe.py` told of each.

    Static rendezvous by address: the c10d backend would give ranks in the order of the addresses, and names need
    not resolve on a node. Raises LaunchFailed where a node has no interface for its address or no port is free.
    """
    master = cluster.master
    port = facts[master.name].get("free_port")
    if port is None:
        raise LaunchFailed(
            f"{master.name}: no free port from {cluster.master_port} on; "
            "see what listens there (ss -ltnp) or set cluster.communication.master_port"
        )
    return LaunchPlan(
        job_id=record.job_id,
        world_size=len(cluster.nodes),
        master_address=master.address,
        master_port=port,
        nodes=tuple(_node_plan(record, cluster, node, port, facts[node.name]) for node in cluster.nodes),
    )


def interface_of(node: Node, facts: Mapping[str, Any]) -> str | None:
    """The interface that owns the node's address."""
    return next((name for name, i in facts["interfaces"].items() if node.address in i["addresses"]), None)


def _node_plan(
    record: JobRecord, cluster: Cluster, node: Node, port: int, facts: Mapping[str, Any]
) -> NodePlan:
    interface = interface_of(node, facts)
    if interface is None:
        raise LaunchFailed(
            f"{node.name}: none of its interfaces has the address {node.address}; correct the cluster file"
        )
    # Two controllers may launch jobs of one name in the same second.
    unique = f"{record.job_id}.{record.nonce}"
    folder = f"{node.project}/jobs/{unique}"
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
        token=f"{unique}:{node.name}:{node.slot}",
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
            **({"CUDA_VISIBLE_DEVICES": ""} if node.slot == node.name and node.gpu_model is None else {}),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, round(cluster.timeouts.stop_grace_seconds))),
            **{key: value for key, value in record.env.items() if not key.startswith("UGRO_")},
            "UGRO_JOB_ID": record.job_id,
            "UGRO_NODE": node.name,
            "UGRO_OUTPUT_DIR": f"{folder}/output",
        },
    )


def _flags(values: Mapping[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
