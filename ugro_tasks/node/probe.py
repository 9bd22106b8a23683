"""Facts about this machine, unjudged: `health.py` on the controller holds them against the cluster file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from typing import Callable, Dict, List, Optional

from .system import (
    Json,
    boot_id,
    expand,
    lease_holder,
    processes,
    read_json,
    read_text,
    slot_of,
    state_folder,
    write_json,
)

GPU_FIELDS = (
    "index,name,uuid,driver_version,memory.total,memory.used,utilization.gpu,temperature.gpu,power.draw"
)
APP_FIELDS = "pid,used_memory,process_name"
SIOCGIFADDR = 0x8915
GREETING_SECONDS = 0.5  # for the nonce of the port check and its answer
PORTS_TRIED = 20  # a short range, so that one firewall rule serves

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
    started = time.time()
    interpreter = expand(request["interpreter"])
    later = {
        "torch": look_at_torch(interpreter),
        "gpus": run_later(nvidia_smi("gpu", GPU_FIELDS)),
        "apps": run_later(nvidia_smi("compute-apps", APP_FIELDS)),
    }
    ours = processes(lambda _: True)
    facts: Json = {
        "hostname": socket.gethostname(),
        "resolves_to": resolve(socket.gethostname()),
        "interfaces": interfaces(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "boot_id": boot_id(),
        "cpus": os.cpu_count(),
        "project": space(expand(request["project"])),
        "shm": space("/dev/shm"),  # noqa: S108  (what the data loaders of torch use)
        "rsync": shutil.which("rsync"),
        "lease": lease_holder(request["slot"]),
        "jobs": [process.facts() for process in ours if slot_of(process.token) == request["slot"]],
        "our_pids": [process.pid for process in ours],
    }
    facts.update(try_port(request))
    facts.update((name, finish()) for name, finish in later.items())
    if facts["torch"].get("torch") and request["wants_cuda"]:
        facts["torch"]["cuda_available"] = cuda_available(interpreter, facts)
    return dict(facts, started=started, ended=time.time())


def look_at_torch(interpreter: str) -> Callable[[], Json]:
    """What LOOK_AT_TORCH finds. It is remembered until the interpreter, torch or the folder of packages change."""
    memory = os.path.join(state_folder(), "torch.json")
    known = read_json(memory)
    if known and known["stamps"] == stamps_of(interpreter, known["answer"]["files"]):
        answer: Json = known["answer"]
        return lambda: answer
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
            write_json(memory, {"answer": answer, "stamps": stamps_of(interpreter, answer["files"])})
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
    """torch.cuda.is_available(). A yes is remembered until torch, the cards, their driver or the boot change."""
    cards = [line.split(",")[:4] for line in facts["gpus"]["stdout"].splitlines()]
    key = json.dumps([stamps_of(interpreter, facts["torch"]["files"]), cards, facts["boot_id"]])
    memory = os.path.join(state_folder(), "cuda_available.json")
    if (read_json(memory) or {}).get("key") == key:
        return True
    answer = run_later([interpreter, "-c", "import torch; print(torch.cuda.is_available())"], 60.0)()
    available: bool = answer["stdout"].strip() == "True"
    if available:
        write_json(memory, {"key": key})
    return available


# ---- the network ----


def try_port(request: Json) -> Json:
    """Whether the rendezvous will work: the master listens for a moment, and each worker connects to it."""
    deadline = time.monotonic() + request["port_seconds"]
    nonce = request["nonce"].encode()
    if request["role"] == "worker":
        return {"reach": connect(request["master"], request["port"], nonce, deadline)}
    if request["role"] == "master":
        return listen(request["address"], request["port"], nonce, request["workers"], deadline)
    return {}


def listen(address: str, port: int, nonce: bytes, workers: int, deadline: float) -> Json:
    """{port: free|taken|unbindable, free_port}, after `workers` have answered the nonce or the deadline has passed.

    The nonce tells our own workers from those of another probe of the same master in the same moment.
    """
    with bindable(address) as listener:
        try:
            listener.bind((address, port))
        except OSError as error:
            kind = "taken" if error.errno == errno.EADDRINUSE else "unbindable"
            free = next_free(address, port) if kind == "taken" else None
            return {"port": kind, "port_error": error.strerror, "free_port": free}
        listener.listen(64)
        while workers and time.monotonic() < deadline:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            with contextlib.suppress(OSError), listener.accept()[0] as peer:
                peer.settimeout(GREETING_SECONDS)
                peer.sendall(nonce)
                workers -= len(peer.recv(1))
    return {"port": "free", "free_port": port}


def next_free(address: str, taken: int) -> Optional[int]:
    for port in range(taken + 1, min(taken + PORTS_TRIED, 65536)):
        with bindable(address) as candidate, contextlib.suppress(OSError):
            candidate.bind((address, port))
            return port
    return None


def bindable(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def connect(address: str, port: int, nonce: bytes, deadline: float) -> Json:
    """{ok, milliseconds} or {ok, error}. A refusal is tried again: the master's probe may not listen yet."""
    error = "no answer"
    while time.monotonic() < deadline:
        begun = time.monotonic()
        try:
            with socket.create_connection((address, port), max(0.05, deadline - begun)) as master:
                took = (time.monotonic() - begun) * 1000
                master.settimeout(GREETING_SECONDS)
                with contextlib.suppress(
                    OSError
                ):  # what listens there may be something else, e.g. a running job
                    if master.recv(len(nonce), socket.MSG_WAITALL) == nonce:
                        master.sendall(b"!")
            return {"ok": True, "milliseconds": took}
        except OSError as fault:
            error = fault.strerror or str(fault)
            time.sleep(0.02)
    return {"ok": False, "error": error}


def resolve(name: str) -> Optional[str]:
    """The IPv4 address that this node finds for a name."""
    with contextlib.suppress(OSError):
        return socket.gethostbyname(name)
    return None


def interfaces() -> Dict[str, Json]:
    """{name: {addresses, mtu}} of every network interface."""
    found: Dict[str, Json] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            mtu = read_text("/sys/class/net/%s/mtu" % name).strip()
            found[name] = {"addresses": [], "mtu": int(mtu) if mtu else None}
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name]["addresses"].append(socket.inet_ntoa(answer[20:24]))
    for line in read_text("/proc/net/if_inet6").splitlines():
        raw, name = line.split()[0], line.split()[-1]
        if name in found:
            found[name]["addresses"].append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(raw)))
    return found


def space(path: str) -> Json:
    """Bytes free and in all where `path` is or would be, and whether it can be written."""
    there = path
    while not os.path.exists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    usage = shutil.disk_usage(there)
    writable = os.access(there, os.W_OK | os.X_OK) and not os.statvfs(there).f_flag & os.ST_RDONLY
    return {
        "path": path,
        "free_bytes": usage.free,
        "total_bytes": usage.total,
        "writable": bool(writable),
    }
