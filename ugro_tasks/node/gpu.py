"""The queries of nvidia-smi."""

from __future__ import annotations

from typing import List

GPU_FIELDS = "index,name,uuid,driver_version,memory.total,memory.used,utilization.gpu,temperature.gpu,power.draw"
HEALTH_FIELDS = GPU_FIELDS + ",ecc.errors.uncorrected.volatile.total"
APP_FIELDS = "pid,used_memory,process_name"


def nvidia_smi(what: str, fields: str) -> List[str]:
    """Return the argv of a query.

    Its output has a line of comma-separated values for each item, without units.
    """
    return [
        "nvidia-smi",
        "--query-%s=%s" % (what, fields),
        "--format=csv,noheader,nounits",
    ]
