"""The supervisor of one rank, from lease to exit record; it sleeps until a signal wakes it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from typing import Dict, List, Optional, Tuple

from .files import Json, expand, read_json, read_text, write_json
from .gpu import GPU_FIELDS, nvidia_smi
from .lease import take_lease
from .processes import (
    clean_environment,
    end_all,
    identity,
    job_of,
    of_rank,
    reap,
    slot_of,
)
from .protocol import MISLEADING, OUTPUTS_TOLD

GO = signal.SIGUSR1
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WATCHED = {GO, signal.SIGCHLD, *STOP}
# See prctl(2).
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GPU_SAMPLE_SECONDS = 5.0
# For processes left behind by a script.
LEFTOVER_GRACE_SECONDS = 2.0
ERROR_CHARACTERS = 20_000
# For data loaders and sockets, if the node's limits allow it; a million slows some programs down.
OPEN_FILES = 65536


def supervise(folder: str) -> None:
    """Take the lease, wait for the start, run torchrun, and finally write the exit record."""
    plan = read_json(os.path.join(folder, "plan.json")) or {}
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    holder = {
        "token": plan["token"],
        "job": job_of(plan["token"]),
        "controller": plan["controller"],
        "since": time.time(),
        "pid": os.getpid(),
    }
    lease = take_lease(slot_of(plan["token"]), holder)
    if lease:
        write_json(os.path.join(folder, "supervisor.json"), identity(os.getpid()))
    os.write(1, json.dumps({"leased": lease is not None}).encode())
    os.dup2(2, 1)
    if not lease:
        return
    with lease:
        record = run_when_told(folder, plan)
        write_exit_record(folder, record)


def run_when_told(folder: str, plan: Json) -> Json:
    """Wait for the start, run torchrun, and return the exit record."""
    hold_seconds = plan["hold_seconds"]
    record: Json = {
        "code": None,
        "signal": None,
        "error": None,
        "started_at": None,
        "stopped": None,
    }
    signum = wait_for((GO, *STOP), hold_seconds)
    if signum == GO:
        record.update(run(folder, plan))
    elif signum is None:
        record["error"] = "prepared, but not told to start within %g s" % hold_seconds
    else:
        record["stopped"] = stop_order(folder)["reason"]
    return record


def write_exit_record(folder: str, record: Json) -> None:
    """Write exit.json, trying again as long as the disk is full: it must not be lost."""
    path = os.path.join(folder, "exit.json")
    while True:
        try:
            write_json(path, dict(record, ended_at=time.time()))
            return
        except OSError:
            time.sleep(1.0)


def stop_order(folder: str) -> Json:
    """Return the reason and grace of a stop; defaults for a bare signal or a full disk."""
    order = read_json(os.path.join(folder, "stop.json"))
    return order or {"grace_seconds": LEFTOVER_GRACE_SECONDS, "reason": "asked"}


def run(folder: str, plan: Json) -> Json:
    """Run torchrun and return its exit record, once no process of the job is left."""
    with open(os.path.join(folder, "log"), "ab") as log:
        try:
            torchrun = subprocess.Popen(
                [expand(word) for word in plan["argv"]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment_of_rank(folder, plan),
                cwd=os.path.join(folder, "code"),
                start_new_session=True,
                preexec_fn=be_a_child,
            )
        except OSError as error:
            words = "%s: %s" % (plan["argv"][0], error.strerror)
            return {"code": 127, "error": words}
    started_at = time.time()
    write_json(os.path.join(folder, "torchrun.json"), identity(torchrun.pid))
    status, stopped = watch(folder, plan, torchrun.pid)
    # Without a status the grace is used up; otherwise only leftovers of the script are alive.
    grace_seconds = 0.0 if status is None else LEFTOVER_GRACE_SECONDS
    end_all(lambda: of_rank(plan["token"]), grace_seconds)
    code: Optional[int] = None
    signum: Optional[int] = None
    if status is not None and os.WIFEXITED(status):
        code = os.WEXITSTATUS(status)
    if status is not None and os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
    outputs = names_in(os.path.join(folder, "output"))
    return {
        "code": code,
        "signal": signum,
        "error": last_words(os.path.join(folder, "error.json")),
        "started_at": started_at,
        "stopped": stopped,
        "outputs": outputs[:OUTPUTS_TOLD],
    }


def environment_of_rank(folder: str, plan: Json) -> Dict[str, str]:
    """Return torchrun's environment: this one, the activation's and the plan's variables."""
    environment = clean_environment()
    for key, value in plan.get("activated", {}).items():
        if not MISLEADING.match(key):
            environment[key] = value
    for key, value in plan["env"].items():
        environment[key] = expand(value)
    environment["UGRO_TOKEN"] = plan["token"]
    environment["TORCHELASTIC_ERROR_FILE"] = os.path.join(folder, "error.json")
    return environment


def last_words(path: str) -> Optional[str]:
    """Return torchrun's error file, None if it is empty.

    A long one is shortened to the start of the exception and the end of its traceback, still as
    JSON.
    """
    text = read_text(path)
    if len(text) <= ERROR_CHARACTERS:
        return text or None
    half = ERROR_CHARACTERS // 2
    try:
        told = json.loads(text)["message"]
        stack = told["extraInfo"]["py_callstack"]
        shortened = {
            "message": told["message"][:half],
            "extraInfo": {"py_callstack": stack[-half:]},
        }
        return json.dumps({"message": shortened})
    except (ValueError, LookupError, TypeError, RecursionError):
        return text[:ERROR_CHARACTERS]


def names_in(folder: str) -> List[str]:
    """Return the sorted names in a folder; [] if the script has removed it."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def watch(
    folder: str, plan: Json, torchrun: int
) -> Tuple[Optional[int], Optional[str]]:
    """Wait for torchrun and return (its wait status, the reason of a stop).

    The status is None if the grace ran out, the reason None without a stop. Meanwhile orphans are
    reaped and the GPU is sampled.
    """
    deadline = float("inf")
    stopped: Optional[str] = None
    sampler: Optional[subprocess.Popen[bytes]] = None
    next_sample = float("inf")
    if shutil.which("nvidia-smi"):
        next_sample = time.monotonic()
    while True:
        for pid, status in reap():
            if pid == torchrun:
                return status, stopped
            if sampler and pid == sampler.pid:
                with contextlib.suppress(OSError):
                    record_sample(folder, plan, sampler)
                sampler = None
        now = time.monotonic()
        if now >= deadline:
            return None, stopped
        if now >= next_sample:
            next_sample = now + GPU_SAMPLE_SECONDS
            if sampler is None:
                # A lost sample must not end the training.
                with contextlib.suppress(OSError):
                    sampler = subprocess.Popen(
                        nvidia_smi("gpu", GPU_FIELDS),
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                    )
        wake_at = min(next_sample, deadline, now + 3600)
        if wait_for(WATCHED, wake_at - now) in STOP:
            order = stop_order(folder)
            stopped = order["reason"]
            deadline = min(deadline, time.monotonic() + order["grace_seconds"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(torchrun, signal.SIGTERM)


def record_sample(folder: str, plan: Json, sampler: subprocess.Popen[bytes]) -> None:
    """Append a line to gpu.jsonl for each card in nvidia-smi's output."""
    # It was reaped by pid, unknown to Popen.
    sampler.returncode = 0
    assert sampler.stdout
    names = GPU_FIELDS.split(",")
    path = os.path.join(folder, "gpu.jsonl")
    with sampler.stdout as pipe, open(path, "a") as file:
        output = pipe.read().decode("utf-8", "replace")
        for line in output.splitlines():
            values = [value.strip() for value in line.split(",")]
            if len(values) != len(names):
                continue
            sample = dict(zip(names, values), node=plan["node"], time=time.time())
            file.write(json.dumps(sample) + "\n")


def be_a_child() -> None:
    """Prepare torchrun between fork and exec.

    It ends with the supervisor, receives signals again, and may open many files.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = OPEN_FILES
    if hard != resource.RLIM_INFINITY:
        allowed = min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def wait_for(
    signals: "set[signal.Signals] | tuple[signal.Signals, ...]", seconds: float
) -> Optional[int]:
    """Wait for one of the signals and return it, None after `seconds`."""
    got = signal.sigtimedwait(signals, max(0.0, seconds))
    return got.si_signo if got else None
