"""The answers of nvidia-smi, as `node/probe.py` asks for them."""

from __future__ import annotations

from typing import Any

from .node.probe import GPU_FIELDS


def parse_gpus(output: str) -> tuple[dict[str, str], ...]:
    """The cards in the answer to `nvidia-smi --query-gpu`, by field name; memory in MiB, power in W."""
    names = GPU_FIELDS.split(",")
    rows = [[value.strip() for value in line.split(",")] for line in output.splitlines()]
    return tuple(dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names))


def parse_apps(output: str) -> list[dict[str, Any]]:
    """The processes in the answer to `nvidia-smi --query-compute-apps`: pid, used_mib, name."""
    apps = []
    for line in output.splitlines():
        pid, used, name = ([value.strip() for value in line.split(",", 2)] + ["", ""])[:3]
        if pid.isdigit():
            apps.append({"pid": int(pid), "used_mib": int(used) if used.isdigit() else 0, "name": name})
    return apps


def is_number(text: str) -> bool:
    """Whether a value is one, and not [N/A]."""
    return text.replace(".", "", 1).isdigit()
