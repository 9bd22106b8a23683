"""The names of an attempt on its nodes: its folder, and the token that its processes are found by."""

from __future__ import annotations

from ..cluster.model import Node
from .record import JobRecord


def attempt_folder(record: JobRecord, attempt: int) -> str:
    """The name of an attempt's folder on each node, and the first part of its tokens.

    The nonce is in it because two controllers may launch jobs of one name in the same second.
    """
    return f"{record.job_id}.{record.nonce}" + (f"-{attempt}" if attempt > 1 else "")


def folder_of(node: Node, unique: str) -> str:
    """Where an attempt lies on a node."""
    return f"{node.project}/jobs/{unique}"


def token_of(node: Node, unique: str) -> str:
    """What the processes of an attempt's rank on a node are found by."""
    return f"{unique}:{node.name}:{node.slot}"
