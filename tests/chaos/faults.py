"""The faults: how each is done, undone, and what it may do to a job."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab import Lab, LabHost
from tests.chaos import nodes
from tests.chaos.home import Command, Home
from tests.chaos.timeline import Timeline
from tests.chaos.versions import NEW_FIELD, ROOT, make_another_version

Undo = Callable[[], None]
Moment = Literal["before", "launching", "running", "ending"]
MASTER_PORT = 29500
WAIT_FOR_PROCESS_SECONDS = 20.0
ANOTHER_VERSION_TRIES = 3
POLITE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Missed(Exception):
    """There was nothing to hit any more, or not yet."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of a round, as it was drawn."""

    kind: str
    node: int | None  # None: the controller
    moment: Moment
    delay: float  # seconds after the moment
    # How long it lasts, 0.0: it is an instant; or by how much a clock jumps.
    seconds: float

    def __str__(self) -> str:
        where = "" if self.node is None else f" lab{self.node}"
        lasts = (
            f" {'for' if KINDS[self.kind].lasts else 'by'} {self.seconds:.1f} s"
            if self.seconds
            else ""
        )
        return f"{self.kind}{where} {self.moment}+{self.delay:.1f}{lasts}"


@dataclass(kw_only=True)
class Stage:
    """Where a round plays: what a fault may lay hands on."""

    lab: Lab
    home: Home
    other: Home
    timeline: Timeline
    name: str
    command: Command | None = None  # the launch that somebody watches
    second: Command | None = None  # the other controller's
    second_name: str = ""
    # Whether a record has had a field of another version.
    has_new_field: bool = False

    @property
    def hosts(self) -> list[LabHost]:
        return self.lab.hosts

    @property
    def another_version(self) -> Path:
        """The folder of UGRO in another version."""
        return self.lab.folder / "another-version"

    @property
    def job_id(self) -> str:
        """Of the job under test, "" while there is none."""
        folder = self.home.job_folder(self.name)
        return folder.name if folder else ""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a fault of this kind does and may do.

    `deadly`: the rank on its node fails. `hinders`: a launch that it meets before all ranks run may be refused or
    undone. `lasts`: it has an end. Whatever it is: no byte is lost, and nothing is left.
    """

    does: Callable[[Stage, Fault], Undo]
    words: str
    promise: str
    moments: tuple[Moment, ...] = (
        "running",
        "running",
        "running",
        "launching",
        "ending",
    )
    on_node: bool = True
    deadly: bool = False
    hinders: bool = False
    lasts: bool = False
    until_over: bool = False  # it lasts until the job is over
    weight: float = 1.0


def nothing() -> None:
    """What undoes an instant."""


def host_of(stage: Stage, fault: Fault) -> LabHost:
    assert fault.node is not None
    return stage.hosts[fault.node]


# ---- the network ----


def link_down(stage: Stage, fault: Fault) -> Undo:
    host = host_of(stage, fault)
    host.cut()
    return host.mend


def link_slow(stage: Stage, fault: Fault) -> Undo:
    host = host_of(stage, fault)
    host.slow(delay_ms=200, loss_percent=20)
    return host.fast


def sshd_killed(stage: Stage, fault: Fault) -> Undo:
    host = host_of(stage, fault)
    nodes.kill_sshd(host)
    return host.start_sshd


def host_key_changed(stage: Stage, fault: Fault) -> Undo:
    host = host_of(stage, fault)
    host.new_host_key()
    nodes.kill_sshd(host)
    host.start_sshd()
    return stage.lab.trust


def controller_offline(stage: Stage, fault: Fault) -> Undo:
    stage.lab.go_offline()
    return stage.lab.go_online


def port_taken(stage: Stage, fault: Fault) -> Undo:
    """It waits for the plan by itself."""
    host = stage.hosts[0]
    pattern = f"/root/{nodes.project_of(stage.lab)}/jobs/{stage.name}_*/plan.json"
    squatter = nodes.squat(host, MASTER_PORT, pattern)

    def undo() -> None:
        nodes.end_squatter(host)
        out, err = squatter.communicate(timeout=10)
        stage.timeline.note(
            "suite", f"the foreign process: {(out + err).strip().splitlines()[-1:]}"
        )

    return undo


# ---- processes on a node ----


def _signalled(word: str, *signals: signal.Signals) -> Callable[[Stage, Fault], Undo]:
    """Send one of the signals, chosen by the fault's moment, to a process of the job."""

    def do(stage: Stage, fault: Fault) -> Undo:
        host, deadline = (
            host_of(stage, fault),
            time.monotonic() + WAIT_FOR_PROCESS_SECONDS,
        )
        signum = signals[int(fault.delay * 1e6) % len(signals)]
        while not (
            pid := nodes.signal_one(host, stage.job_id, word, signum)
            if stage.job_id
            else 0
        ):
            if time.monotonic() > deadline or stage.home.state(stage.name).get(
                "ended_at"
            ):
                raise Missed(f"no process with {word}")
            time.sleep(0.03)
        stage.timeline.note(
            "suite", f"{signum.name} to pid {pid} ({word}) on {host.name}"
        )
        return nothing

    return do


def node_rebooted(stage: Stage, fault: Fault) -> Undo:
    host_of(stage, fault).reboot()
    return nothing


def node_shut_down(stage: Stage, fault: Fault) -> Undo:
    host_of(stage, fault).shut_down()
    return nothing


def session_ended(stage: Stage, fault: Fault) -> Undo:
    host = host_of(stage, fault)
    for signum in (signal.SIGHUP, signal.SIGTERM):
        host.end_sessions(signum)
    # sshd has ended with them.
    nodes.kill_sshd(host)
    host.start_sshd()
    return nothing


def reset_under_job(stage: Stage, fault: Fault) -> Undo:
    stage.home.run("reset", "--nodes", host_of(stage, fault).name)
    return nothing


def clock_stepped(stage: Stage, fault: Fault) -> Undo:
    """What runs there has a clock of its own since before the launch, see `Round`."""
    host = host_of(stage, fault)
    nodes.set_clock(host, fault.seconds)
    return nothing


def node_disk_full(stage: Stage, fault: Fault) -> Undo:
    host = host_of(stage, fault)
    nodes.fill_disk(host)
    return lambda: nodes.empty_disk(host)


# ---- the controller ----


def agent_killed(stage: Stage, fault: Fault) -> Undo:
    if not stage.home.kill_agent():
        raise Missed("no agent lives")
    return nothing


def agent_of_another_version(stage: Stage, fault: Fault) -> Undo:
    """Have the next agent started by a command of another version than the last one's, be it the older or the newer.

    One that follows the job may start an agent of its own version first.
    """
    another = stage.another_version
    if not another.exists():
        make_another_version(another)
    version = ROOT if stage.home.agent_is_of(another) else another
    for _ in range(ANOTHER_VERSION_TRIES):
        if _is_over(stage) or not stage.home.kill_agent():
            raise Missed("no agent lives, or the job is over")
        stage.has_new_field |= NEW_FIELD in stage.home.state(stage.name)
        stage.home.run("status", stage.name, version=version)
        # It has been started, and takes the lock within moments.
        _wait_for_agent(stage)
        if stage.home.agent_is_of(version):
            break
    else:
        raise Missed("agents of the same version came first")
    deadline = time.monotonic() + WAIT_FOR_PROCESS_SECONDS
    is_expected = version == another
    while is_expected and not stage.has_new_field and time.monotonic() < deadline:
        over = _is_over(stage)
        stage.has_new_field = NEW_FIELD in stage.home.state(stage.name)
        if over:
            break
        time.sleep(0.03)
    stage.timeline.note(
        "suite",
        f"agent of {version}; a new field is in the record: {stage.has_new_field}",
    )
    return nothing


def _wait_for_agent(stage: Stage) -> None:
    """Wait until an agent lives, or none is needed any more."""
    deadline = time.monotonic() + WAIT_FOR_PROCESS_SECONDS
    while not stage.home.agent_pid() and not _is_over(stage):
        if time.monotonic() > deadline:
            raise Missed("no agent has begun")
        time.sleep(0.01)


def _is_over(stage: Stage) -> bool:
    return bool(stage.home.state(stage.name).get("ended_at"))


def launch_killed(stage: Stage, fault: Fault) -> Undo:
    if not stage.command or not stage.command.running:
        raise Missed("the command has ended")
    stage.command.kill()
    return nothing


def terminal_closed(stage: Stage, fault: Fault) -> Undo:
    if not stage.command or not stage.command.running:
        raise Missed("the command has ended")
    stage.command.close_terminal()
    return nothing


def home_disk_full(stage: Stage, fault: Fault) -> Undo:
    stage.home.fill_disk()
    return stage.home.empty_disk


def home_read_only(stage: Stage, fault: Fault) -> Undo:
    stage.home.make_read_only()
    return stage.home.make_writable


def home_out_of_inodes(stage: Stage, fault: Fault) -> Undo:
    stage.home.take_inodes()
    return stage.home.give_inodes


def folder_unmounted(stage: Stage, fault: Fault) -> Undo:
    stage.home.unmount()
    return stage.home.mount


def folder_moved(stage: Stage, fault: Fault) -> Undo:
    folder = stage.home.job_folder(stage.name)
    if folder is None:
        raise Missed("there is no job")
    aside = stage.home.seen(stage.home.disk) / "aside"
    folder.rename(aside)

    def undo() -> None:
        aside.rename(folder)

    return undo


def record_torn(stage: Stage, fault: Fault) -> Undo:
    """Cut a record, as a power cut may, and let another agent begin."""
    folder = stage.home.job_folder(stage.name)
    if folder is None or not stage.home.kill_agent():
        raise Missed("no agent lives")
    torn = folder / ("state.json" if int(fault.delay * 1e6) % 2 else "config.json")
    content = torn.read_bytes()
    try:
        torn.write_bytes(content[: int(fault.delay * 1e6) % len(content)])
    except OSError as error:
        raise Missed("the disk is read-only") from error
    return nothing


def second_controller(stage: Stage, fault: Fault) -> Undo:
    stage.second_name = f"{stage.name}b"
    stage.second = stage.other.command(
        "launch", "--name", stage.second_name, "--quiet", "--args", "--seconds 0.5"
    )
    return nothing


# ---- all of them ----

KINDS: dict[str, Kind] = {
    "link-down": Kind(
        does=link_down,
        words="the cable of a node is pulled, for a moment or up to a minute",
        promise="the ranks go on; the log goes on at the very byte",
        hinders=True,
        lasts=True,
        weight=2.0,
    ),
    "link-slow": Kind(
        does=link_slow,
        words="each packet to and from a node takes 200 ms more, and 20 % are lost",
        promise="the same; a launch takes longer, or is refused and names the node",
        moments=("running", "running", "launching", "ending", "before"),
        hinders=True,
        lasts=True,
    ),
    "sshd-killed": Kind(
        does=sshd_killed,
        words="kill -9 of sshd and all its sessions; sshd comes back",
        promise="as with the cable",
        hinders=True,
        lasts=True,
    ),
    "controller-offline": Kind(
        does=controller_offline,
        words="the cable of the controller is pulled: the nodes reach each other, and it reaches none",
        promise="the same, however long and with restarts too: no node counts as lost while none answers",
        on_node=False,
        hinders=True,
        lasts=True,
        weight=1.5,
    ),
    "host-key-changed": Kind(
        does=host_key_changed,
        words="a node shows another host key, and every connection has to be made again",
        promise="nothing is sent to it until the key is trusted; then the job goes on",
        moments=("running",),
        hinders=True,
        lasts=True,
    ),
    "port-taken": Kind(
        does=port_taken,
        words="a foreign process takes the master's port between plan and start",
        promise="the job fails and names the master; a restart takes another port",
        moments=("before",),
        on_node=False,
        deadly=True,
        until_over=True,
    ),
    "rank-killed": Kind(
        does=_signalled("workload.py", signal.SIGKILL),
        words="kill -9 of a rank",
        promise="the others are stopped, the rank is named",
        moments=("running", "running", "running", "ending"),
        deadly=True,
        weight=1.5,
    ),
    "torchrun-killed": Kind(
        does=_signalled(nodes.TORCHRUN, signal.SIGKILL),
        words="kill -9 of a torchrun",
        promise="the same",
        moments=("running", "running", "launching", "ending"),
        deadly=True,
    ),
    "supervisor-killed": Kind(
        does=_signalled("node.zip", signal.SIGKILL),
        words="kill -9 of a node's supervisor",
        promise="the same",
        moments=("running", "running", "launching", "ending"),
        deadly=True,
        hinders=True,
    ),
    "node-rebooted": Kind(
        does=node_rebooted,
        words="all processes of a node are gone, it has another boot id",
        promise="the same; the cause says that it was rebooted",
        moments=("running", "running", "launching", "ending"),
        deadly=True,
        hinders=True,
    ),
    "rank-terminated": Kind(
        does=_signalled("workload.py", *POLITE),
        words="TERM, INT or HUP to a rank",
        promise="the same, unless its script goes on",
        moments=("running", "running", "running", "ending"),
        deadly=True,
    ),
    "torchrun-terminated": Kind(
        does=_signalled(nodes.TORCHRUN, *POLITE),
        words="TERM, INT or HUP to a torchrun",
        promise="the same",
        moments=("running", "running", "launching", "ending"),
        deadly=True,
    ),
    "supervisor-terminated": Kind(
        does=_signalled("node.zip", *POLITE),
        words="TERM, INT or HUP to a node's supervisor",
        promise="the same: no signal of somebody else is an order to stop",
        moments=("running", "running", "launching", "ending"),
        deadly=True,
        hinders=True,
    ),
    "node-shut-down": Kind(
        does=node_shut_down,
        words="all processes of a node get TERM, a second later KILL; it has another boot id",
        promise="the same",
        moments=("running", "running", "launching", "ending"),
        deadly=True,
        hinders=True,
        weight=1.5,
    ),
    "session-ended": Kind(
        does=session_ended,
        words="all processes of a node get HUP and TERM, sshd too; sshd comes back",
        promise="the same",
        moments=("running", "running", "launching", "ending"),
        deadly=True,
        hinders=True,
    ),
    "reset-under-job": Kind(
        does=reset_under_job,
        words="`inv reset` of a node on which the job runs",
        promise="the job ends as stopped, with the reason, and is not restarted",
        moments=("running", "running", "launching", "ending"),
        deadly=True,
        hinders=True,
    ),
    "clock-stepped": Kind(
        does=clock_stepped,
        words="a node's clock jumps an hour back or two ahead (by LD_PRELOAD)",
        promise="nothing happens; a launch is refused while the clock is wrong",
        moments=("running", "running", "launching", "ending"),
        hinders=True,
    ),
    "node-disk-full": Kind(
        does=node_disk_full,
        words="a node's disk is full for a while",
        promise="a script that waits for room goes on; its end is recorded when there is room",
        hinders=True,
        lasts=True,
    ),
    "agent-killed": Kind(
        does=agent_killed,
        words="kill -9 of the agent",
        promise="the next one goes on, whatever it was at",
        on_node=False,
        moments=("running", "running", "launching", "launching", "ending"),
        weight=1.5,
    ),
    "agent-of-another-version": Kind(
        does=agent_of_another_version,
        words="kill -9 of the agent, and the next one is of another version, with another program for the nodes",
        promise="it goes on; what this version does not know of its records is kept by the agents after it",
        on_node=False,
        moments=("running", "running", "launching", "ending"),
    ),
    "launch-killed": Kind(
        does=launch_killed,
        words="kill -9 of `inv launch`",
        promise="the job goes on, or was never begun",
        on_node=False,
        moments=("running", "launching", "launching", "ending"),
    ),
    "terminal-closed": Kind(
        does=terminal_closed,
        words="the terminal of `inv launch` is closed (SIGHUP)",
        promise="the job goes on",
        on_node=False,
        moments=("running", "launching", "ending"),
    ),
    "home-disk-full": Kind(
        does=home_disk_full,
        words="the disk of the controller is full for a while",
        promise="what could not be stored is asked for again",
        on_node=False,
        hinders=True,
        lasts=True,
    ),
    "home-read-only": Kind(
        does=home_read_only,
        words="the experiments folder is read-only for a while",
        promise="the same",
        on_node=False,
        hinders=True,
        lasts=True,
    ),
    "home-out-of-inodes": Kind(
        does=home_out_of_inodes,
        words="the disk of the controller takes no more files for a while",
        promise="the same",
        on_node=False,
        hinders=True,
        lasts=True,
    ),
    "folder-unmounted": Kind(
        does=folder_unmounted,
        words="the path of the experiments folder leads to an empty one for a while",
        promise="the job goes on, and its record is whole when it is back",
        moments=("running", "running", "ending"),
        on_node=False,
        lasts=True,
    ),
    "folder-moved": Kind(
        does=folder_moved,
        words="the job's folder is moved and renamed, and after a while moved back",
        promise="the same",
        moments=("running", "running", "ending"),
        on_node=False,
        lasts=True,
    ),
    "record-torn": Kind(
        does=record_torn,
        words="kill -9 of the agent, and `state.json` or `config.json` is empty or cut",
        promise="the next agent goes on by their copies",
        moments=("running", "running", "ending"),
        on_node=False,
    ),
    "second-controller": Kind(
        does=second_controller,
        words="another controller launches on the same nodes",
        promise="one of them runs, the other is told who has the nodes; or, in the same moment, neither runs",
        moments=("running", "launching", "before", "ending"),
        on_node=False,
        hinders=True,
    ),
}  # fmt: skip
# Not faults but habits of a script; each is in some rounds, with or without a fault.
HABITS: dict[str, tuple[tuple[str, ...], str]] = {
    "giant-line": (("--output", "giant"), "10 MB in one line"),
    "binary": (("--output", "binary"), "bytes that are no text, and terminal escapes"),
    "full-speed": (("--output", "flood"), "all ranks print as fast as they can"),
    "quiet": (("--quiet",), "not a word for most of the time"),
    "ignores-term": (("--ignore-term",), "TERM is ignored"),
    "daemon": (("--daemon",), "a process of a session of its own is left behind"),
    "hides": (
        ("--hide",),
        "so is one that has an empty environment, and is deaf to TERM",
    ),
    "unreadable-output": (
        ("--unreadable",),
        "a file and a folder among the outputs that may not be read, and a name that is no text",
    ),
    # Which act is drawn, see `ACTS`.
    "hostile-rank": (
        ("--hostile",),
        "a rank forges what UGRO says, and meddles with its attempt's folder, the node's memory or its outputs",
    ),
}
# What a hostile rank does besides forging, see scripts/hostile.py: a record of its end, which counts only once its
# supervisor has gone;
FORGES_END = ("forge-exit", "garble-exit")
# what must change nothing; and what may end the rank that does it.
HARMLESS = (*FORGES_END, "block-exit", "forge-stop", "garble-memory", "plant")
HARMS_ITSELF = ("garble-identity", "remove-records", "remove-folder", "replace-streams")
REMOVES_STREAMS = ("remove-folder", "replace-streams")
ACTS = (*HARMLESS, *HARMS_ITSELF)
