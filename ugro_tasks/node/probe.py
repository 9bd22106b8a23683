"""Facts about this machine, unjudged: `health.py` on the controller holds them against the cluster file."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List

from .system import (
    Json,
    boot_id,
    expand,
    lease_holder,
    processes,
    read_json,
    slot_of,
    state_folder,
    write_json,
)

GPU_FIELDS = (
    "index,name,uuid,driver_version,memory.total,memory.used,utilization.gpu,temperature.gpu,power.draw"
)
HEALTH_FIELDS = GPU_FIELDS + ",ecc.errors.uncorrected.volatile.total"
APP_FIELDS = "pid,used_memory,process_name"

# Run by the training environment's own Python. It reads torch's version file instead of importing torch (3 s).
LOOK_AT_TORCH = """
import importlib.util, json, os, platform, runpy
found = {"python": platform.python_version()}
spec = importlib.util.find_spec("torch")
if spec and spec.origin:
    path = os.path.join(os.path.dirname(spec.origin), "version.py")
    facts = runpy.run_path(path)
    found.update(torch=str(facts.get("__version__")), cuda=facts.get("cuda"))
    found["files"] = [path, os.path.dirname(os.path.dirname(spec.origin))]
print(json.dumps(found))
"""


def probe(request: Json) -> Json:
    """Everything that a health check or a launch wants to know of this node, in one go."""
    # Only a probe needs it, and a zip has no compiled files.
    from .network import interfaces, resolve_later, try_ports

    started = time.time()
    interpreter = expand(request["interpreter"])
    later: Dict[str, Callable[[], Any]] = {
        "torch": look_at_torch(interpreter),
        "gpus": run_later(nvidia_smi("gpu", HEALTH_FIELDS)),
        "apps": run_later(nvidia_smi("compute-apps", APP_FIELDS)),
        "resolves_to": resolve_later(socket.gethostname()),
    }
    ours = processes(lambda _: True)
    facts: Json = {
        "hostname": socket.gethostname(),
        "interfaces": interfaces(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "boot_id": boot_id(),
        "cpus": os.cpu_count(),
        "project": space(expand(request["project"])),
        "home": own_folder(),
        "shm": space("/dev/shm"),  # noqa: S108  (what the data loaders of torch use)
        "rsync": shutil.which("rsync"),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "visible_cards": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "lease": lease_holder(request["slot"]),
        "jobs": [process.facts() for process in ours if slot_of(process.token) == request["slot"]],
        "our_pids": [process.pid for process in ours],
    }
    if "environment" in request:
        from .environment import built  # it builds on this module

        facts["environment"] = built(request["environment"])
    if request.get("model"):
        from .model import look_for_model

        facts["model"] = look_for_model(request["model"])
    facts.update(try_ports(request))
    facts.update((name, finish()) for name, finish in later.items())
    if facts["torch"].get("torch") and request["wants_cuda"]:
        facts["torch"]["cuda_available"] = cuda_available(interpreter, facts)
    return dict(facts, started=started, ended=time.time())


def look_at_torch(interpreter: str) -> Callable[[], Json]:
    """What LOOK_AT_TORCH finds. It is remembered until the interpreter, torch or the folder of packages change."""
    memory = os.path.join(state_folder(), "torch.json")
    known = recall(memory)
    kept: Json = known["answer"] if isinstance(known.get("answer"), dict) else {}
    files = kept.get("files")
    if isinstance(files, list) and known.get("stamps") == stamps_of(interpreter, files):
        return lambda: kept
    finish = run_later([interpreter, "-c", LOOK_AT_TORCH])

    def look() -> Json:
        answer = finish()
        if answer["code"] == 0:
            try:
                answer.update(json.loads(answer["stdout"]))
            except (ValueError, TypeError):
                said = "it says other things than it was asked: %r" % answer["stdout"][:200]
                return dict(answer, code=None, stderr=said)
        if answer.get("torch"):
            remember(memory, {"answer": answer, "stamps": stamps_of(interpreter, answer["files"])})
        return answer

    return look


def stamps_of(interpreter: str, files: List[str]) -> List[object]:
    """What changes with an environment: its interpreter, and the time stamps of its files."""
    stamps: List[object] = [interpreter]
    for path in [shutil.which(interpreter) or interpreter, *files]:
        try:
            stamps.append(os.stat(path).st_mtime_ns)
        except OSError:
            stamps.append(None)
    return stamps


def nvidia_smi(what: str, fields: str) -> List[str]:
    """The query whose answer is one line of comma-separated values an item, without units."""
    return ["nvidia-smi", "--query-%s=%s" % (what, fields), "--format=csv,noheader,nounits"]


def run_later(argv: List[str], limit_seconds: float = 20.0) -> Callable[[], Json]:
    """Start `argv` now; the callable gives {code, stdout, stderr}, code None where it is not there or hangs."""
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        missing: Json = {"code": None, "stdout": "", "stderr": "%s: %s" % (argv[0], error.strerror)}
        return lambda: missing

    def finish() -> Json:
        try:
            out, err = process.communicate(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            process.kill()  # and no waiting: with a card off the bus, nvidia-smi cannot even be killed
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
            return {
                "code": None,
                "stdout": "",
                "stderr": "%s: no answer in %g s" % (argv[0], limit_seconds),
            }
        return {"code": process.returncode, "stdout": out, "stderr": err[-2000:]}

    return finish


def cuda_available(interpreter: str, facts: Json) -> bool:
    """torch.cuda.is_available(). A yes is remembered until torch, the cards, what hides them or the boot change."""
    cards = [line.split(",")[:4] for line in facts["gpus"]["stdout"].splitlines()]
    seen = [cards, facts["visible_cards"], facts["boot_id"]]
    key = json.dumps([stamps_of(interpreter, facts["torch"]["files"]), *seen])
    memory = os.path.join(state_folder(), "cuda_available.json")
    if recall(memory).get("key") == key:
        return True
    answer = run_later([interpreter, "-c", "import torch; print(torch.cuda.is_available())"], 60.0)()
    available: bool = answer["stdout"].strip() == "True"
    if available:
        remember(memory, {"key": key})
    return available


def remember(path: str, value: Json) -> None:
    """For the next probe; where there is no room, or the home cannot be written, it looks again."""
    with contextlib.suppress(OSError):
        write_json(path, value)


def recall(path: str) -> Json:
    """What `remember` kept; {} where there is nothing, or something else by now."""
    try:
        known = read_json(path)
    except (ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def own_folder() -> Json:
    """The `space` of ~/.ugro, and what tells it from that of another machine or container."""
    folder = state_folder()
    facts = space(folder)
    with contextlib.suppress(OSError):
        there = os.stat(folder)
        facts["identity"] = "%s %d:%d" % (boot_id(), there.st_dev, there.st_ino)
    return facts


def space(path: str) -> Json:
    """Bytes free and in all where `path` is or would be, whether it can be written, and how many files more fit.

    `free_files` is None where the file system has no limit.
    """
    there = path
    while not os.path.exists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    usage, system = shutil.disk_usage(there), os.statvfs(there)
    writable = os.access(there, os.W_OK | os.X_OK) and not system.f_flag & os.ST_RDONLY
    return {
        "path": path,
        "free_bytes": usage.free,
        "total_bytes": usage.total,
        # Some network file systems say -1, which comes as a number without sense.
        "free_files": system.f_favail if system.f_files > 0 and system.f_favail < 1 << 60 else None,
        "writable": bool(writable),
    }
