"""The port of the rendezvous: whether it is free, kept for one launch, and whether the workers get to it.

Nothing here ever listens on it: torchrun of another job may want to in the same moment. A port is free where it can be
bound for an instant, which disturbs nobody who binds with SO_REUSEADDR as torchrun does, and no other job keeps it. A
port is kept by a socket in the kernel's abstract namespace, which belongs to the machine and not to a home or a user,
and goes with the last process that has it.
"""

from __future__ import annotations

import errno
import socket
import time
from typing import Dict, Optional

from .files import Json, read_text

PORTS_TRIED = 20  # a short range, so that one firewall rule serves
RETRY_SECONDS = 0.05
KEEP_SECONDS = 3.0  # for the end of a job that has just ended

_kept: Dict[int, socket.socket] = {}  # by this process


def look_at_port(request: Json, deadline: float) -> Json:
    """{port, free_port} of the master, {reach} of a worker, {} of neither; with `keep_port` the master keeps it."""
    if request["role"] == "worker":
        return {"reach": reach(request["master"], request["port"], deadline)}
    if request["role"] == "master":
        return find_port(
            request["address"], request["port"], keep_it=bool(request.get("keep_port"))
        )
    return {}


def find_port(address: str, wanted: int, *, keep_it: bool) -> Json:
    """{port: free|taken|unbindable, port_error, free_port}: what is to be had from the wanted port on."""
    found: Json = {"port": "free", "free_port": None}
    for port in range(wanted, min(wanted + PORTS_TRIED, 65536)):
        error = bind_error(address, port)
        if error is not None and error.errno != errno.EADDRINUSE:
            return {
                "port": "unbindable",
                "port_error": error.strerror,
                "free_port": None,
            }
        if error is None and (keep(port) if keep_it else not is_kept_elsewhere(port)):
            found["free_port"] = port
            break
        found["port"] = "taken"
    if found["port"] == "taken":
        found["port_error"] = "Address already in use"
    return found


def bind_error(address: str, port: int) -> Optional[OSError]:
    """Why a port cannot be bound at an address; None where it can."""
    with bindable(address) as candidate:
        try:
            candidate.bind((address, port))
        except OSError as error:
            return error
    return None


def bindable(address: str) -> socket.socket:
    """A socket that can be bound to an address of its family, as torchrun binds one."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def name_of(port: int) -> str:
    """The name of the socket that keeps a port."""
    return "ugro-port-%d" % port


def keep(port: int) -> bool:
    """Keep a port for this process and those that inherit it; False where somebody else keeps it."""
    if port in _kept:
        return True
    keeper = socket.socket(socket.AF_UNIX)
    try:
        keeper.bind("\0" + name_of(port))
    except OSError:
        keeper.close()
        return False
    _kept[port] = keeper
    return True


def keep_within(port: int, seconds: float = KEEP_SECONDS) -> bool:
    """Keep a port, waiting for the last moments of a job that has it."""
    deadline = time.monotonic() + seconds
    while not keep(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(RETRY_SECONDS)
    return True


def keeper_of(port: int) -> socket.socket:
    """The socket that keeps a port, for another process to inherit; this process has no part in it any more."""
    return _kept.pop(port)


def is_kept_elsewhere(port: int) -> bool:
    """Whether another process on this machine keeps a port; looked up without touching it."""
    if port in _kept:
        return False
    names = [line.split()[-1] for line in read_text("/proc/net/unix").splitlines()]
    return "@" + name_of(port) in names


def reach(address: str, port: int, deadline: float) -> Json:
    """{ok, milliseconds} or {ok, error}: whether packets to the port get there. A refusal comes from there, too."""
    error = "no answer"
    while time.monotonic() < deadline:
        begun = time.monotonic()
        try:
            socket.create_connection(
                (address, port), max(0.05, deadline - begun)
            ).close()
        except ConnectionRefusedError:
            pass
        except OSError as fault:
            error = fault.strerror or str(fault)
            time.sleep(RETRY_SECONDS)
            continue
        return {"ok": True, "milliseconds": (time.monotonic() - begun) * 1000}
    return {"ok": False, "error": error}
