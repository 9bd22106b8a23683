"""The network as this node sees it: its interfaces, and whether the ranks will reach each other."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import socket
import struct
import threading
import time
from typing import Dict, Iterator, Optional, Tuple

from .system import Json, read_text

SIOCGIFCONF, SIOCGIFNETMASK = 0x8912, 0x891B
IFREQ_BYTES = 16 + (24 if struct.calcsize("P") == 8 else 16)
ADDRESSES_ASKED = 512
GREETING_SECONDS = 0.5  # for the nonce of the port check and its answer
PORTS_TRIED = 20  # a short range, so that one firewall rule serves
# More than a jumbo frame, so that one of full size is on the way; and less than a first flight of ten usual ones.
BALLAST = b"\0" * (12 << 10)
USUAL_PORTS = "32768 60999"


def resolve(name: str) -> Optional[str]:
    """The IPv4 address that this node finds for a name."""
    with contextlib.suppress(OSError):
        return socket.gethostbyname(name)
    return None


def interfaces() -> Dict[str, Json]:
    """{name: {addresses, mask, mtu}} of every network interface.

    The addresses are in the order in which gloo and NCCL see them, who take the first; the mask is that one's.
    """
    found: Dict[str, Json] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            mtu = read_text("/sys/class/net/%s/mtu" % name).strip()
            found[name] = {"addresses": [], "mask": None, "mtu": int(mtu) if mtu else None}
        for name, address in ipv4_addresses(asked):
            if name in found:
                found[name]["addresses"].append(address)
        for name, facts in found.items():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asked, SIOCGIFNETMASK, struct.pack("256s", name.encode()[:15]))
                facts["mask"] = socket.inet_ntoa(answer[20:24])
    for line in read_text("/proc/net/if_inet6").splitlines():
        raw, name = line.split()[0], line.split()[-1]
        if name in found:
            found[name]["addresses"].append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(raw)))
    return found


def ipv4_addresses(asked: socket.socket) -> Iterator[Tuple[str, str]]:
    """(interface, address) of all, an interface's second and third too: see netdevice(7)."""
    answer = array.array("B", bytes(IFREQ_BYTES * ADDRESSES_ASKED))
    request = struct.pack("iP", len(answer), answer.buffer_info()[0])
    length = struct.unpack("iP", fcntl.ioctl(asked, SIOCGIFCONF, request))[0]
    raw = answer.tobytes()
    for at in range(0, length, IFREQ_BYTES):
        label = raw[at : at + 16].split(b"\0")[0].decode("utf-8", "replace")
        yield label.partition(":")[0], socket.inet_ntoa(raw[at + 20 : at + 24])


def try_ports(request: Json) -> Json:
    """Whether the rendezvous will work, and what comes after it.

    The master listens for a moment on its port, and each worker connects to it. And each node listens on a port such
    as gloo and NCCL choose theirs from, for the node before it, and connects to the one after it.
    """
    deadline = time.monotonic() + request["port_seconds"]
    nonce = request["nonce"].encode()
    facts: Json = {}
    threads = [threading.Thread(target=lambda: facts.update(try_master(request, nonce, deadline)))]
    if request.get("peers"):
        peers = facts["peers"] = {"seconds": request["port_seconds"]}
        mine, following = (dict(peer, port=peer_port(peer["salt"])) for peer in request["peers"])
        peers["port"], peers["tried"] = mine["port"], following["port"]
        threads += [
            threading.Thread(target=lambda: peers.update(await_peer(mine, nonce, deadline))),
            threading.Thread(target=lambda: peers.update(reached=visit_peer(following, nonce, deadline))),
        ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return facts


# ---- the port of the master ----


def try_master(request: Json, nonce: bytes, deadline: float) -> Json:
    """{reach} of a worker, {port, free_port} of the master; {} of neither."""
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


# ---- from node to node ----


def peer_port(salt: int) -> int:
    """A port from the range that this kernel gives to who asks for any, as gloo and NCCL do."""
    first, last = map(int, (read_text("/proc/sys/net/ipv4/ip_local_port_range") or USUAL_PORTS).split())
    return first + salt % (last - first + 1)


def await_peer(mine: Json, nonce: bytes, deadline: float) -> Json:
    """{listens, heard}: whether the port could be had; whether the node before this one came, and what it sent."""
    with bindable(mine["address"]) as listener:
        try:
            listener.bind((mine["address"], mine["port"]))
        except OSError:
            return {"listens": False, "heard": False}
        listener.listen(8)
        while time.monotonic() < deadline:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            with contextlib.suppress(OSError), listener.accept()[0] as peer:
                peer.settimeout(max(0.01, deadline - time.monotonic()))
                peer.sendall(nonce + BALLAST)
                if receive(peer, len(nonce + BALLAST)) == nonce + BALLAST:
                    return {"listens": True, "heard": True}
    return {"listens": True, "heard": False}


def visit_peer(following: Json, nonce: bytes, deadline: float) -> Json:
    """{ok}, or {ok, connected, error}: a connection is no proof that packets of full size come through, too."""
    error, connected = "no answer", False
    while time.monotonic() < deadline:
        connected = False
        try:
            patience = max(0.05, deadline - time.monotonic())
            with socket.create_connection((following["address"], following["port"]), patience) as peer:
                connected = True
                peer.settimeout(max(0.05, deadline - time.monotonic()))
                if receive(peer, len(nonce + BALLAST)) == nonce + BALLAST:
                    peer.sendall(nonce + BALLAST)
                    return {"ok": True}
                error = "it closed the connection"
        except OSError as fault:
            error = fault.strerror or str(fault)
        time.sleep(0.02)
    return {"ok": False, "connected": connected, "error": error}


def receive(peer: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer where the other end closes; raises OSError."""
    received = b""
    while len(received) < count:
        chunk = peer.recv(count - len(received))
        if not chunk:
            break
        received += chunk
    return received
