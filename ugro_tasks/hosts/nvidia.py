"""The answers of nvidia-smi, as `node/probe.py` asks for them."""

from __future__ import annotations

import re
from typing import Any

from ..node.gpu import GPU_FIELDS, HEALTH_FIELDS

# Not `isdigit`, which takes a ² for one; nor any number of them.
DIGITS = re.compile("[0-9]{1,12}")
NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12}")
# What it says instead of a value of a card that has to be reset, or that is gone.
ILL = ("ERR!", "GPU requires reset", "GPU is lost", "Unknown Error")


def parse_gpus(output: str) -> tuple[dict[str, str], ...]:
    """The cards in the answer to `nvidia-smi --query-gpu`, by field name; memory in MiB, power in W."""
    by_length = {len(names): names for names in (GPU_FIELDS.split(","), HEALTH_FIELDS.split(","))}
    rows = [[value.strip() for value in line.split(",")] for line in output.splitlines()]
    known = [row for row in rows if len(row) in by_length and DIGITS.fullmatch(row[0])]
    return tuple(dict(zip(by_length[len(row)], row, strict=True)) for row in known)


def parse_apps(output: str) -> list[dict[str, Any]]:
    """The processes in the answer to `nvidia-smi --query-compute-apps`: pid, used_mib, name."""
    apps = []
    for line in output.splitlines():
        pid, used, name = ([value.strip() for value in line.split(",", 2)] + ["", ""])[:3]
        if DIGITS.fullmatch(pid):
            apps.append(
                {"pid": int(pid), "used_mib": int(used) if DIGITS.fullmatch(used) else 0, "name": name}
            )
    return apps


def is_number(text: str) -> bool:
    """Whether a value is one, and not [N/A]."""
    return bool(NUMBER.fullmatch(text))
