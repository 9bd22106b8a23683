"""The agent: one background process per experiments folder, which supervises every job in it.

    python -m ugro_tasks.agent EXPERIMENTS_FOLDER

Any command starts it when there is work for it. A lock in the folder keeps it single, and a session of its own keeps it
alive when a terminal closes. It shares nothing with the commands but the folder. It may be killed at any moment: the
next one goes on. It leaves some time after the last job; until then its open connections make the next launch fast.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import time
from pathlib import Path

import msgspec

from ..backends.ssh.backend import SshBackend
from ..cluster.model import Cluster, Node
from ..errors import RecordError
from ..hosts.fleet import Fleet, connect
from ..hosts.host import Host
from ..jobs.experiment import Experiment
from ..jobs.experiments import Experiments
from ..jobs.journal import Journal
from ..jobs.log import open_log
from ..jobs.phase import Phase
from ..jobs.sole_supervision import SoleSupervision, forget_long_ended
from ..jobs.state import Cause
from .supervise import Supervision

PACKAGE = Path(__file__).parents[1]
POLL_SECONDS = 0.03
BUSY_POLL_SECONDS = 0.1  # beside a job, which needs the machine and has the nodes
LOCK_SECONDS = 2.0
CLOCK_TICK_NS = 100_000_000


class Agent:
    """Begins a `Supervision` for each unfinished job of the folder."""

    def __init__(self, experiments: Experiments) -> None:
        self.experiments = experiments.held()
        self._locks: list[io.FileIO] = []
        self._jobs: dict[str, threading.Thread] = {}
        self._rights: dict[str, SoleSupervision] = {}
        self._is_offering = False
        self._hosts: dict[Node, Host] = {}
        self._left_alone: dict[str, str] = {}
        self._seen = -1
        self._said = ""
        # Of the jobs that still have a thread.
        self._ended: set[str] = set()
        self._code = _newest_code()
        self._linger_seconds = 0.0

    def run(self) -> None:
        """Supervise until no job was unfinished for the linger time of the last cluster, or until UGRO was updated.

        A folder that is moved, unmounted or deleted ends no job.
        """
        with contextlib.suppress(OSError):  # on a full disk, the next one will
            self.experiments.complete_history()
        forget_long_ended()
        idle_since = time.monotonic()
        while True:
            try:
                if self.experiments.is_lost():
                    if not self._finds_it_again():
                        return
                elif self._is_superseded():
                    return
                if self._folder_changed():
                    if not self._unfinished() and self._code != _newest_code():
                        return
                    self._begin_new_jobs()
            except OSError as error:
                self._say_once(f"{error.filename}: {error.strerror}")
            self._jobs = {
                job: thread for job, thread in self._jobs.items() if thread.is_alive()
            }
            if self._jobs:
                # Also for one that has ended, while a node may still run something of it.
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self._linger_seconds:
                return
            is_busy = bool(self._unfinished())
            time.sleep(BUSY_POLL_SECONDS if is_busy else POLL_SECONDS)

    def _unfinished(self) -> set[str]:
        """Return the jobs under supervision that have not ended."""
        return self._jobs.keys() - self._ended

    def _folder_changed(self) -> bool:
        """Say whether there may be a new job: it changes the folder's time stamp."""
        was = self._seen
        self._seen = Path(self.experiments.files.root).stat().st_mtime_ns
        if abs(time.time_ns() - self._seen) < CLOCK_TICK_NS:
            # The next job may come within the same tick of the file system's clock.
            self._seen = -1
        return was != self._seen or self._seen == -1

    def _finds_it_again(self) -> bool:
        """Go on in what has the folder's path now; return whether jobs are left that no other agent goes on with."""
        there = Experiments(self.experiments.folder)
        if not self._jobs or not there.folder.is_dir():
            return bool(self._jobs) and not self._has_successor()
        # Where there are no locks no other agent has one either.
        with contextlib.suppress(RecordError):
            lock = there.take_agent_lock()
            if lock is None:
                return False
            self._locks.append(lock)
        self.experiments.take_up_again()
        return True

    def _has_successor(self) -> bool:
        """Offer the jobs to who has the folder elsewhere by now; return whether all of them were taken."""
        self._is_offering = True
        taken = [right.offer() for right in list(self._rights.values())]
        return bool(taken) and all(taken)

    def _is_superseded(self) -> bool:
        """Take back what was offered while the folder was lost; return whether another agent has some of it."""
        if not self._is_offering:
            return False
        self._is_offering = False
        claimed = [right.claim() for right in list(self._rights.values())]
        return not all(claimed)

    def _say_once(self, words: str) -> None:
        if words != self._said:
            sys.stderr.write(f"{words}\n")
        self._said = words

    def _begin_new_jobs(self) -> None:
        ours, left_alone = self.experiments.to_supervise()
        for job_id, why in left_alone.items():
            if self._left_alone.get(job_id) != why:
                sys.stderr.write(f"{why}\n")
        self._left_alone = left_alone
        for experiment in ours:
            if experiment.job_id not in self._jobs:
                try:
                    right = SoleSupervision.take(experiment)
                except (OSError, RecordError) as error:
                    # It was readable a moment ago: somebody is changing it. The others begin all the same.
                    self._say_once(f"{experiment.job_id}: {error}")
                    continue
                if right is None:
                    # A command looks at it, or it has just been taken in a copy of the folder.
                    self._seen = -1
                    continue
                self._rights[experiment.job_id] = right
                name = f"job-{experiment.job_id}"
                thread = threading.Thread(
                    target=self._supervise_alone,
                    args=(experiment,),
                    name=name,
                    daemon=True,
                )
                self._jobs[experiment.job_id] = thread
                thread.start()

    def _supervise_alone(self, experiment: Experiment) -> None:
        try:
            self._supervise(experiment)
        finally:
            right = self._rights.pop(experiment.job_id)
            right.end(ended=_has_ended(experiment))

    def _supervise(self, experiment: Experiment) -> None:
        try:
            cluster = experiment.cluster()
            log = _log_of(cluster)
            journal = Journal(experiment, log)
        except RecordError as error:
            # It was readable a moment ago: somebody is changing it.
            sys.stderr.write(f"{experiment.job_id}: {error}\n")
            return
        self._linger_seconds = cluster.timeouts.agent_linger_seconds
        try:
            fleet = self._fleet(cluster)
            backend = SshBackend(journal, cluster, fleet, self.experiments)
            supervision = Supervision(self.experiments, journal, backend)
            supervision.run()
            self._ended.add(experiment.job_id)
            supervision.see_off()
        except (
            Exception
        ) as error:  # a thread's edge: a bug must be seen, and its job must not hang
            log.exception("%s: a bug in UGRO", experiment.job_id)
            self._give_up(journal, f"UGRO itself failed ({error!r}); see agent.log")

    def _give_up(self, journal: Journal, why: str) -> None:
        """Write into the job's state why it is not supervised; a job with an end keeps it."""
        journal.abandon()
        if journal.state.phase.finished:
            return
        cause = Cause(message=f"{why}\n    end what may be left of it: inv reset")
        over = {"ended_at": time.time(), "cause": cause, "exit_code": 1}
        failed = msgspec.structs.replace(journal.state, phase=Phase.FAILED, **over)
        try:
            journal.experiment.save_state(failed)
        except OSError as error:
            sys.stderr.write(
                f"{journal.experiment.job_id}: its state could not be written: {error}\n"
            )

    def _fleet(self, cluster: Cluster) -> Fleet:
        """Give the cluster's hosts, with their open connections."""
        for node in cluster.nodes:
            if node not in self._hosts:
                self._hosts[node] = connect(node, cluster.timeouts.connect_seconds)
        fleet: Fleet = Fleet.from_connections(
            [self._hosts[node] for node in cluster.nodes]
        )
        return fleet


def _has_ended(experiment: Experiment) -> bool:
    """Return whether the record in a job's folder tells its end."""
    try:
        return experiment.state().phase.finished
    except RecordError:
        return False


def _log_of(cluster: Cluster) -> logging.Logger:
    """Open agent.log; without a folder for it, what it would say goes to the agent's last words."""
    try:
        return open_log("agent", cluster)
    except RecordError as error:
        sys.stderr.write(f"{error}\n")
        log = logging.getLogger("ugro.agent.stderr")
        if not log.handlers:
            log.addHandler(logging.StreamHandler())
        return log


def _newest_code() -> int:
    """Give the time of the package's last change: an agent of yesterday's code must not run today's jobs."""
    return max(path.stat().st_mtime_ns for path in PACKAGE.rglob("*.py"))


def _has_agent(experiments: Experiments) -> bool:
    """Return whether an agent lives that was quicker; it has the lock although the disk may be read-only by now."""
    try:
        return experiments.agent_pid() is not None
    except (OSError, RecordError):
        return False


def main() -> None:
    """Be the agent of the folder on the command line, unless it has one already."""
    experiments = Experiments(Path(sys.argv[1]))
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while not (lock := experiments.take_agent_lock()):
            # A command that looks whether an agent lives holds the lock for a moment, too.
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
    except RecordError as error:
        sys.exit(error.text)
    except OSError as error:
        if _has_agent(experiments):
            return
        sys.exit(f"{error.filename}: {error.strerror}; nothing can be done here")
    with lock:
        with contextlib.suppress(OSError):  # on a full disk it goes without its pid
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
        Agent(experiments).run()
