"""What a misfortune is, and the stage on which it is made real: the lab, and a cluster file of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lab import Lab, LabHost
from lab.lab import TRAINING_ENV
from lab.ugro import Ugro
from tests.hosts.helpers import covered

SCRIPTS = Path(__file__).parent / "scripts"
SCRIPT = "meet.py"
TORCHRUN = str(TRAINING_ENV / "bin" / "torchrun")
LOCALHOST = "127.0.0.1 localhost\n"
Document = dict[str, Any]


class Stage:
    """The lab's hosts and a user of UGRO, for one misfortune or for several at once."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.ugro = Ugro(lab, folder, SCRIPTS)
        self.document: Document = yaml.safe_load(
            self.ugro.cluster_file.read_text("utf-8")
        )
        self.document["training"] = {"default_script": SCRIPT}
        # What somebody types who goes without UGRO, by host.
        self.torchruns: dict[str, str] = {}
        self.type_everywhere(TORCHRUN)

    def type_everywhere(self, torchrun: str) -> None:
        """Who goes without UGRO types this on each host."""
        self.torchruns = dict.fromkeys((host.name for host in self.hosts), torchrun)

    @property
    def hosts(self) -> list[LabHost]:
        return self.lab.hosts

    @property
    def nodes(self) -> list[Document]:
        """The nodes of the cluster file, to be changed before `cluster_file` is asked for."""
        return [self.document["cluster"]["master"], *self.document["workers"]]

    @contextmanager
    def names(self) -> Iterator[None]:
        """Every host knows all hosts by name, as they ought to; without it none even knows itself."""
        known = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
        with ExitStack() as undo:
            for host in self.hosts:
                undo.enter_context(covered(host, "/etc/hosts", LOCALHOST + known))
            yield

    def cluster_file(self) -> Path:
        """The cluster file as it is now."""
        self.ugro.cluster_file.write_text(
            yaml.safe_dump(self.document, sort_keys=False), "utf-8"
        )
        return self.ugro.cluster_file


class Named(NamedTuple):
    """What `inv health` says: which check of which node ("cluster": across them) fails, why, and what to do."""

    node: str
    check: str
    cause: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Misfortune:
    """One thing that is wrong with the machines. Without `named`, UGRO works despite it."""

    key: str
    words: str
    make: Callable[[Stage], AbstractContextManager[None]]
    named: Named | None = None
    needs: str = ""  # a program that it takes to make it
    not_bare: str = ""  # why torchrun by hand cannot be tried


# ---- what several of them do ----


@contextmanager
def afterwards(host: LabHost, command: str) -> Iterator[None]:
    """This is run on the host in the end, whatever has happened."""
    try:
        yield
    finally:
        host.run(command.split(), check=False)


def project_of(stage: Stage, host: LabHost) -> str:
    """The project folder on a host, which is there."""
    path = stage.lab.project.replace("~", host.home, 1)
    host.run(["mkdir", "-p", path])
    return path
