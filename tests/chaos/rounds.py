"""One round: a launch, the faults at their moments, the end; then everything is looked at."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from lab.tools import read_proc
from tests.chaos import nodes
from tests.chaos.faults import KINDS, Fault, Missed, Stage, Undo
from tests.chaos.home import Command
from tests.chaos.plans import Plan

POLL_SECONDS = 0.05
LOOK_SECONDS = 0.7  # how often somebody who does not follow looks at the job
# UGRO's own: what a rank said stands behind the name of its node, or is indented.
TRACEBACK = re.compile(
    r"^(?:\x1b\[[\d;?]*[A-Za-z]|\r)*Traceback .*?/ugro_tasks/.*", re.M | re.S
)
COMMAND_SECONDS = 60  # for a command to end once the job has


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A fault that was done, and how far the job was."""

    fault: Fault
    at: float
    ran: bool  # all ranks ran by then
    where: str  # the node that it hit; rank 0's where the launch as a whole is meant


@dataclass(kw_only=True)
class Played:
    """What a round has left behind, for those who judge it."""

    plan: Plan
    stage: Stage
    job_id: str = ""
    state: dict[str, Any] = field(default_factory=dict)
    launch_code: int | None = None  # None: it was killed, or never came to its end
    launch_said: str = ""
    # Of the commands beside it.
    other_codes: dict[str, int] = field(default_factory=dict)
    second_code: int | None = None
    second_said: str = ""
    hits: list[Hit] = field(default_factory=list)
    stopped_by: str = ""  # who asked for a stop, "" where nobody did
    # Violations that showed while it was played.
    faults: list[str] = field(default_factory=list)
    beside: Played | None = None  # the round's other job

    @property
    def jobs(self) -> list[Played]:
        """What the jobs of the round have left behind."""
        return [self, *([self.beside] if self.beside else [])]

    @property
    def kinds(self) -> set[str]:
        """The kinds of all faults that were done in the round, whichever job they hit."""
        return {hit.fault.kind for job in self.jobs for hit in job.hits}

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, or will never be."""
        state = self.stage.home.state(self.stage.name)
        command = self.stage.command
        assert command
        return bool(state.get("ended_at")) if state else not command.running


class Round:
    """Plays one plan."""

    def __init__(self, plan: Plan, stage: Stage) -> None:
        self.plan, self.stage = plan, stage
        self.note = stage.timeline.note
        self.played = Played(plan=plan, stage=stage)
        if plan.beside:
            other = replace(stage, name=plan.beside.name)
            self.played.beside = Played(plan=plan.beside, stage=other)
        self._threads: list[threading.Thread] = []
        self._asked_to_stop = threading.Event()
        self._over = threading.Event()

    def play(self) -> Played:
        """From the launch to the end of all faults and of the job, or of patience."""
        stage, played = self.stage, self.played
        with self._surroundings():
            for fault in self.plan.faults:
                if fault.moment == "before":
                    self._begin(fault)
            for job in played.jobs:
                job.stage.command = stage.home.command(
                    *job.plan.words, terminal=job.plan.way == "terminal"
                )
                self.note("suite", f"$ {' '.join(job.plan.words)}")
            for fault in self.plan.faults:
                if fault.moment != "before":
                    self._in_thread(lambda fault=fault: self._play(fault))  # type: ignore[misc]
            if self.plan.goal in {"stop", "ctrl-c"}:
                self._in_thread(self._stop)
            self._watch()
            self._over.set()
            for thread in self._threads:
                thread.join(self.plan.patience_seconds)
            for job in played.jobs:
                assert job.stage.command
                job.launch_code, job.launch_said = self._end_of(
                    job.stage.command, f"launch {job.plan.name}"
                )
            if stage.second:
                # It may be the one that runs, after the first.
                patience = self.plan.patience_seconds
                code, played.second_said = self._end_of(
                    stage.second, "the second launch", patience
                )
                played.second_code = code
        for job in played.jobs:
            job.job_id = job.stage.job_id
            job.state = stage.home.state(job.stage.name)
        return played

    # ---- faults ----

    def _play(self, fault: Fault) -> None:
        if not self._wait_for(fault.moment, self._job_of(fault)):
            return self.note("suite", f"{fault} came too late")
        self._over.wait(fault.delay)
        self._begin(fault, now=True)
        return None

    def _begin(self, fault: Fault, *, now: bool = False) -> None:
        """Do it; undo it when its time is up, in this thread or in one of its own."""
        hit = [job for job in self.played.jobs if job.plan.is_hit_by(fault)]
        ran = [
            bool(job.stage.home.state(job.plan.name).get("started_at")) for job in hit
        ]
        try:
            self.note("suite", f"{fault}: begins")
            undo = KINDS[fault.kind].does(self._job_of(fault).stage, fault)
        except Missed as missed:
            return self.note("suite", f"{fault} missed: {missed}")
        for job, all_ran in zip(hit, ran, strict=True):
            node = job.plan.nodes[0] if fault.node is None else fault.node
            done = Hit(fault=fault, at=time.time(), ran=all_ran, where=f"lab{node}")
            job.hits.append(done)
        if not (KINDS[fault.kind].lasts or KINDS[fault.kind].until_over):
            return None
        if now:
            self._undo_later(fault, undo)
        else:
            self._in_thread(lambda: self._undo_later(fault, undo))
        return None

    def _job_of(self, fault: Fault) -> Played:
        """The job that a fault hits, the first one where it hits both or, on a node without a job, none."""
        hit = [job for job in self.played.jobs if job.plan.is_hit_by(fault)]
        return hit[0] if hit else self.played

    def _undo_later(self, fault: Fault, undo: Undo) -> None:
        if KINDS[fault.kind].until_over:
            self._over.wait(self.plan.patience_seconds)
        else:
            time.sleep(fault.seconds)
        undo()
        self.note("suite", f"{fault}: is over")

    def _stop(self) -> None:
        if not self._wait_for("running", self.played):
            return
        self._over.wait(self.plan.goal_delay)
        if self.stage.home.state(self.stage.name).get("ended_at"):
            return
        self.played.stopped_by = self.plan.goal
        self.note("suite", self.plan.goal)
        self._asked_to_stop.set()
        if self.plan.goal == "ctrl-c" and self.stage.command:
            self.stage.command.press_ctrl_c()
            return
        command = self.stage.home.command("stop", self.stage.name)
        code, said = self._end_of(command, "stop", self.plan.patience_seconds)
        self.note("stop", f"exit code {code}: {said}")
        if code is not None:
            self.played.other_codes["stop"] = code

    def _wait_for(self, moment: str, job: Played) -> bool:
        """False where it did not come before all was over."""
        met: Callable[[], bool] = {
            "launching": lambda: True,
            "running": lambda: self._came_to(job, nodes.has_begun, all),
            "ending": lambda: (
                (self._asked_to_stop.is_set() and job is self.played)
                or self._came_to(job, nodes.has_ended, any)
            ),
        }[moment]
        while not met():
            if self._over.wait(POLL_SECONDS):
                return False
            if job.is_over:
                return met()
        return True

    def _came_to(
        self,
        job: Played,
        moment: Callable[..., bool],
        of_hosts: Callable[[Iterable[bool]], bool],
    ) -> bool:
        """Whether all or any of its hosts have come to a moment of the job; False while there is no job."""
        job_id = job.stage.job_id
        return bool(job_id) and of_hosts(
            moment(self.stage.lab, self.stage.hosts[node], job_id)
            for node in job.plan.nodes
        )

    # ---- the jobs ----

    def _watch(self) -> None:
        """Until the jobs have ended and no fault goes on; a user looks at them now and then if nobody follows."""
        home, jobs = self.stage.home, self.played.jobs
        deadline = time.monotonic() + self.plan.patience_seconds
        looked = time.monotonic()
        while time.monotonic() < deadline:
            going_on = [job for job in jobs if not job.is_over]
            if not going_on:
                # Faults that wait for a moment that will not come now are told so.
                self._over.set()
                if not any(thread.is_alive() for thread in list(self._threads)):
                    return
            elif (
                not any(job.stage.command and job.stage.command.running for job in jobs)
                and not home.agent_pid()
                and time.monotonic() - looked > LOOK_SECONDS
            ):
                done = home.run("status", going_on[0].plan.name)
                looked = time.monotonic()
                self.note("suite", f"$ status: exit code {done.process.returncode}")
                self._no_traceback(done, "status")
            time.sleep(POLL_SECONDS)
        states = [home.state(job.plan.name).get("state", "no job") for job in jobs]
        self.played.faults.append(
            f"not over after {self.plan.patience_seconds:.0f} s: {', '.join(states)}; "
            f"threads {[t.name for t in self._threads if t.is_alive()]}"
        )

    def _end_of(
        self, command: Command, what: str, seconds: float = COMMAND_SECONDS
    ) -> tuple[int | None, str]:
        """(exit code, what it said). One that was killed has none."""
        deadline = time.monotonic() + seconds
        while command.running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if command.running:
            stack = read_proc(command.process.pid, "wchan").decode()
            self.played.faults.append(
                f"{what} goes on although the job is over ({stack})"
            )
        code = None if command.running else command.process.returncode
        command.close()
        if code is not None:
            self.note(
                what, f"exit code {code} after {time.monotonic() - command.begun:.1f} s"
            )
        self._no_traceback(command, what)
        # A write to a terminal that has just gone may fail before the signal comes that tells of it.
        killed = code is None or code < 0 or command.window_closed
        return (None if killed else code), command.said

    def _no_traceback(self, command: Command, what: str) -> None:
        if found := TRACEBACK.search(command.said):
            self.played.faults.append(f"a traceback from {what}: {found[0][-3000:]}")

    def _in_thread(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:
                self.played.faults.append(f"the suite itself: {error!r}")
                raise

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        """What has to be there from before the launch to after the end."""
        stepped = [
            fault.node for fault in self.plan.faults if fault.kind == "clock-stepped"
        ]
        clocks = [
            host for index, host in enumerate(self.stage.hosts) if index in stepped
        ]
        for host in clocks:
            nodes.begin_own_clock(host)
        used = [node for plan in self.plan.jobs for node in plan.nodes]
        with_cards = [self.stage.hosts[node] for node in used if self.plan.samples]
        for host in with_cards:
            host.nvidia_smi("rtx4070")
        try:
            yield
        finally:
            for host in clocks:
                nodes.end_own_clock(host)
            for host in with_cards:
                host.nvidia_smi(None)
