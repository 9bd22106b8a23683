"""A machine with a real systemd and logind, on the network of a lab host: what runs until systemd takes over.

It is process 1 of namespaces of its own, and its root is a layer over this machine's: what systemd and its services
write, empty or remove is theirs. Only what logins need is started. See systemd.py for what starts it.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab.init import bind, libc, mount, mount_own, refuse_outside

MS_RDONLY = 1
MS_REC_PRIVATE = (1 << 14) | (1 << 18)
MNT_DETACH = 2
SYSTEMD = "/lib/systemd/systemd"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# Wanted by these, it would set up a machine: its disks, its kernel, its clock.
SETTING_UP = (
    "sysinit",
    "basic",
    "sockets",
    "timers",
    "paths",
    "local-fs",
)
WANTED = {
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
    "dbus.socket",
}
UNITS = {
    "lab.target": """\
[Unit]
Requires=basic.target dbus.service systemd-logind.service lab-sshd.service
""",
    "lab-sshd.service": """\
[Service]
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D -e -f /etc/ssh/lab_config
KillMode=process
""",
}
SSHD_CONFIG = """\
AddressFamily inet
HostKey /etc/ssh/lab_key
UsePAM yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
MaxStartups 200:30:400
PrintMotd no
"""


def lay_root(keep: list[str]) -> Path:
    """Mount a layer over this machine's root, in memory, with /proc, /sys, /run, /tmp and /dev of its own."""
    kept = {Path(path): os.open(path, os.O_PATH) for path in keep}
    mount("", "/", flags=MS_REC_PRIVATE)
    mount_own("tmpfs", "/run", "mode=755,size=64g")
    upper, work, root = (Path("/run", name) for name in ("upper", "work", "root"))
    for folder in (upper, work, root):
        folder.mkdir()
    mount_own("overlay", str(root), f"lowerdir=/,upperdir={upper},workdir={work}")
    mount("proc", f"{root}/proc")
    mount("sysfs", f"{root}/sys", flags=MS_RDONLY)
    mount("cgroup2", f"{root}/sys/fs/cgroup")
    for place, mode in {"run": 755, "tmp": 1777, "dev": 755}.items():
        mount("tmpfs", f"{root}/{place}", data=f"mode={mode}")
    dev = root / "dev"
    for name in DEVICES:
        (dev / name).touch()
        bind(f"/dev/{name}", dev / name)
    for folder in (dev / "pts", dev / "shm"):
        folder.mkdir()
    mount("devpts", f"{dev}/pts", data="newinstance,ptmxmode=0666,mode=620,gid=5")
    mount("tmpfs", f"{dev}/shm", data="mode=1777")
    (dev / "ptmx").symlink_to("pts/ptmx")
    (dev / "fd").symlink_to("/proc/self/fd")
    for path, descriptor in kept.items():
        place = root / path.relative_to("/")
        place.mkdir(parents=True, exist_ok=True)
        bind(f"/proc/self/fd/{descriptor}", place)
        os.close(descriptor)
    return root


def write_units(root: Path, logind: str) -> None:
    """Leave of this machine's units those that logins need."""
    units = root / "etc/systemd/system"
    for target in SETTING_UP:
        for folder in ("lib", "etc"):
            for wanted in root.glob(f"{folder}/systemd/system/{target}.target.wants/*"):
                if wanted.name not in WANTED:
                    _mask(units / wanted.name)
    for generator in root.glob("lib/systemd/system-generators/*"):
        _mask(root / "etc/systemd/system-generators" / generator.name)
    for name, text in UNITS.items():
        (units / name).write_text(text, "utf-8")
    settings = root / "etc/systemd/logind.conf.d/lab.conf"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(f"[Login]\n{logind}\n", "utf-8")


def _mask(unit: Path) -> None:
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.unlink(missing_ok=True)
    unit.symlink_to("/dev/null")


def add_user(root: Path, config: dict[str, Any]) -> None:
    """Add a user who logs in with the lab's key, and let him come to the Pythons in root's home."""
    user = config["user"]
    in_root = ["chroot", str(root)]
    made = [*in_root, "useradd", "--create-home", "--shell", "/bin/bash", user]
    subprocess.run(made, check=True, stdin=subprocess.DEVNULL)
    # "!", as it is now, would keep even a key from logging in.
    subprocess.run([*in_root, "usermod", "--password", "*", user], check=True)
    ssh = root / "home" / user / ".ssh"
    ssh.mkdir(mode=0o700)
    (ssh / "authorized_keys").write_text(config["authorized_key"], "utf-8")
    subprocess.run([*in_root, "chown", "-R", f"{user}:", f"/home/{user}"], check=True)
    (root / "root").chmod(0o711)
    (root / "etc/ssh/lab_config").write_text(SSHD_CONFIG, "utf-8")
    key = root / "etc/ssh/lab_key"
    key.touch(mode=0o600)
    key.write_text(config["host_key"], "utf-8")


def change_root(root: Path) -> None:
    """Make `root` the root, and let go of this machine's; exit if that cannot be proved."""
    device = root.stat().st_dev
    old = root / "mnt"
    subprocess.run(["pivot_root", root, old], check=True)
    os.chdir("/")
    if libc.umount2(b"/mnt", MNT_DETACH) != 0:
        sys.exit(f"umount2: {os.strerror(ctypes.get_errno())}")
    if Path("/").stat().st_dev != device:
        sys.exit("the root is not the layer; systemd was not started")


def main() -> None:
    config = json.loads(sys.argv[1])
    refuse_outside(config["outside"])
    # Still the parent's /proc, so this is the pid as the parent sees it.
    print(Path("/proc/self").readlink(), flush=True)
    subprocess.run(["hostname", config["name"]], check=True)
    root = lay_root(config["keep"])
    write_units(root, config["logind"])
    add_user(root, config)
    change_root(root)
    words = [
        "--system",
        "--unit=lab.target",
        "--log-target=console",
        "--show-status=no",
    ]
    os.dup2(2, 1)  # the parent may close its end now
    os.execve(SYSTEMD, ["systemd", *words], {**os.environ, "container": "lab"})


if __name__ == "__main__":
    main()
