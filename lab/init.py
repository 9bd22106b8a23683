"""Process 1 of a lab host: builds the host's own view of the machine, then runs its sshd.

Started in new mount, uts, ipc, pid and net namespaces with one argument, a JSON object:
name, home, keep (paths shared by all hosts), authorized_key, path (PATH of a login),
outside (the starter's namespaces, of which it must share none).
It prints its pid as its parent sees it, then `ready` when the host is made.

SIGUSR1 starts sshd, SIGUSR2 ends its listener (open sessions go on, as on a real host). When this
process ends, the kernel ends every process of the host and drops its mounts and interfaces.
"""

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

MS_BIND = 4096

# The host's own files, in memory: they vanish with process 1.
PRIVATE = Path("/run/lab")
SSHD_PID = PRIVATE / "sshd.pid"
# A record of the mounts, checked before anything on a host is deleted; see proof.py.
NOTES = PRIVATE / "places.json"

SSHD_CONFIG = """\
Port 22
AddressFamily inet
HostKey {private}/ssh_host_ed25519_key
PidFile none
AuthorizedKeysFile .ssh/authorized_keys
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PermitUserEnvironment no
UsePAM no
UseDNS no
# A developer's home may be group-writable; that is not what is tested here.
StrictModes no
MaxStartups 200:30:400
PrintMotd no
PrintLastLog no
SetEnv PATH={path}
Subsystem sftp internal-sftp
"""

libc = ctypes.CDLL(None, use_errno=True)


def mount(
    kind: str, target: str, source: str = "lab", flags: int = 0, data: str = ""
) -> None:
    """Call mount(2); raises OSError."""
    words = (source.encode(), target.encode(), kind.encode())
    if libc.mount(*words, flags, data.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {kind}: {os.strerror(code)}", target)


def bind(source: Path | str, target: Path | str) -> None:
    mount("", str(target), str(source), MS_BIND)


def mount_own(kind: str, place: str, data: str) -> int:
    """Mount a file system of the host's own; return its device. Raises OSError."""
    before = Path(place).stat().st_dev
    mount(kind, place, data=data)
    after = Path(place).stat().st_dev
    if after == before:
        raise OSError(errno.ENODEV, "mounted, but still what was there before", place)
    return after


def refuse_outside(outside: dict[str, int]) -> None:
    """Exit unless this process has namespaces of its own; else it would mount for everybody."""
    shared = []
    for name, inode in outside.items():
        if Path(f"/proc/self/ns/{name}").stat().st_ino == inode:
            shared.append(name)
    if shared or os.getpid() != 1:
        sys.exit(
            f"it has no {', '.join(shared)} namespace of its own (pid {os.getpid()}); nothing was mounted"
        )


def make_view(config: dict[str, Any]) -> None:
    """Give the host its own /proc, /sys, /run, /tmp, /dev/shm, home, boot id and host key."""
    keep = {Path(path): os.open(path, os.O_PATH) for path in config["keep"]}

    def reveal(place: str) -> None:
        # The repository and the Pythons are shared live with every host. Below a place of the
        # host's own they are bound to the same path; so a clone in /tmp or in the home works,
        # and no other file of the controller shows there.
        for path, descriptor in keep.items():
            if path.is_relative_to(place) and path != Path(place):
                path.mkdir(parents=True, exist_ok=True)
                bind(f"/proc/self/fd/{descriptor}", path)

    mount("proc", "/proc")
    # Mounted here, it shows the interfaces of this namespace.
    mount("sysfs", "/sys")
    # The size is a limit only; it is large so that a check of free disk space sees a usual disk.
    places = {"/run": mount_own("tmpfs", "/run", "mode=755,size=64g")}
    for place in ("/tmp", "/dev/shm"):
        places[place] = mount_own("tmpfs", place, "mode=1777,size=64g")
    for folder in (PRIVATE / "bin", Path("/run/sshd")):
        folder.mkdir(parents=True)
    places[config["home"]] = layer_home(config["home"], config["keep"])
    NOTES.write_text(json.dumps({"places": places, "keep": config["keep"]}), "utf-8")
    for place in ("/run", "/tmp", "/dev/shm", config["home"]):
        reveal(place)

    boot_id = PRIVATE / "boot_id"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    bind(boot_id, "/proc/sys/kernel/random/boot_id")
    hide_real_gpus()
    unlock_root()

    ssh = Path(config["home"], ".ssh")
    ssh.mkdir(mode=0o700, exist_ok=True)
    (ssh / "authorized_keys").write_text(config["authorized_key"])
    (PRIVATE / "sshd_config").write_text(
        SSHD_CONFIG.format(private=PRIVATE, path=config["path"]), "utf-8"
    )
    subprocess.run(
        [
            *("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", config["name"]),
            *("-f", str(PRIVATE / "ssh_host_ed25519_key")),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    for descriptor in keep.values():
        os.close(descriptor)


def layer_home(home: str, keep: list[str]) -> int:
    """Mount a layer of the host's own over the home folder; return its device.

    This machine's files show through. The layer is in memory because an overlay's upper folder can
    be neither below its lower one nor on another overlay, and both happen: a lab folder in the
    home, a container.
    """
    upper = PRIVATE / "home"
    work = PRIVATE / "home.work"
    for folder in (upper, work):
        folder.mkdir(mode=0o700)
    for name in (".ssh", ".ugro", "ugro"):
        # UGRO's folders are empty at first, unless the repository itself is in one.
        if not any(Path(path).is_relative_to(Path(home, name)) for path in keep):
            (upper / name).mkdir(mode=0o700)
            os.setxattr(upper / name, "trusted.overlay.opaque", b"y")
    layers = f"lowerdir={home},upperdir={upper},workdir={work}"
    device = mount_own("overlay", home, layers)
    for name in (".bashrc", ".bash_profile", ".profile", ".zshenv"):
        # A developer's shell set-up (pyenv alone takes 0.25 s a login) is not part of a host.
        Path(home, name).unlink(missing_ok=True)
    return device


def hide_real_gpus() -> None:
    """Make `nvidia-smi` of this machine unusable on the host."""
    nothing = PRIVATE / "no-nvidia-smi"
    nothing.touch(mode=0o644)
    for folder in ("/usr/local/bin", "/usr/bin", "/bin"):
        real = Path(folder, "nvidia-smi")
        if real.exists() and not real.samefile(nothing):
            bind(nothing, real.resolve())


def unlock_root() -> None:
    """Let sshd log root in by key even if the account is locked here ('!' in shadow)."""
    shadow = Path("/etc/shadow")
    lines = [line.split(":") for line in shadow.read_text("utf-8").splitlines()]
    for fields in lines:
        if fields[0] == "root":
            fields[1] = "*"
    own = PRIVATE / "shadow"
    own.touch(mode=0o600)
    own.write_text("".join(":".join(fields) + "\n" for fields in lines), "utf-8")
    bind(own, shadow)


def start_sshd(program: str) -> int:
    pid = os.posix_spawn(
        program,
        [program, "-D", "-e", "-f", str(PRIVATE / "sshd_config")],
        {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, 2, 1),
        ],
        setsid=True,
        setsigmask=[],
    )
    SSHD_PID.write_text(str(pid))
    return pid


def main() -> None:
    config = json.loads(sys.argv[1])
    refuse_outside(config["outside"])
    # Still the parent's /proc, so this is the pid as the parent sees it.
    print(Path("/proc/self").readlink(), flush=True)
    signals = {signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    subprocess.run(["hostname", config["name"]], check=True)
    make_view(config)
    os.chdir(config["home"])
    sshd = start_sshd(config["sshd"])
    print("ready", flush=True)
    os.dup2(2, 1)  # the parent may close its end now
    while True:
        match signal.sigwait(signals):
            case signal.SIGUSR1 if not sshd:
                sshd = start_sshd(config["sshd"])
            case signal.SIGUSR2 if sshd:
                os.kill(sshd, signal.SIGTERM)
            case signal.SIGCHLD:
                if sshd in reap():
                    sshd = 0
                    SSHD_PID.unlink()


def reap() -> set[int]:
    """Reap all ended children; return their pids."""
    ended: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.add(pid)


if __name__ == "__main__":
    main()
