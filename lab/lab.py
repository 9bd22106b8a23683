"""Bring-up and teardown of the lab, and the controller's side of it.

The network: a bridge in a namespace of its own (the switch), a veth pair to each host, and one to
this machine as `ulab<number>` with 10.87.<number>.1. The switch is not in this machine's own
namespace because Docker's firewall rules would then drop packets between the hosts. No address
leads outside, and existing interfaces are left alone.

Only the lab's folder and a link to it in /run/ugro-lab outlive its processes: every interface and
mount belongs to a namespace that ends with them. Each such process has the folder's name in its
environment, so `down` finds them all, even if their starter has died.
"""

import ipaddress
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import yaml

from lab.host import RECORDINGS, LabHost
from lab.proof import outside
from lab.registry import (
    claim_folder,
    read_state,
    register,
    remove,
    subnet,
    sweep,
    write_state,
)
from lab.ssh_home import write_ssh
from lab.tools import (
    REFUSALS,
    LabError,
    LabUnavailable,
    checked,
    lab_token,
    require_means,
    wait_until,
    which,
)

ROOT = Path(__file__).parents[1]
TRAINING_ENV = ROOT / ".ugro" / "env"
LOGIN_PATH = "/run/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INTERFACES = ("eth0", "enp3s0", "eno1")
# Prefixes of variables of the user that would affect `inv` and `ugro`.
SECRETS = "XDG_STATE_HOME"
NOT_INHERITED = ("SSH_", "UGRO_", "XDG_", "PET_", "INVOKE_", "FABRIC_")
GPUS = ("rtx5070ti", "rtx4070", "rtx3070ti")


class Lab:
    """The hosts, and the controller's side of them: home, keys, cluster file, experiments."""

    def __init__(self, folder: Path, number: int, hosts: list[LabHost]) -> None:
        self.folder = folder
        self.number = number
        self.hosts = hosts
        self._children: list[subprocess.Popen[str]] = []

    @classmethod
    def up(
        cls,
        folder: Path | None = None,
        hosts: int = 3,
        *,
        gpus: bool = False,
        share: Iterable[Path] = (),
        owned: bool = False,
    ) -> Self:
        """Bring up a lab in `folder`, by default a fresh temporary one.

        `gpus` gives each host a stand-in nvidia-smi and promises those GPUs in the cluster file.
        `share` are folders below /tmp to be shared live with every host, at the same path; the
        repository and the Pythons are always shared. With `owned` the hosts die with the calling
        thread, however it ends; else they stay until `down`.
        Raises LabUnavailable if this machine cannot have a lab, LabError if it did not come up.
        """
        require_means()
        sweep()
        folder = claim_folder(folder)
        lab = cls(folder, -1, [])
        try:
            lab.number = register(folder)
            lab._make_home()
            shared = [Path(path).resolve() for path in share]
            lab._start_hosts(hosts, share=shared, owned=owned)
            lab._write_cluster_file(gpus=gpus)
            fields = [_fields(host) for host in lab.hosts]
            write_state(folder, number=lab.number, owned=owned, hosts=fields)
        except BaseException as error:
            lab.down()
            refused = any(words in str(error) for words in REFUSALS)
            if isinstance(error, LabError) and refused:
                raise LabUnavailable(
                    f"the kernel refuses what the lab needs (a container needs --privileged): {error}"
                ) from error
            raise
        return lab

    @classmethod
    def attach(cls, folder: Path) -> Self:
        """Return the lab already up in `folder`; raises LabError without one."""
        state = read_state(folder)
        if not state or "hosts" not in state:
            raise LabError(f"no lab in {folder}: python -m lab up --folder {folder}")
        hosts = [LabHost(**_typed(fields)) for fields in state["hosts"]]
        return cls(folder, state["number"], hosts)

    def down(self) -> None:
        """End everything of the lab and remove its folder. May be called repeatedly."""
        remove(self.folder)
        for child in self._children:
            child.communicate(timeout=10)  # reaps it and closes its pipe
        self._children.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # The controller's side

    @property
    def home(self) -> Path:
        """Return the home of the lab's own user on the controller."""
        return self.folder / "home"

    @property
    def known_hosts(self) -> Path:
        return self.home / ".ssh" / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """Return the user's configuration of ssh."""
        return self.home / ".ssh" / "config"

    @property
    def cluster_file(self) -> Path:
        return self.folder / "cluster.yaml"

    @property
    def experiments(self) -> Path:
        return self.folder / "experiments"

    @property
    def project(self) -> str:
        """Return the project folder of the cluster file, on a host."""
        home = pwd.getpwuid(0).pw_dir
        # Not ~/ugro if that is a clone: nothing may be synchronised over it.
        return "~/ugro-node" if ROOT.is_relative_to(Path(home, "ugro")) else "~/ugro"

    @property
    def subnet(self) -> str:
        return subnet(self.number)

    @property
    def environ(self) -> dict[str, str]:
        """Return the environment for `inv` and `ugro` as the lab's user."""
        environ = dict(self.exports)
        for name, value in os.environ.items():
            # A test's own process signs with the same secret.
            inherited = name == SECRETS or not name.startswith(NOT_INHERITED)
            if name not in environ and inherited:
                environ[name] = value
        environ["PATH"] = f"{sys.prefix}/bin:{self.path}"
        return environ

    @property
    def exports(self) -> dict[str, str]:
        """Return the variables to export for acting as the lab's user."""
        return {
            "HOME": str(self.home),
            "PATH": self.path,
            "UGRO_CLUSTER": str(self.cluster_file),
        }

    @property
    def path(self) -> str:
        """Return the user's PATH, with an ssh that takes HOME for the user's home."""
        return f"{self.folder}/bin:{os.environ.get('PATH', '')}"

    def trust(self) -> None:
        """Write the hosts' present keys to known_hosts, and no others."""
        lines = [f"{host.address} {host.public_key}\n" for host in self.hosts]
        self.known_hosts.write_text("".join(lines), "utf-8")

    def go_offline(self) -> None:
        """Pull the cable of this machine: no host reaches it, while they reach each other."""
        _ip([f"link set ulab{self.number} down"])

    def go_online(self) -> None:
        """Plug this machine's cable in again."""
        _ip([f"link set ulab{self.number} up"])

    # Bring-up

    def _make_home(self) -> None:
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        for folder in ("experiments", "logs"):
            (self.folder / folder).mkdir()
        write_ssh(self.folder / "bin")
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab"]
        checked([*keygen, "-f", f"{ssh}/id_ed25519"])
        self.known_hosts.touch(mode=0o600)
        addresses = self.subnet.replace(".0/24", ".*")
        self.ssh_config.write_text(
            f"Host {addresses}\n"
            f"    User root\n"
            f"    IdentityFile {ssh}/id_ed25519\n"
            f"    IdentitiesOnly yes\n"
            f"    UserKnownHostsFile {self.known_hosts}\n",
            "utf-8",
        )

    def _start_hosts(self, count: int, *, share: list[Path], owned: bool) -> None:
        home = pwd.getpwuid(0).pw_dir
        environ = {
            "HOME": home,
            "USER": "root",
            "SHELL": "/bin/bash",
            "PATH": LOGIN_PATH,
        }
        keep = _outermost([ROOT, *share, *_python_folders()])
        dies_with_us = ["setpriv", "--pdeathsig", "KILL", "--"] if owned else []
        switch = self._spawn(
            [*dies_with_us, "unshare", "--net", "sh", "-c", _SWITCH], "switch"
        )
        public_key = (self.home / ".ssh" / "id_ed25519.pub").read_text("utf-8")
        inits = []
        for index in range(count):
            config = {
                "name": f"lab{index}",
                "home": home,
                "keep": [str(path) for path in keep],
                "authorized_key": public_key,
                "path": LOGIN_PATH,
                "sshd": which("sshd"),
                "outside": outside(),
            }
            namespaces = ["--mount", "--uts", "--ipc", "--pid", "--net", "--fork"]
            argv = ["unshare", *namespaces, "--kill-child=KILL", sys.executable, "-I"]
            argv += [str(Path(__file__).with_name("init.py")), json.dumps(config)]
            inits.append(self._spawn([*dies_with_us, *argv], f"lab{index}"))
        switch_pid = int(self._said(switch, "switch"))
        network = ipaddress.ip_network(self.subnet)
        for index, init in enumerate(inits):
            interface = f"enp{index}s0"
            if index < len(INTERFACES):
                interface = INTERFACES[index]
            self.hosts.append(
                LabHost(
                    name=f"lab{index}",
                    address=str(network[10 + index]),
                    interface=interface,
                    pid=int(self._said(init, f"lab{index}")),
                    switch_pid=switch_pid,
                    home=home,
                    ssh_config=self.ssh_config,
                    environ=environ,
                )
            )
        self._connect(switch_pid)
        for index, init in enumerate(inits):
            self._said(init, f"lab{index}")
        for host in self.hosts:
            wait_until(host.listens, f"{host.name}'s sshd to listen")

    def _spawn(self, argv: list[str], name: str) -> subprocess.Popen[str]:
        with self._log(name).open("ab") as log:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                # The caller's environment must not reach a host.
                env={"PATH": LOGIN_PATH, "HOME": "/"} | lab_token(self.folder),
                cwd="/",
            )
        self._children.append(child)
        return child

    def _said(self, child: subprocess.Popen[str], name: str) -> str:
        assert child.stdout is not None
        line = child.stdout.readline().strip()
        if not line:
            child.wait(timeout=10)
            log = self._log(name).read_text("utf-8", "replace").strip()
            last = log.splitlines()[-1] if log else "it said nothing"
            raise LabError(f"{name} did not come up: {last}")
        return line

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _connect(self, switch_pid: int) -> None:
        near = f"ulab{self.number}"
        lines = [
            "link add sw type bridge",
            "link set sw up",
            f"link add controller type veth peer name {near} netns {os.getpid()}",
            "link set controller master sw up",
        ]
        for host in self.hosts:
            lines += [
                f"link add {host.name} type veth peer name {host.interface} netns {host.pid}",
                f"link set {host.name} master sw up",
            ]
        _ip(lines, switch_pid)
        network = ipaddress.ip_network(self.subnet)
        _ip([f"address add {network[1]}/24 dev {near}", f"link set {near} up"])
        for host in self.hosts:
            _ip(
                [
                    "link set lo up",
                    f"address add {host.address}/24 dev {host.interface}",
                    f"link set {host.interface} up",
                ],
                host.pid,
            )

    def _write_cluster_file(self, *, gpus: bool) -> None:
        nodes: list[dict[str, Any]] = []
        for index, host in enumerate(self.hosts):
            name = GPUS[index % len(GPUS)]
            host.nvidia_smi(name if gpus else None)
            node: dict[str, Any] = {
                "name": host.name,
                "hostname": host.name,
                "ip": host.address,
                "user": "root",
                "paths": {"project": self.project},
            }
            if gpus:
                node["hardware"] = _promise(name)
            nodes.append(node)
        master = nodes[0] | {"port": 22}
        workers = []
        for rank, node in enumerate(nodes[1:], start=1):
            workers.append(node | {"ssh_port": 22, "rank": rank})
        document = {
            "cluster": {
                "name": "lab",
                "master": master,
                "communication": {
                    "backend": "static",
                    "master_port": 29500,
                    "timeout_seconds": 60,
                },
            },
            "workers": workers,
            "paths": {
                "experiments": str(self.experiments),
                "scripts": str(ROOT / "scripts"),
                "logs": str(self.folder / "logs"),
            },
            "environment": {
                "manager": "existing",
                "python": str(TRAINING_ENV / "bin" / "python"),
            },
            "training": {
                "default_script": "train_single_test.py",
                "default_model": "char-transformer",
                "default_dataset": "shakespeare",
                "default_learning_rate": 0.003,
            },
        }
        self.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")


# Helpers

# It prints its pid, kept by unshare and sh, then only holds the namespace.
_SWITCH = "echo $$; exec sleep infinity"


def _promise(recording: str) -> dict[str, Any]:
    """Return the cluster file's `hardware` of a node with the GPU of a recording."""
    text = (RECORDINGS / f"{recording}.json").read_text("utf-8")
    gpu = json.loads(text)["gpus"][0]
    model = gpu["name"].removeprefix("NVIDIA GeForce ").removesuffix(" Laptop GPU")
    return {"gpu_model": model, "vram_gb": round(int(gpu["memory.total"]) / 1024)}


def _fields(host: LabHost) -> dict[str, object]:
    return {name: getattr(host, name) for name in LabHost.__dataclass_fields__}


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"ssh_config": Path(fields["ssh_config"])}


def _python_folders() -> list[Path]:
    """Return the folders of this Python, of the training environment's, and of their bases."""
    found = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_exec_prefix)]
    real = (TRAINING_ENV / "bin" / "python").resolve()
    if real.exists():
        found.append(real.parents[1])
    return [path.resolve() for path in found]


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Return the folders that are in no other one, without the system's."""
    unique = {path for path in paths if path not in (Path("/"), Path("/usr"))}
    found = []
    for path in unique:
        others = unique - {path}
        if not any(path.is_relative_to(other) for other in others):
            found.append(path)
    return sorted(found)


def _ip(lines: list[str], inside_of: int | None = None) -> None:
    enter = [] if inside_of is None else ["nsenter", f"--target={inside_of}", "--net"]
    checked([*enter, "ip", "-batch", "-"], "\n".join(lines))
