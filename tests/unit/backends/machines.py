"""What a contract test does with three machines, whatever runs jobs on them; and hosts that speak the wire."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

from tests.unit.backends.ssh.fake_hosts import FakeNode
from tests.unit.factories import make_cluster, make_record, make_scripts
from ugro_tasks.backends.api import Backend
from ugro_tasks.backends.ssh.backend import SshBackend
from ugro_tasks.cluster.model import Cluster, Timeouts
from ugro_tasks.hosts.fleet import Fleet
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.journal import Journal
from ugro_tasks.jobs.state import JobState
from ugro_tasks.node.protocol import LOG, METRICS

NAMES = ("gpu0", "gpu1", "gpu2")
NEARLY_FULL = {
    "path": "/home/ada/ugro",
    "free_bytes": 1 << 30,
    "total_bytes": 1 << 40,
    "writable": True,
}
RETURN_SECONDS = 0.3


class Machines(Protocol):
    """Three machines, and what a test does to them and knows of them."""

    def backend(self, journal: Journal, cluster: Cluster) -> Backend:
        """Make a backend that runs a job on them."""

    def cut(self, name: str) -> None:
        """Cut a machine off; what runs there runs on."""

    def mend(self, name: str) -> None:
        """Let a machine be reached again."""

    def hold(self, name: str) -> None:
        """Let another job have a machine."""

    def spoil(self, name: str) -> None:
        """Make a machine unfit, though it is there."""

    def refuse(self, name: str, *, busy: bool) -> None:
        """Let a machine refuse to start anything: because it is taken, or for another reason."""

    def leave(self, name: str, pids: tuple[int, ...]) -> None:
        """Let processes of the rank there live on whatever is done."""

    def write(self, name: str, log: bytes = b"", metrics: bytes = b"") -> None:
        """Let the rank there print and measure something."""

    def end(self, name: str, **record: Any) -> None:
        """End the rank there: `code`, `signal`, `outputs`."""

    def runs(self, name: str) -> bool:
        """Say what is true there: whether a rank runs."""

    def starts(self, name: str) -> int:
        """Say how often a rank was begun there."""


class SshMachines:
    """Hosts that speak the wire of nodes, and contact nothing."""

    def __init__(self, cluster: Cluster) -> None:
        self._nodes = {node.name: FakeNode(node) for node in cluster.nodes}

    def backend(self, journal: Journal, cluster: Cluster) -> Backend:
        """Make a backend that runs a job on them."""
        experiments = Experiments(journal.experiment.folder.parent)
        fleet = self._fleet(cluster)
        return SshBackend(journal, cluster, fleet, experiments, fleet_of=self._fleet)

    def _fleet(self, cluster: Cluster) -> Fleet:
        hosts = [self._nodes[node.name] for node in cluster.nodes]
        fleet: Fleet = Fleet.from_connections(hosts)
        return fleet

    def cut(self, name: str) -> None:
        """Cut a node off."""
        self._nodes[name].cut()

    def mend(self, name: str) -> None:
        """Let a node be reached again."""
        self._nodes[name].mend()

    def hold(self, name: str) -> None:
        """Give the node's lease to another job."""
        self._nodes[name].seen["lease"] = {"job": "exp0", "pid": 6}

    def spoil(self, name: str) -> None:
        """Fill the node's disk."""
        self._nodes[name].seen["project"] = NEARLY_FULL

    def refuse(self, name: str, *, busy: bool) -> None:
        """Answer `prepare` with a refusal."""
        words = {"message": "taken" if busy else "no space left"}
        kind = {"error": "busy" if busy else "failed", "holder": {"job": "exp0"}}
        self._nodes[name].refuses["prepare"] = kind | words

    def leave(self, name: str, pids: tuple[int, ...]) -> None:
        """Let processes live after a stop."""
        self._nodes[name].left_pids = list(pids)

    def write(self, name: str, log: bytes = b"", metrics: bytes = b"") -> None:
        """Put something into the rank's streams."""
        self._nodes[name].write(LOG, log)
        self._nodes[name].write(METRICS, metrics)

    def end(self, name: str, **record: Any) -> None:
        """End the rank with an exit record."""
        self._nodes[name].end(**record)

    def runs(self, name: str) -> bool:
        """Say whether a rank runs there."""
        return self._nodes[name].runs

    def starts(self, name: str) -> int:
        """Count the requests to start."""
        return self._nodes[name].told.count("start")


class Job:
    """A queued job for three machines, with a backend."""

    def __init__(
        self,
        root: Path,
        kind: type[Any],
        timeouts: Timeouts | None = None,
        **record: Any,
    ) -> None:
        timeouts = timeouts or Timeouts(away_seconds=0.2, return_seconds=RETURN_SECONDS)
        self.cluster = make_cluster(root, timeouts=timeouts)
        made = make_record(self.cluster, **{"sync": False, **record})
        self.experiment: Experiment = Experiments(root / "experiments").create(
            made, make_scripts(root / "scripts")
        )
        self.machines: Machines = kind(self.cluster)
        self.backends: list[Backend] = []
        self.journals: list[Journal] = []
        self.journal, self.backend = self.another()

    def another(self) -> tuple[Journal, Backend]:
        """Make what an agent has that begins with the job now."""
        self._settle()
        journal = Journal(self.experiment, logging.getLogger("test"))
        backend = self.machines.backend(journal, self.cluster)
        self.backends.append(backend)
        self.journals.append(journal)
        return journal, backend

    def state(self) -> JobState:
        """Give the state as it is in the folder, with all that was noted."""
        self._settle()
        return self.experiment.state()

    def close(self) -> None:
        """Close all backends."""
        for backend in self.backends:
            backend.close()

    def said(self) -> list[str]:
        """Give what those who watch were told."""
        self._settle()
        return [event.message for event in self.experiment.events()[0]]

    def _settle(self) -> None:
        for journal in self.journals:
            journal.settle()
