"""Facts about this machine; the controller's `health/` compares them with the cluster file."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from .environment import built, cuda_available, look_at_torch
from .files import Json, expand, own_folder
from .gpu import APP_FIELDS, HEALTH_FIELDS, nvidia_smi
from .lease import lease_holder
from .processes import (
    Process,
    boot_id,
    folder_of_supervisor,
    processes,
    slot_of,
    start_time,
)
from .programs import run_later
from .scope import look_at_logout

# More than a process takes from its last file to its end.
ENDING_SECONDS = 0.05


def probe(request: Json) -> Json:
    """Return all facts of this node needed for a health check or a launch."""
    # Late: only a probe needs it, and a zip has no compiled files.
    from .network import interfaces, resolve_later, try_ports

    started = time.time()
    interpreter = expand(request["interpreter"])
    later: Dict[str, Callable[[], Any]] = {
        "torch": look_at_torch(interpreter),
        "gpus": run_later(nvidia_smi("gpu", HEALTH_FIELDS)),
        "apps": run_later(nvidia_smi("compute-apps", APP_FIELDS)),
        "resolves_to": resolve_later(socket.gethostname()),
        "logout": look_at_logout(),
    }
    ours = processes(lambda _: True)
    facts: Json = {
        "hostname": socket.gethostname(),
        "interfaces": interfaces(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "boot_id": boot_id(),
        "cpus": os.cpu_count(),
        "project": space(expand(request["project"])),
        "home": home_space(),
        "shm": space("/dev/shm"),  # noqa: S108  (what the data loaders of torch use)
        "rsync": shutil.which("rsync"),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "visible_cards": os.environ.get("CUDA_VISIBLE_DEVICES"),
        **holders(request["slot"], ours),
        "our_pids": [process.pid for process in ours],
    }
    if "environment" in request:
        facts["environment"] = built(request["environment"])
    if request.get("model"):
        # Late: only a launch has a model.
        from .model import look_for_model

        facts["model"] = look_for_model(request["model"])
    facts.update(try_ports(request))
    for name, finish in later.items():
        facts[name] = finish()
    if facts["torch"].get("torch") and request["wants_cuda"]:
        facts["torch"]["cuda_available"] = cuda_available(interpreter, facts)
    return dict(facts, started=started, ended=time.time())


def holders(slot: str, ours: List[Process]) -> Json:
    """Return {lease, jobs}: the holder of the slot, and the living processes of ranks in it.

    A job frees its lease after its last process. If there are processes but no lease, the job may
    be just ending, so both are read again after a moment, and dead processes are left out. A
    supervisor without a lease is about to take it, or to end, and is no process of a rank.
    """
    lease, jobs = look_at_slot(slot, ours)
    if jobs and lease is None:
        time.sleep(ENDING_SECONDS)
        lease, jobs = look_at_slot(slot, ours)
    return {"lease": lease, "jobs": [process.facts() for process in jobs]}


def look_at_slot(
    slot: str, ours: List[Process]
) -> Tuple[Optional[Json], List[Process]]:
    """Return the lease's holder, and the processes in `ours` still alive in a slot."""
    lease = lease_holder(slot)
    alive = []
    for process in ours:
        if slot_of(process.token) != slot or start_time(process.pid) is None:
            continue
        if lease is not None or not folder_of_supervisor(process.pid):
            alive.append(process)
    return lease, alive


def home_space() -> Json:
    """Return the `space` of ~/.ugro, with the identity of those that have one lease of a name.

    Containers with a network of their own have leases of their own.
    """
    facts = space(own_folder())
    with contextlib.suppress(OSError):
        facts["identity"] = "%s %s" % (boot_id(), os.readlink("/proc/self/ns/net"))
    return facts


def space(path: str) -> Json:
    """Return the free space at a path: bytes, files, and whether it is writable.

    A missing path has the space of its nearest parent. `free_files` is None if the file system has
    no limit.
    """
    there = nearest_parent(path)
    usage = shutil.disk_usage(there)
    system = os.statvfs(there)
    free_files: Optional[int] = None
    # Some network file systems report -1, read as a huge number.
    if system.f_files > 0 and system.f_favail < 1 << 60:
        free_files = system.f_favail
    is_read_only = bool(system.f_flag & os.ST_RDONLY)
    is_allowed = os.access(there, os.W_OK | os.X_OK)
    return {
        "path": path,
        "free_bytes": usage.free,
        "total_bytes": usage.total,
        "free_files": free_files,
        "writable": is_allowed and not is_read_only,
    }


def nearest_parent(path: str) -> str:
    """Return the path itself if it exists, else its nearest existing parent."""
    while not os.path.exists(path):
        parent = os.path.dirname(path)
        if parent == path:
            break
        path = parent
    return path
