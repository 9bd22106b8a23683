"""Requests about a job on this node: prepare, start, stop, state; and reset of the node."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import time
from typing import Any, List, Optional

from .files import Json, expand, read_json, read_text, write_json
from .lease import lease_holder
from .processes import (
    Process,
    clean_environment,
    end_all,
    folder_of_supervisor,
    is_paused,
    job_of,
    of_rank,
    of_slot,
    slot_of,
    supervisor_argv,
    supervisor_of,
)
from .protocol import Refusal
from .scope import scope_argv

LEFTOVERS = ("supervisor.json", "torchrun.json", "stop.json", "exit.json", "error.json")


def prepare(request: Json, blob: bytes) -> Json:
    """Lay out the job's folder and start its supervisor, which takes the lease.

    The supervisor waits for `start`. `blob` is node.zip (its first `node_bytes` bytes) and a tar of
    the scripts. A second request for the same job only confirms it: a job that runs or has run is
    never started again. Refuses with "busy" and the holder if another job has the node.
    """
    folder = expand(request["folder"])
    has_run = os.path.exists(os.path.join(folder, "torchrun.json"))
    if has_run or supervisor_of(folder):
        return {"folder": folder}
    refuse_if_busy(request["token"])
    end_all(lambda: of_rank(request["token"]), 0.0)
    if request.get("activation"):
        # Late: only an environment of pixi's has an activation.
        from .environment import activated

        request["activated"] = activated(request["activation"])
    try:
        lay_out(folder, request, blob)
    except OSError as error:
        raise unwritable(folder, error) from error
    scope = scope_argv(request["token"])
    said = start_supervisor(folder, request, scope)
    if scope and not said:
        # It cannot be had after all, so the login's own cgroup has to do.
        said = start_supervisor(folder, request, [])
    if not said:
        log = read_text(os.path.join(folder, "supervisor.log"))
        words = log[-2000:] or "its supervisor was ended before it could say anything"
        raise Refusal("broken", words)
    answer: Json = json.loads(said)
    if not answer["leased"]:
        refuse_if_busy(request["token"])
        # Nothing holds the node itself, so its environment is being made, or another launch was as quick.
        raise Refusal("busy", "it is held", holder=answer.get("holder", {}))
    return {"folder": folder}


def start_supervisor(folder: str, request: Json, before: List[str]) -> bytes:
    """Start the job's supervisor, from its own copy of this program; return what it says once it has the lease.

    `before` stands before its command. Nothing is said by what could not be started.
    """
    program = os.path.join(folder, "node.zip")
    log_path = os.path.join(folder, "supervisor.log")
    with open(log_path, "ab") as log, contextlib.ExitStack() as inherited:
        supervisor = subprocess.Popen(
            [*before, *supervisor_argv(program, folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=dict(clean_environment(), UGRO_TOKEN=request["token"]),
            cwd=folder,
            start_new_session=True,
            pass_fds=keeping_port(request.get("rendezvous_port"), inherited),
        )
    assert supervisor.stdout
    with supervisor.stdout as pipe:
        return pipe.read()


def keeping_port(port: Optional[int], inherited: contextlib.ExitStack) -> List[int]:
    """Return the descriptor by which a supervisor keeps the rendezvous's port; [] without a port.

    Refuses with "port" if another job keeps it.
    """
    if port is None:
        return []
    # Late: only the master has a port.
    from .ports import keep_within, keeper_of

    if not keep_within(port):
        words = "another job has port %d, which was free a moment ago; launch again"
        raise Refusal("port", words % port)
    keeper = inherited.enter_context(keeper_of(port))
    return [keeper.fileno()]


def lay_out(folder: str, request: Json, blob: bytes) -> None:
    """Write the job's folder: plan, program and scripts, without files of an earlier attempt."""
    # Late: only this request needs it.
    import tarfile

    shutil.rmtree(os.path.join(folder, "code"), ignore_errors=True)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    # The folder may exist already, with a checkpoint to go on from.
    os.chmod(folder, 0o700)
    os.makedirs(os.path.join(folder, "output"), exist_ok=True)
    for name in LEFTOVERS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    node_bytes = request["node_bytes"]
    with open(os.path.join(folder, "node.zip"), "wb") as file:
        file.write(blob[:node_bytes])
    # The archive is the controller's own; newer Pythons ask for a filter all the same.
    safely: Any = {}
    if hasattr(tarfile, "data_filter"):
        safely["filter"] = "data"
    with tarfile.open(fileobj=io.BytesIO(blob[node_bytes:])) as archive:
        archive.extractall(os.path.join(folder, "code"), **safely)  # noqa: S202
    write_json(os.path.join(folder, "plan.json"), request)


def start(request: Json) -> Json:
    """Make the supervisor start torchrun, and wait until it runs; a running one is left alone.

    Refuses with "not started" and the exit record if it does not run.
    """
    folder = expand(request["folder"])
    running = os.path.join(folder, "torchrun.json")
    ended = os.path.join(folder, "exit.json")
    supervisor = supervisor_of(folder)
    if supervisor and not os.path.exists(running):
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGUSR1)
    # An exit record may be forged, so only the supervisor's end is one.
    while supervisor_of(folder) and not os.path.exists(running):
        time.sleep(0.005)
    if not os.path.exists(running):
        record = read_json(ended) or {"error": "the supervisor is gone"}
        raise Refusal("not started", why_not_started(record), exit=record)
    return {"torchrun": read_json(running)}


def why_not_started(record: Json) -> str:
    """Return why the exit record of a rank is there before its start."""
    if record.get("stopped_by"):
        return "the node was reset by %s" % record["stopped_by"]
    if record.get("interrupted"):
        return "its supervisor got signal %d" % record["interrupted"]
    return str(record.get("error") or "it was stopped")


def stop(request: Json) -> Json:
    """End the rank: {left, exit, seconds}.

    `left` are the job's processes still alive here; [] is the proof that none is.
    """
    begun = time.monotonic()
    folder = expand(request["folder"])
    order = {key: request[key] for key in ("grace_seconds", "reason")}
    stop_supervisors([folder], order)
    left = end_all(lambda: of_rank(request["token"]), 1.0)
    ended = read_json(os.path.join(folder, "exit.json"))
    if request.get("discard") and not left:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "left": [process.facts() for process in left],
        "exit": ended,
        "seconds": time.monotonic() - begun,
    }


def state(request: Json) -> Json:
    """Return the facts about a job here, from its folder and the process table."""
    folder = expand(request["folder"])
    found = of_rank(request["token"])
    return {
        "known": os.path.isdir(folder),
        "supervised": supervisor_of(folder) is not None,
        "started": os.path.exists(os.path.join(folder, "torchrun.json")),
        "exit": read_json(os.path.join(folder, "exit.json")),
        "processes": [process.facts() for process in found],
        "paused": [process.pid for process in found if is_paused(process.pid)],
    }


def stop_supervisors(folders: List[str], order: Json) -> None:
    """Give the supervisors of these folders an order to stop, and wait until they have left."""
    for folder in folders:
        supervisor = supervisor_of(folder)
        if supervisor:
            # On a full disk the signal must be sent all the same.
            with contextlib.suppress(OSError):
                write_json(os.path.join(folder, "stop.json"), order)
            with contextlib.suppress(ProcessLookupError):
                send_order(supervisor)
    # Beyond the grace: the supervisor's own KILL comes first.
    deadline = time.monotonic() + order["grace_seconds"] + 8
    while any(map(supervisor_of, folders)) and time.monotonic() < deadline:
        time.sleep(0.01)


def send_order(supervisor: int) -> None:
    """Send TERM in the way by which a supervisor knows an order; see `supervisor.stop_of`."""
    # Late: only a stop needs it.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigqueue(supervisor, signal.SIGTERM, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def reset(request: Json) -> Json:
    """End every process with a UGRO token in this slot, or those of one job: {ended, left}.

    So its lease is free. The exit records of ranks say that it was a reset, and by whom.
    """
    slot = request["slot"]
    job = request.get("job")

    def wanted() -> List[Process]:
        found = of_slot(slot)
        return [one for one in found if job is None or job_of(one.token) == job]

    ended = wanted()
    # A supervisor and its guard have one folder.
    found = {folder_of_supervisor(process.pid) for process in ended}
    folders = [folder for folder in found if folder]
    order = {
        "grace_seconds": request["grace_seconds"],
        "reason": "reset",
        "by": request["by"],
    }
    stop_supervisors(folders, order)
    left = end_all(wanted, request["grace_seconds"])
    return {
        "ended": [process.facts() for process in ended],
        "left": [process.facts() for process in left],
    }


def make_folder(request: Json) -> Json:
    """Make the project folder."""
    folder = expand(request["project"])
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    return {"project": folder}


def unwritable(folder: str, error: OSError) -> Refusal:
    """Make the refusal for a folder that cannot be written."""
    return Refusal("unwritable", "%s: %s" % (error.filename or folder, error.strerror))


def refuse_if_busy(token: str) -> None:
    """Refuse with "busy" if another job has the lease or a process in the slot."""
    slot = slot_of(token)
    holder = lease_holder(slot)
    others = [process for process in of_slot(slot) if process.token != token]
    if holder is not None and holder.get("token") != token:
        raise Refusal("busy", "the node is held", holder=holder)
    if others:
        raise Refusal("busy", "the node is not free", holder=others[0].facts())
