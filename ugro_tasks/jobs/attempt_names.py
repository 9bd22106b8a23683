"""The names of an attempt on its nodes: its folder, and the token of its processes."""

from __future__ import annotations

from ..cluster.model import Node
from .record import JobRecord


def attempt_folder(record: JobRecord, attempt: int) -> str:
    """Return the name of an attempt's folder on each node, the first part of its tokens.

    It has a nonce because two controllers may launch jobs of one name in the same second.
    """
    name = f"{record.job_id}.{record.nonce}"
    if attempt > 1:
        name += f"-{attempt}"
    return name


def folder_of(node: Node, unique: str) -> str:
    """Return the path of an attempt's folder on a node."""
    return f"{node.project}/jobs/{unique}"


def token_of(node: Node, unique: str) -> str:
    """Return the UGRO_TOKEN of an attempt's processes on a node."""
    return f"{unique}:{node.name}:{node.slot}"
