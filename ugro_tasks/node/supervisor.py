"""The supervisor of one rank, from lease to exit record; it sleeps until a signal wakes it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from typing import Dict, List, NamedTuple, Optional, Tuple

from .environment_users import using
from .files import Json, expand, read_json, read_text, write_json
from .gpu_samples import GpuSampler
from .lease import Lease, take_lease
from .processes import (
    SECOND_LOOK_SECONDS,
    Process,
    clean_environment,
    end_all,
    forget_processes,
    identity,
    job_of,
    note_processes,
    of_rank,
    reap,
    slot_of,
)
from .protocol import MISLEADING, OUTPUTS_TOLD, PROCESSES_TOLD, Refusal

GO = signal.SIGUSR1
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WATCHED = {GO, signal.SIGCHLD, *STOP}
# How a signal was sent, see sigaction(2): by sigqueue(3), as orders are.
SI_QUEUE = -1
SHUTDOWN_SIGNS = ("/run/nologin", "/run/systemd/shutdown/scheduled")
# See prctl(2).
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
# Between two looks at the rank's processes, for whoever must find them without their supervisor.
LOOK_SECONDS = 5.0
# Between two looks whether the rank has ended that was told to stop.
STOP_LOOK_SECONDS = 0.05
# For processes left behind by a script.
LEFTOVER_GRACE_SECONDS = 2.0
# For a script's helpers to end by themselves after it.
HELPERS_SECONDS = 0.5
# Far beyond any order's.
GRACE_SECONDS_MOST = 1e9
ERROR_CHARACTERS = 20_000
# Far more than any traceback; a rank may write what it likes.
ERROR_FILE_BYTES = 1 << 24
# For data loaders and sockets, if the node's limits allow it; a million slows some programs down.
OPEN_FILES = 65536


def supervise(folder: str) -> None:
    """Take the lease, wait for the start, run torchrun, and finally write the exit record."""
    leave_a_guard()
    plan = read_json(os.path.join(folder, "plan.json")) or {}
    # A child is none because its parent is.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    holder = {
        "token": plan["token"],
        "job": job_of(plan["token"]),
        "controller": plan["controller"],
        "since": time.time(),
    }
    lease = take_lease(slot_of(plan["token"]), holder)
    if not lease:
        say({"leased": False})
        return
    with lease, contextlib.ExitStack() as used:
        work = plan.get("environment_work")
        user = dict(holder, node=plan["node"])
        try:
            used.enter_context(using(expand(work) if work else None, user))
        except Refusal as refusal:
            say({"leased": False, "holder": refusal.answer["holder"]})
            return
        write_json(os.path.join(folder, "supervisor.json"), identity(os.getpid()))
        say({"leased": True})
        record = run_when_told(folder, plan, lease)
        write_exit_record(folder, record)


def say(answer: Json) -> None:
    """Answer the request that has started this process, which waits for nothing else."""
    os.write(1, json.dumps(answer).encode())
    os.dup2(2, 1)


def leave_a_guard() -> None:
    """Go on as the child of a process that adopts whatever a killed supervisor leaves, until all of it has ended.

    It carries the job's token, so what it has adopted is known as the job's. No polite signal ends it. In both, the
    watched signals are blocked from now on.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    if os.fork() == 0:
        return
    # Whoever waits for the supervisor's word, its lease or the rendezvous's port waits for that one alone.
    os.dup2(2, 1)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.close(int(name))
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    os._exit(0)


def run_when_told(folder: str, plan: Json, lease: Lease) -> Json:
    """Wait for the start, run torchrun, and return the exit record."""
    hold_seconds = plan["hold_seconds"]
    record: Json = {
        "code": None,
        "signal": None,
        "error": None,
        "started_at": None,
        "stopped": None,
    }
    got = wait_for((GO, *STOP), hold_seconds)
    if got is None:
        record["error"] = "prepared, but not told to start within %g s" % hold_seconds
    elif got.si_signo == GO:
        record.update(run(folder, plan, lease))
    else:
        record.update(stop_of(folder, got).facts())
    return record


def write_exit_record(folder: str, record: Json) -> None:
    """Write exit.json, trying again as long as the disk is full: it must not be lost.

    A folder that the script has put in its place goes. Where the script has removed the job's own folder there is
    nowhere to write it, and nobody would look.
    """
    path = os.path.join(folder, "exit.json")
    while os.path.isdir(folder):
        try:
            write_json(path, dict(record, ended_at=time.time()))
        except IsADirectoryError:
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            time.sleep(1.0)
        else:
            return


class StopOfRank(NamedTuple):
    """Why a rank was ended from outside: by an order of UGRO's, or by a signal that is not UGRO's.

    A machine that shuts down, a session that ends and an impatient person all send signals: none of
    them is an order.
    """

    grace_seconds: float
    reason: Optional[str] = None
    by: Optional[str] = None
    signal: Optional[int] = None
    shutting_down: bool = False
    log_bytes: Optional[int] = None

    def facts(self) -> Json:
        """Return the stop as in the exit record."""
        return {
            "stopped": self.reason,
            "stopped_by": self.by,
            "interrupted": self.signal,
            "shutting_down": self.shutting_down,
            "log_bytes": self.log_bytes,
        }


def stop_of(folder: str, got: signal.struct_siginfo) -> StopOfRank:
    """Return the stop that a signal stands for.

    On a full disk there is no stop.json: then the way it was sent shows that it is an order.
    """
    order = read_json(os.path.join(folder, "stop.json"))
    if order and not is_order(order):
        # The script's: UGRO writes its own over it.
        order = None
    # What a rank has said by now, it has not said because it is stopped.
    log_bytes = size_of(os.path.join(folder, "log"))
    if order:
        return StopOfRank(
            order["grace_seconds"],
            order["reason"],
            order.get("by"),
            log_bytes=log_bytes,
        )
    if got.si_code == SI_QUEUE:
        return StopOfRank(LEFTOVER_GRACE_SECONDS, "asked", log_bytes=log_bytes)
    return StopOfRank(
        LEFTOVER_GRACE_SECONDS,
        log_bytes=log_bytes,
        signal=got.si_signo,
        # See systemd's shutdown(8): there is no login any more.
        shutting_down=any(os.path.exists(path) for path in SHUTDOWN_SIGNS),
    )


def is_order(order: Json) -> bool:
    """Tell whether the content of stop.json is of the types that an order has."""
    grace_seconds = order.get("grace_seconds")
    by = order.get("by")
    return (
        isinstance(grace_seconds, (int, float))
        and 0 <= grace_seconds <= GRACE_SECONDS_MOST
        and isinstance(order.get("reason"), str)
        and (by is None or isinstance(by, str))
    )


def size_of(path: str) -> Optional[int]:
    """Return a file's size, None if it cannot be looked at."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def run(folder: str, plan: Json, lease: Lease) -> Json:
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
    try:
        write_json(os.path.join(folder, "torchrun.json"), identity(torchrun.pid))
    except OSError as error:
        # Nothing runs of which no record knows.
        end_all(lambda: others_of_rank(plan["token"]), 0.0)
        return {"error": "%s: %s" % (folder, error.strerror)}
    oom_kills_before = oom_kills()
    with GpuSampler(folder, plan["node"]) as sampler:
        status, stopped = watch(folder, plan, torchrun.pid, lease, sampler)
    has_succeeded = status == 0 and not stopped
    outlived = still_running(plan["token"]) if has_succeeded else []
    # Without a status there is no more grace; otherwise only leftovers of the script are alive.
    grace_seconds = 0.0 if status is None else LEFTOVER_GRACE_SECONDS
    left = end_all(lambda: others_of_rank(plan["token"]), grace_seconds)
    # Late: it is not needed before.
    from .suspects import suspects

    suspected = suspects(plan["token"], folder)
    ended = [process for process in outlived if process not in left]
    if left:
        note_processes(plan["token"])
    else:
        forget_processes(plan["token"])
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
        "left_pids": [process.pid for process in left],
        "outlived": [
            {"pid": process.pid, "command": process.command}
            for process in ended[:PROCESSES_TOLD]
        ],
        "suspects": suspected,
        "outputs": outputs[:OUTPUTS_TOLD],
        "oom_kills": oom_kills() - oom_kills_before,
        **(stopped.facts() if stopped else {}),
    }


def others_of_rank(token: str, torchrun: Optional[int] = None) -> List[Process]:
    """Return the living processes of a rank but its supervisor, which asks, the supervisor's guard, and torchrun."""
    but = (os.getppid(), torchrun)
    return [process for process in of_rank(token) if process.pid not in but]


def has_ended(token: str, torchrun: int) -> bool:
    """Return whether nothing of a rank is left beside torchrun; a process may fork and end, so it takes two looks."""
    if others_of_rank(token, torchrun):
        return False
    time.sleep(SECOND_LOOK_SECONDS)
    return not others_of_rank(token, torchrun)


def still_running(token: str) -> List[Process]:
    """Return what goes on although torchrun has ended well: a script's daemon may be the work itself.

    Helpers, such as Python's resource tracker, end by themselves a moment after the script.
    """
    deadline = time.monotonic() + HELPERS_SECONDS
    while True:
        list(reap())
        found = others_of_rank(token)
        if not found or time.monotonic() >= deadline:
            return found
        time.sleep(STOP_LOOK_SECONDS)


def oom_kills() -> int:
    """Return how many processes of this machine the kernel has killed for lack of memory."""
    found = re.search(r"^oom_kill (\d+)$", read_text("/proc/vmstat"), re.M)
    return int(found[1]) if found else 0


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
    size = size_of(path) or 0
    if size > ERROR_FILE_BYTES:
        return "%s is too long to be an error: %d bytes" % (path, size)
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
    """Return the sorted names in a folder; [] if the script has removed or replaced it, or made it unreadable."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def watch(
    folder: str, plan: Json, torchrun: int, lease: Lease, sampler: GpuSampler
) -> Tuple[Optional[int], Optional[StopOfRank]]:
    """Wait for torchrun and return (its wait status, what stopped it).

    The status is None if torchrun is to be killed: what was told to stop has ended, or its grace ran
    out. The stop is None without one. Meanwhile orphans are reaped and the GPU is sampled.
    """
    deadline = float("inf")
    stopped: Optional[StopOfRank] = None
    # Whether the rank still ran when it was told to stop: then its end is waited for, and not torchrun's.
    was_running = False
    began = next_look = time.monotonic()
    while True:
        for pid, status in reap():
            if pid == torchrun:
                return status, stopped
            sampler.note_end(pid)
        now = time.monotonic()
        if now >= deadline:
            return None, stopped
        sampler.take_if_due(now)
        if now >= next_look:
            note_processes(plan["token"])
            lease.clear()
            # A script starts most of its processes early.
            next_look = now + min(LOOK_SECONDS, max(0.2, now - began))
        wake_at = min(sampler.next_at, next_look, deadline)
        if was_running:
            wake_at = min(wake_at, now + STOP_LOOK_SECONDS)
            if has_ended(plan["token"], torchrun):
                # torchrun would take a second to come to its end, in which nothing of use happens.
                os.kill(torchrun, signal.SIGKILL)
                return None, stopped
        got = wait_for(WATCHED, wake_at - now)
        if got and got.si_signo in STOP:
            stop = stop_of(folder, got)
            # What came first is why: a machine that shuts down may be told to stop as well.
            stopped = stopped or stop
            deadline = min(deadline, time.monotonic() + stop.grace_seconds)
            if stop.reason is not None:
                was_running = bool(others_of_rank(plan["token"], torchrun))
            with contextlib.suppress(ProcessLookupError):
                os.kill(torchrun, signal.SIGTERM)


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
) -> Optional[signal.struct_siginfo]:
    """Wait for one of the signals and return it, None after `seconds`."""
    return signal.sigtimedwait(signals, max(0.0, seconds))
