"""The port of the rendezvous: free or not, kept for one launch, reachable for the workers.

Nothing here ever listens on it, since torchrun of another job may do so at the same moment. A port
is free if it can be bound for an instant, which disturbs nobody who binds with SO_REUSEADDR as
torchrun does, and if no other job keeps it. A port is kept by a socket in the kernel's abstract
namespace, which belongs to the machine rather than to a home or a user, and vanishes with its last
process.
"""

from __future__ import annotations

import errno
import socket
import time
from typing import Dict, Optional

from .files import Json, read_text

# A short range, so that one firewall rule is enough.
PORTS_TRIED = 20
RETRY_SECONDS = 0.05
# For an ending job to release its port.
KEEP_SECONDS = 3.0

# The ports kept by this process.
_kept: Dict[int, socket.socket] = {}


def look_at_port(request: Json, deadline: float) -> Json:
    """Test the port: {port, free_port} on the master, {reach} on a worker, else {}.

    With `keep_port` the master keeps it.
    """
    port = request["port"]
    if request["role"] == "worker":
        return {"reach": reach(request["master"], port, deadline)}
    if request["role"] == "master":
        keep_it = bool(request.get("keep_port"))
        return find_port(request["address"], port, keep_it=keep_it)
    return {}


def find_port(address: str, wanted: int, *, keep_it: bool) -> Json:
    """Find a free port from the wanted one on.

    Returns {port: free|taken|unbindable, port_error, free_port}; `port` is about the wanted one.
    """
    found: Json = {"port": "free", "free_port": None}
    for port in range(wanted, min(wanted + PORTS_TRIED, 65536)):
        error = bind_error(address, port)
        if error is not None and error.errno != errno.EADDRINUSE:
            return {
                "port": "unbindable",
                "port_error": error.strerror,
                "free_port": None,
            }
        if error is None and is_to_be_had(port, keep_it=keep_it):
            found["free_port"] = port
            break
        found["port"] = "taken"
        found["port_error"] = "Address already in use"
    return found


def is_to_be_had(port: int, *, keep_it: bool) -> bool:
    """Tell whether no other process keeps a port; with `keep_it`, keep it from now on."""
    if keep_it:
        return keep(port)
    return not is_kept_elsewhere(port)


def bind_error(address: str, port: int) -> Optional[OSError]:
    """Return the error of binding a port at an address, None if it succeeds."""
    with bindable(address) as candidate:
        try:
            candidate.bind((address, port))
        except OSError as error:
            return error
    return None


def bindable(address: str) -> socket.socket:
    """Return a socket of the address's family, ready to bind as torchrun does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def name_of(port: int) -> str:
    """Return the name of the socket keeping a port."""
    return "ugro-port-%d" % port


def keep(port: int) -> bool:
    """Keep a port for this process and its heirs; return False if another one keeps it."""
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
    """Keep a port, waiting up to `seconds` for an ending job to release it."""
    deadline = time.monotonic() + seconds
    while not keep(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(RETRY_SECONDS)
    return True


def keeper_of(port: int) -> socket.socket:
    """Return the socket keeping a port and give it up, for another process to inherit."""
    return _kept.pop(port)


def is_kept_elsewhere(port: int) -> bool:
    """Tell whether another process on this machine keeps a port, without touching it."""
    if port in _kept:
        return False
    name = "@" + name_of(port)
    sockets = read_text("/proc/net/unix").splitlines()
    return any(line.split()[-1] == name for line in sockets)


def reach(address: str, port: int, deadline: float) -> Json:
    """Try to reach a port until the deadline: {ok, milliseconds} or {ok, error}.

    A refused connection counts as reached: the refusal came from there.
    """
    error = "no answer"
    while time.monotonic() < deadline:
        begun = time.monotonic()
        patience = max(0.05, deadline - begun)
        try:
            socket.create_connection((address, port), patience).close()
        except ConnectionRefusedError:
            pass
        except OSError as fault:
            error = fault.strerror or str(fault)
            time.sleep(RETRY_SECONDS)
            continue
        milliseconds = (time.monotonic() - begun) * 1000
        return {"ok": True, "milliseconds": milliseconds}
    return {"ok": False, "error": error}
