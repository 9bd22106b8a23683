"""Checks of one node, made from its facts; each has a cause and a fix."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterator

from msgspec import Struct, UnsetType

from ..cluster.model import Cluster, Node
from ..environments.judge import why_behind
from ..hosts.answers import Logout, ProbeAnswer, Process, Ran, Reach, Space
from ..hosts.nvidia import Gpu

DISK_MIN_BYTES = 2 << 30
DISK_MIN_FILES = 1000
HOME_MIN_BYTES = 8 << 20  # what is remembered between requests
OPEN_FILES_MIN = 1024
# Exit codes of nvidia-smi; 14: the infoROM is corrupted, which does not affect training.
WARNINGS_ONLY = {0, 14}
SHM_MIN_BYTES = 64 << 20
CLOCK_MAX_SECONDS = 2.0
VRAM_TOLERANCE = 0.15  # a "12 GB" card shows 11.6 to 12.0 GiB
FOREIGN_VRAM_MIN_MIB = 300  # a desktop's compositor and browser stay below


class Check(Struct, frozen=True, kw_only=True):
    """The result of one check, with its fix; `note` marks an oddity that is no fault."""

    name: str
    ok: bool
    value: str
    fix: str = ""
    note: bool = False


def judge(
    cluster: Cluster, node: Node, facts: ProbeAnswer, clock_offset_seconds: float
) -> Iterator[Check]:
    """Yield the checks of one reachable node. Pure, apart from reading the project's files."""
    yield _environment(cluster, node, facts)
    if node.gpu_model is not None:
        yield from _gpu(node, facts)
    yield from _network(cluster, node, facts)
    yield from _machine(node, facts)
    yield from _login(node, facts)
    yield Check(
        name="clock",
        ok=abs(clock_offset_seconds) <= CLOCK_MAX_SECONDS,
        value=f"{clock_offset_seconds:+.1f} s",
        fix=f"set the clock of {node.name}: sudo timedatectl set-ntp true; "
        "where all nodes say alike, it is this machine's that is wrong",
    )


def _environment(cluster: Cluster, node: Node, facts: ProbeAnswer) -> Check:
    torch = facts.torch
    why = why_behind(cluster, node, facts)
    interpreter = node.environment.interpreter(node.project)
    make = _how_to_make(node)
    if torch.code is None:
        return Check(name="environment", ok=False, value=_last(torch), fix=make)
    if torch.code != 0:
        return Check(
            name="environment",
            ok=False,
            value=f"{interpreter} fails: {_last(torch)}",
            fix=make,
        )
    if not torch.torch:
        return Check(
            name="environment", ok=False, value=f"{interpreter} has no torch", fix=make
        )
    words = f"Python {torch.python}, torch {torch.torch}"
    if why:
        return Check(
            name="environment", ok=False, value=f"{words}; behind: {why}", fix=make
        )
    promised = {
        "Python": (node.environment.python_version, torch.python),
        "torch": (node.environment.torch_version, torch.torch),
        "CUDA": (node.environment.cuda_version, torch.cuda or "none"),
    }
    wrong = [
        f"{what} {wanted}"
        for what, (wanted, found) in promised.items()
        if not _is_version(found, wanted)
    ]
    if wrong:
        value = f"{words}; the cluster file says {', '.join(wrong)}"
        return Check(
            name="environment", ok=False, value=value, fix=_how_to_change(node)
        )
    return Check(name="environment", ok=True, value=words)


def _how_to_make(node: Node) -> str:
    if node.environment.manager == "existing":
        return f"install torch there, or name another Python as environment.python of {node.name}"
    return f"inv sync-envs --nodes {node.name}"


def _how_to_change(node: Node) -> str:
    if node.environment.manager == "existing":
        return _how_to_make(node)
    return "let what the environment is made from say the same, then: inv sync-envs"


def _is_version(found: str | None, wanted: str | None) -> bool:
    """Return whether a version fits the wanted one as far as that is written: 2.13 fits 2.13.x."""
    if wanted is None:
        return True
    release = (found or "").split("+")[0]
    return f"{release}.".startswith(f"{wanted}.")


def _last(ran: Ran) -> str:
    lines = ran.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {ran.code}"


def _gpu(node: Node, facts: ProbeAnswer) -> Iterator[Check]:
    answer = facts.gpus
    found = facts.cards
    if answer.code not in WARNINGS_ONLY or not found:
        said = answer.stderr.strip() or answer.stdout.strip() or "no GPU"
        # The reason is first; "No devices were found" comes last.
        value = said.splitlines()[0]
        yield Check(
            name="gpu",
            ok=False,
            value=f"{node.gpu_model} is promised, nvidia-smi says: {value}",
            fix=f"on {node.name}: see `nvidia-smi` and `sudo dmesg | grep -i nvrm`; "
            "a card that fell off the bus comes back with a reboot, a missing driver with its package",
        )
        return
    card = found[0]
    faults = card.faults
    total_gib = (card.total_mib or 0.0) / 1024
    same = (node.gpu_model or "").lower() in card.name.lower()
    # A broken card gives no number for its memory; `gpu errors` reports it.
    large = True
    if node.vram_gb is not None and not faults:
        large = total_gib >= node.vram_gb * (1 - VRAM_TOLERANCE)
    yield Check(
        name="gpu",
        ok=same and large,
        value=f"{card.name}, {total_gib:.1f} GiB, driver {card.driver_version}",
        fix=f"the cluster file promises {node.gpu_model} with {node.vram_gb or '?'} GB; correct it or the card's seat",
    )
    yield _gpu_errors(node, card, faults, warned=answer.code != 0)
    yield _vram(node, facts, card)
    if not isinstance(facts.torch.cuda_available, UnsetType):
        yield _cuda(node, facts, available=facts.torch.cuda_available)


def _gpu_errors(node: Node, card: Gpu, faults: list[str], *, warned: bool) -> Check:
    """Check for uncorrected memory errors, and for error values of a card hung after an Xid."""
    if card.error_count:
        words = f"{card.uncorrected_errors} memory errors that ECC could not correct, since the driver was loaded"
        faults = [*faults, words]
    harmless = "its infoROM is corrupted (no harm to training)" if warned else "none"
    return Check(
        name="gpu errors",
        ok=not faults,
        note=warned,
        value="; ".join(faults) or harmless,
        fix=f"on {node.name}, see `sudo dmesg | grep -i xid`; end what uses the card, then: "
        f"sudo nvidia-smi --gpu-reset -i {card.index}, or reboot. If it comes again, card or power is failing",
    )


def _vram(node: Node, facts: ProbeAnswer, card: Gpu) -> Check:
    """Check that no foreign process holds much memory of the card."""
    held = []
    pids = []
    for process in facts.gpu_processes:
        is_ours = process.pid in facts.our_pids
        if is_ours or process.used_mib < FOREIGN_VRAM_MIN_MIB:
            continue
        pids.append(str(process.pid))
        held.append(f"{process.name} (pid {process.pid}) holds {process.used_mib} MiB")
    return Check(
        name="vram",
        ok=not held,
        value=", ".join(held) or f"{card.memory_used} MiB used",
        fix=f"end it on {node.name}: kill {' '.join(pids)}",
    )


def _cuda(node: Node, facts: ProbeAnswer, *, available: bool) -> Check:
    build = facts.torch.cuda
    visible = facts.visible_cards
    if not build:
        fix = "install a build of torch for CUDA"
    elif visible is not None:
        fix = (
            f"CUDA_VISIBLE_DEVICES={shlex.quote(visible)} in the login environment of {node.name} may hide the card: "
            "take it out of ~/.bashrc, ~/.profile or /etc/environment there"
        )
    else:
        fix = f"the driver may be too old for CUDA {build}, see nvidia-smi"
    return Check(
        name="cuda",
        ok=available,
        value=f"torch built for CUDA {build}" if build else "torch is a CPU build",
        fix=f"torch.cuda.is_available() is False: {fix}",
    )


def _network(cluster: Cluster, node: Node, facts: ProbeAnswer) -> Iterator[Check]:
    yield _address(node, facts)
    own = facts.resolves_to
    harmless = ""
    if own != node.address:
        harmless = " (no harm: launches go by address and interface)"
    yield Check(
        name="own name",
        ok=True,
        value=f"{facts.hostname} is {own or 'not resolved'}{harmless}",
    )
    if facts.port:
        yield _port(cluster, node, facts)
    if facts.reach is not None:
        yield _master_port(cluster, node, facts.reach)


def _port(cluster: Cluster, node: Node, facts: ProbeAnswer) -> Check:
    """Check that the rendezvous has a port: the cluster file's, or another."""
    port = cluster.master_port
    instead = ""
    if facts.free_port != port:
        instead = f", {facts.free_port} serves instead"
    has_port = facts.port == "free" or facts.free_port is not None
    return Check(
        name="port",
        ok=has_port or facts.lease is not None,
        note=facts.port == "taken",
        value=f"{port} is {facts.port}{instead}",
        fix=f"see who listens on {node.name} (ss -ltnp) or set cluster.communication.master_port",
    )


def _master_port(cluster: Cluster, node: Node, reach: Reach) -> Check:
    """Check that a worker reaches the master on the port of the rendezvous."""
    came = "answers" if reach.ok else f"does not: {reach.error}"
    return Check(
        name="master port",
        ok=reach.ok,
        value=f"{cluster.master.address}:{cluster.master_port} {came}",
        fix=f"let {cluster.master.name} take connections from {node.name}, on all ports "
        f"(gloo and NCCL choose theirs freely): sudo ufw allow from {node.address}",
    )


def _address(node: Node, facts: ProbeAnswer) -> Check:
    interface = facts.interface_of(node.address)
    if interface is None:
        others: list[str] = []
        for other in facts.interfaces.values():
            others += [address for address in other.addresses if ":" not in address]
        return Check(
            name="address",
            ok=False,
            value=f"no interface has {node.address}",
            fix=f"correct the address of {node.name} in the cluster file; it has {', '.join(others)}",
        )
    found = facts.interfaces[interface]
    first = found.addresses[0]
    value = f"{node.address} on {interface}, MTU {found.mtu}"
    if _is_elsewhere(node.address, first, found.mask):
        return Check(
            name="address",
            ok=False,
            value=f"{value}, but {first} comes first there, and that is what gloo and NCCL take of an interface",
            fix=f"take {first} from {interface} of {node.name} (sudo ip address del), or give it as the node's address "
            "if the other nodes reach it",
        )
    return Check(name="address", ok=True, value=value)


def _is_elsewhere(address: str, first: str, mask: str | None) -> bool:
    """Return whether an interface's first address is in another network than the node's."""
    if mask is None or ":" in address + first:
        return False
    network = ipaddress.ip_network(f"{first}/{mask}", strict=False)
    return ipaddress.ip_address(address) not in network


def _machine(node: Node, facts: ProbeAnswer) -> Iterator[Check]:
    yield _disk(node, facts.project)
    yield _home(node, facts.home)
    yield Check(
        name="shared memory",
        ok=facts.shm.total_bytes >= SHM_MIN_BYTES,
        value=f"{facts.shm.total_bytes / 2**20:.0f} MiB in /dev/shm",
        fix=f"enlarge it on {node.name}: sudo mount -o remount,size=1G /dev/shm",
    )
    if not node.is_local:
        yield rsync_check(facts.rsync)
    most = facts.open_files
    if most is not None:
        yield Check(
            name="open files",
            ok=most < 0 or most >= OPEN_FILES_MIN,
            value="no limit" if most < 0 else f"{most} at most",
            fix=f"raise the limit for the user of {node.name}: a line such as `* hard nofile 65536` in "
            "/etc/security/limits.conf there",
        )


def rsync_check(path: str | None, fault: str | None = None) -> Check:
    """Report the rsync of a machine; without one, files travel over the login's connection."""
    if path:
        return Check(name="rsync", ok=True, value=path)
    value = f"{fault or 'not installed'}: files travel without it, slower (sudo apt install rsync)"
    return Check(name="rsync", ok=True, note=True, value=value)


def rsync_connection_check(trouble: str) -> Check:
    """Report that rsync's own connection to a node does not come about."""
    value = f"{trouble}: files travel without it, slower"
    return Check(name="rsync's connection", ok=True, note=True, value=value)


def _disk(node: Node, disk: Space) -> Check:
    value = f"{disk.free_bytes / 2**30:.1f} GiB free for {disk.path}"
    if not disk.writable:
        return Check(
            name="disk",
            ok=False,
            value=f"{value}, not writable",
            fix=f"make {disk.path} writable for the user, or set paths.project",
        )
    if disk.free_files is not None and disk.free_files < DISK_MIN_FILES:
        return Check(
            name="disk",
            ok=False,
            value=f"{value}, but only {disk.free_files} files more",
            fix=f"remove files on {node.name}: see df -i",
        )
    roomy = disk.free_bytes >= DISK_MIN_BYTES
    return Check(
        name="disk", ok=roomy, value=value, fix=f"free some space on {node.name}"
    )


def _home(node: Node, home: Space | None) -> Check:
    """Check that UGRO can write its own folder."""
    if home is None:
        return Check(name="home", ok=True, value="not told")
    full = home.free_bytes < HOME_MIN_BYTES
    read_only = "" if home.writable else ", not writable"
    no_room = ", no room left" if full else ""
    return Check(
        name="home",
        ok=home.writable and not full,
        value=f"{home.path}{read_only}{no_room}",
        fix=f"make the home folder of {node.name} writable for its user, with some room; "
        "a disk that the kernel made read-only shows in: sudo dmesg",
    )


def _logout(node: Node, logout: Logout) -> Check:
    """Check that logind does not end a job with the connection by which it was started."""
    if not logout.kills:
        return Check(name="logout", ok=True, value="what was started goes on")
    if not logout.lingers:
        return Check(
            name="logout",
            ok=False,
            value="a connection that breaks ends all that it started: logind has KillUserProcesses=yes",
            fix=f"on {node.name}: loginctl enable-linger, once; jobs then run in a scope of their own",
        )
    broken = logout.scope_error
    return Check(
        name="logout",
        ok=not broken,
        value=f"logind has KillUserProcesses=yes, and no scope can be had: {broken}"
        if broken
        else "jobs run in a scope of their own, which goes on",
        fix=f"on {node.name}: `systemd-run --user --scope true` must work; or the machine's administrator sets "
        "KillUserProcesses=no in /etc/systemd/logind.conf",
    )


def _login(node: Node, facts: ProbeAnswer) -> Iterator[Check]:
    said = [line for line in facts.preface.splitlines() if line.strip()]
    words = "silent"
    if said:
        words = (
            f"it prints {said[-1].strip()!r}: files travel without rsync, slower; let ~/.bashrc print for people "
            "only (its first line may be `case $- in *i*) ;; *) return ;; esac`)"
        )
    yield Check(name="login shell", ok=True, note=bool(said), value=words)
    if facts.logout is not None:
        yield _logout(node, facts.logout)
    yield _leftovers(node, facts.jobs if facts.lease is None else [])


def _leftovers(node: Node, left: list[Process]) -> Check:
    """Check that nothing of a job goes on without its supervisor."""
    words = []
    for process in left:
        whose = f", {process.user}'s" if process.user else ""
        where = f"pid {process.pid} of job {process.job}{whose}"
        words.append(f"{where} goes on without a supervisor")
    fix = f"end them: inv reset --nodes {node.name}"
    foreign = [str(process.pid) for process in left if process.user]
    if foreign:
        fix = f"end them on {node.name}: sudo kill -KILL {' '.join(foreign)}"
    return Check(
        name="leftovers", ok=not left, value=", ".join(words) or "none", fix=fix
    )
