"""The names of an attempt on its nodes: its folder, and the token of its processes."""

from __future__ import annotations

from ..cluster.model import Node
from .record import JobRecord


def attempt_name(record: JobRecord, attempt: int) -> str:
    """Return the name of an attempt, the first part of its tokens.

    It has a nonce because two controllers may launch jobs of one name in the same second.
    """
    name = f"{record.job_id}.{record.nonce}"
    if attempt > 1:
        name += f"-{attempt}"
    return name


def folder_name(record: JobRecord, attempt: int, node: str) -> str:
    """Return the name of an attempt's folder on a node.

    The node's is in it, because nodes may share the folder of their project. A job begun by a UGRO
    before that keeps its names.
    """
    name = attempt_name(record, attempt)
    return name if _has_older_names(record) else f"{name}.{node}"


def _has_older_names(record: JobRecord) -> bool:
    if record.plan is None:
        return False
    return any(not plan.folder.endswith(f".{plan.node}") for plan in record.plan.nodes)


def folder_of(record: JobRecord, attempt: int, node: Node) -> str:
    """Return the path of an attempt's folder on a node."""
    return f"{node.project}/jobs/{folder_name(record, attempt, node.name)}"


def token_of(record: JobRecord, attempt: int, node: Node) -> str:
    """Return the UGRO_TOKEN of an attempt's processes on a node."""
    return f"{attempt_name(record, attempt)}:{node.name}:{node.slot}"
