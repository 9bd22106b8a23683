"""One round: a launch, the faults at their moments, the end; then everything is looked at."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
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

    @property
    def where(self) -> str:
        """The node that it hit; rank 0's where the launch as a whole is meant."""
        return f"lab{self.fault.node or 0}"


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


class Round:
    """Plays one plan."""

    def __init__(self, plan: Plan, stage: Stage) -> None:
        self.plan, self.stage = plan, stage
        self.note = stage.timeline.note
        self.played = Played(plan=plan, stage=stage)
        self._used = stage.hosts[: plan.hosts]
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
            stage.command = stage.home.command(
                *self.plan.words, terminal=self.plan.way == "terminal"
            )
            self.note("suite", f"$ {' '.join(self.plan.words)}")
            for fault in self.plan.faults:
                if fault.moment != "before":
                    self._in_thread(lambda fault=fault: self._play(fault))  # type: ignore[misc]
            if self.plan.goal in {"stop", "ctrl-c"}:
                self._in_thread(self._stop)
            self._watch()
            self._over.set()
            for thread in self._threads:
                thread.join(self.plan.patience_seconds)
            played.launch_code, played.launch_said = self._end_of(
                stage.command, "launch"
            )
            if stage.second:
                # It may be the one that runs, after the first.
                patience = self.plan.patience_seconds
                code, played.second_said = self._end_of(
                    stage.second, "the second launch", patience
                )
                played.second_code = code
        played.job_id = stage.job_id
        played.state = stage.home.state(stage.name)
        return played

    # ---- faults ----

    def _play(self, fault: Fault) -> None:
        if not self._wait_for(fault.moment):
            return self.note("suite", f"{fault} came too late")
        self._over.wait(fault.delay)
        self._begin(fault, now=True)
        return None

    def _begin(self, fault: Fault, *, now: bool = False) -> None:
        """Do it; undo it when its time is up, in this thread or in one of its own."""
        ran = bool(self.stage.home.state(self.stage.name).get("started_at"))
        try:
            self.note("suite", f"{fault}: begins")
            undo = KINDS[fault.kind].does(self.stage, fault)
        except Missed as missed:
            return self.note("suite", f"{fault} missed: {missed}")
        self.played.hits.append(Hit(fault=fault, at=time.time(), ran=ran))
        if not (KINDS[fault.kind].lasts or KINDS[fault.kind].until_over):
            return None
        if now:
            self._undo_later(fault, undo)
        else:
            self._in_thread(lambda: self._undo_later(fault, undo))
        return None

    def _undo_later(self, fault: Fault, undo: Undo) -> None:
        if KINDS[fault.kind].until_over:
            self._over.wait(self.plan.patience_seconds)
        else:
            time.sleep(fault.seconds)
        undo()
        self.note("suite", f"{fault}: is over")

    def _stop(self) -> None:
        if not self._wait_for("running"):
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

    def _wait_for(self, moment: str) -> bool:
        """False where it did not come before the job was over."""
        met: Callable[[], bool] = {
            "launching": lambda: True,
            "running": lambda: self._came_to(nodes.has_begun, all),
            "ending": lambda: (
                self._asked_to_stop.is_set() or self._came_to(nodes.has_ended, any)
            ),
        }[moment]
        while not met():
            if self._over.wait(POLL_SECONDS):
                return False
        return True

    def _came_to(
        self, moment: Callable[..., bool], of_hosts: Callable[[Iterable[bool]], bool]
    ) -> bool:
        """Whether all or any of the hosts have come to a moment of the job; False while there is no job."""
        job = self.stage.job_id
        return bool(job) and of_hosts(
            moment(self.stage.lab, host, job) for host in self._used
        )

    # ---- the job ----

    def _watch(self) -> None:
        """Until the job has ended and no fault goes on; a user looks at it now and then if nobody follows."""
        home, command = self.stage.home, self.stage.command
        assert command
        deadline = time.monotonic() + self.plan.patience_seconds
        looked = time.monotonic()
        while time.monotonic() < deadline:
            state = home.state(self.stage.name)
            if (state or not command.running) and (not state or state.get("ended_at")):
                # Faults that wait for a moment that will not come now are told so.
                self._over.set()
                if not any(thread.is_alive() for thread in list(self._threads)):
                    return
            elif (
                not command.running
                and not home.agent_pid()
                and time.monotonic() - looked > LOOK_SECONDS
            ):
                done = home.run("status", self.stage.name)
                looked = time.monotonic()
                self.note("suite", f"$ status: exit code {done.process.returncode}")
                self._no_traceback(done, "status")
            time.sleep(POLL_SECONDS)
        state = home.state(self.stage.name)
        self.played.faults.append(
            f"not over after {self.plan.patience_seconds:.0f} s: {state.get('state', 'no job')}; "
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
        for host in self._used if self.plan.samples else ():
            host.nvidia_smi("rtx4070")
        try:
            yield
        finally:
            for host in clocks:
                nodes.end_own_clock(host)
            for host in self._used:
                host.nvidia_smi(None)
