"""A job on three fake nodes, supervised as by an agent."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from tests.unit.backends.ssh.fake_hosts import FakeNode
from tests.unit.factories import make_cluster, make_record, make_scripts
from ugro_tasks.agent.supervise import Supervision
from ugro_tasks.backends.ssh.backend import SshBackend
from ugro_tasks.cluster.model import Timeouts
from ugro_tasks.hosts.fleet import Fleet
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.journal import Journal
from ugro_tasks.jobs.state import JobState

DONE = {"code": 0}
FAILED = {"code": 3}
TIMEOUTS = Timeouts(away_seconds=0.2, return_seconds=0.3)


class World:
    """A queued job of three nodes; `exits` says how the ranks end, attempt by attempt."""

    def __init__(self, root: Path, **record: Any) -> None:
        self.cluster = make_cluster(root, timeouts=TIMEOUTS)
        self.experiments = Experiments(root / "experiments")
        made = make_record(self.cluster, sync=False, **record)
        self.experiment = self.experiments.create(made, make_scripts(root / "scripts"))
        self.nodes = [FakeNode(node) for node in self.cluster.nodes]

    def again(self, experiments: Experiments, experiment: Experiment) -> World:
        """Return the same cluster with nodes that know nothing, and the job as found in a folder."""
        other = World.__new__(World)
        other.cluster = self.cluster
        other.experiments = experiments
        other.experiment = experiment
        other.nodes = [FakeNode(node) for node in self.cluster.nodes]
        return other

    def exits(self, *attempts: dict[str, Any] | None) -> None:
        for node in self.nodes:
            node.exits = list(attempts)

    def supervision(self) -> Supervision:
        fleet = Fleet.from_connections(self.nodes)
        journal = Journal(self.experiment, logging.getLogger("test"))
        backend = SshBackend(journal, self.cluster, fleet, self.experiments)
        return Supervision(self.experiments, journal, backend)

    def begin(self) -> threading.Thread:
        thread = threading.Thread(target=self.supervision().run, daemon=True)
        thread.start()
        return thread

    def run(self) -> JobState:
        return self.end_of(self.begin())

    def end_of(self, thread: threading.Thread) -> JobState:
        thread.join(30)
        assert not thread.is_alive(), self.said()
        return self.experiment.state()

    def is_followed(self) -> bool:
        ranks = self.experiment.state().ranks
        return bool(ranks) and all(rank.connected for rank in ranks)

    def said(self) -> list[str]:
        return [event.message for event in self.experiment.events()[0]]

    def prepared(self) -> list[int]:
        """How often each node was told to prepare."""
        return [node.told.count("prepare") for node in self.nodes]
