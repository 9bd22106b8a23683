"""What a user sees: tables, lines, progress, colours. Plain text where stdout is no terminal; JSON where asked for.

Nothing that came from a node reaches the terminal raw.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from .cluster_file import load_cluster
from .errors import HostError, Interrupted, StopUnproven, UgroError, by_exit_code
from .experiments import Experiment, Experiments
from .health import ClusterHealth, NodeHealth
from .job import Event, JobState, LaunchPlan, Phase
from .reports import JobLine, JobReport, Results
from .watch import Line, watch
from .watch import Progress as Metrics

# Where nobody looks at a terminal's width, nothing is cut off.
PLAIN_WIDTH = 200
STOP_PATIENCE_SECONDS = 30.0  # beyond the grace, before Ctrl-C says that a node has not answered
NODE_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "bright_red")
PHASE_COLOURS = {
    Phase.SUCCEEDED: "green", Phase.FAILED: "red", Phase.REFUSED: "red", Phase.STOPPED: "yellow",
}  # fmt: skip
ESCAPES = re.compile(
    r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def _console(stream: Any = None) -> Console:
    terminal = (stream or sys.stdout).isatty()
    return Console(file=stream, width=None if terminal else PLAIN_WIDTH, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """The text without terminal escapes and control characters; of a line redrawn with CR, the last drawing."""
    return ESCAPES.sub("", text.rstrip("\r").rpartition("\r")[2])


def show_json(value: Any) -> None:
    """The value as JSON on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def note(message: str) -> None:
    """A line for the user, on stderr."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def agree(question: str) -> bool:
    """Whether the user says yes; no where there is nobody to ask."""
    if not sys.stdin.isatty():
        note(f"{question} nobody is here to say yes (use --accept-new-host-keys)")
        return False
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}


@contextlib.contextmanager
def waiting(message: str) -> Iterator[None]:
    """A spinner while something takes its time, on a terminal."""
    console = _console(sys.stderr)
    with console.status(message) if console.is_terminal else contextlib.nullcontext():
        yield


def open_experiments(choice: str | None) -> Experiments:
    """The experiments folder of a cluster."""
    return Experiments(load_cluster(choice).experiments)


# ---- health ----


def health(
    found: ClusterHealth, measured: list[dict[str, Any]] | None, *, verbose: bool, as_json: bool
) -> None:
    """A row a node, then each fault with its fix."""
    if as_json:
        return show_json({"fit": found.fit, **msgspec.to_builtins(found), "allreduce": measured})
    console = _console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "node", "address", "round trip", "GPU", "environment", "disk", "state"):
        table.add_column(column, no_wrap=True)
    for node in found.nodes:
        table.add_row(*map(escape, _health_row(node)))
    console.print(table)
    checks = [(node.node, check) for node in found.nodes for check in node.checks]
    checks += [("cluster", check) for check in found.across]
    for name, check in checks:
        if not check.ok:
            console.print(f"[red]✗ {escape(name)}: {escape(check.name)}:[/] {escape(printable(check.value))}")
            if check.fix:
                console.print(f"    {escape(check.fix)}")
        elif verbose or check.note:
            console.print(
                f"{'·' if check.note else '✓'} {escape(name)}: {escape(check.name)}: {escape(check.value)}"
            )
    for measurement in measured or []:
        console.print(escape(_measured(measurement)))
    verdict = "[green]fit[/]" if found.fit else "[red]not fit[/]"
    console.print(f"{escape(found.cluster)}: {verdict}, {len(found.nodes)} nodes in {found.seconds:.1f} s")
    return None


def _health_row(node: NodeHealth) -> list[str]:
    values = {check.name: check.value for check in node.checks}
    if not node.reachable:
        return ["✗", node.node, node.address, "-", "-", "-", "-", "not reachable"]
    card = node.gpus[0] if node.gpus else None
    return [
        "✓" if node.fit else "✗",
        node.node,
        node.address,
        f"{1000 * (node.round_trip_seconds or 0):.1f} ms",
        f"{card['name']} {card['memory.used']}/{card['memory.total']} MiB {card['temperature.gpu']} °C"
        if card
        else "none",
        values["environment"],
        values["disk"].split(" for ")[0],
        node.held_by or "free",
    ]


def _measured(found: dict[str, Any]) -> str:
    if found.get("kind") == "pair":
        pair = " ↔ ".join(found["hosts"])
        return f"{pair}: {found['round_trip_ms']:.2f} ms, {found['bandwidth_mb_per_second']:.0f} MB/s"
    rest = ", ".join(f"{key} {value}" for key, value in found.items() if key not in {"kind", "time"})
    return f"{found.get('kind')}: {rest}"


def resets(ended: dict[str, list[dict[str, Any]] | HostError], *, as_json: bool) -> None:
    """What was ended on each node."""
    if as_json:
        plain = {
            node: {"error": a.text} if isinstance(a, HostError) else {"ended": a} for node, a in ended.items()
        }
        return show_json(plain)
    for node, answer in ended.items():
        if isinstance(answer, HostError):
            note(answer.text)
            continue
        for process in answer:
            print(f"{node}: ended pid {process['pid']} of {process['job']}: {printable(process['command'])}")
        if not answer:
            print(f"{node}: nothing of UGRO was running")
    return None


# ---- plans and jobs ----


def rehearsal(found: ClusterHealth, plan: LaunchPlan, *, as_json: bool) -> None:
    """What a launch would run where."""
    if as_json:
        return show_json({"fit": found.fit, "plan": plan})
    show_plan(plan)
    for node, check in found.faults:
        note(f"a launch would be refused: {node}: {check.name}: {check.value}\n    {check.fix}")
    return None


def show_plan(plan: LaunchPlan) -> None:
    """Every command in full."""
    import shlex

    print(f"{plan.job_id}: {plan.world_size} ranks meet at {plan.master_address} port {plan.master_port}")
    for node in plan.nodes:
        variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in node.env.items())
        print(f"rank {node.rank} on {node.node} ({node.address}), in {node.folder}/code:")
        print(f"  {variables} {shlex.join(node.argv)}")


def jobs(lines: list[JobLine], *, as_json: bool) -> None:
    """A row a job."""
    if as_json:
        return show_json(lines)
    if not lines:
        note("no job yet; begin one: inv launch --name exp1")
        return None
    console = _console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "state", "nodes", "started", "duration", "cause"):
        table.add_column(column, no_wrap=True)
    for line in lines:
        if line.state is None:
            table.add_row(escape(line.job_id), "[red]unreadable[/]", "", "", "", escape(line.damaged or ""))
            continue
        cause = (
            line.state.cause.message.splitlines()[0] if line.state.cause and line.state.cause.message else ""
        )
        table.add_row(
            escape(line.job_id),
            _coloured(line.state.phase),
            escape(",".join(line.nodes)),
            _clock(line.state.started_at),
            duration(line.state.seconds),
            escape(printable(cause)) if line.state.phase is not Phase.STOPPED else "",
        )
    console.print(table)
    return None


def job(report: JobReport, *, as_json: bool) -> None:
    """One job: its ranks, what happened, its cause."""
    if as_json:
        return show_json(report)
    console, state = _console(), report.state
    console.print(f"[bold]{escape(report.job_id)}[/]  {_coloured(state.phase)}  {duration(state.seconds)}")
    for rank in state.ranks:
        how = "in touch" if rank.connected else ("out of touch" if rank.ended_at is None else _ending(rank))
        console.print(f"  rank {rank.rank}  {escape(rank.node):12} {escape(how)}")
    for node, told in (report.live or {}).items():
        words = told.get("error") or f"{len(told['processes'])} processes, supervised: {told['supervised']}"
        console.print(f"  {escape(node)} says: {escape(words)}")
    for event in report.events:
        console.print(
            f"  {_clock(event.time)}  {escape(event.node or ''):12} {escape(printable(event.message))}"
        )
    _show_cause(console, state)
    return None


def _ending(rank: Any) -> str:
    if rank.left_pids:
        return f"processes left: {', '.join(map(str, rank.left_pids))}"
    return rank.lost or (f"ended by signal {rank.signal}" if rank.signal else f"exit code {rank.exit_code}")


def log_tails(experiment: Experiment, tails: dict[int, list[str]]) -> None:
    """The last lines of each rank."""
    if not tails:
        note(f"{experiment.job_id} has printed nothing yet")
    for rank, lines in tails.items():
        if len(tails) > 1:
            print(f"--- {experiment.log(rank).name} ---")
        for line in lines:
            print(printable(line))


def results(found: Results, *, as_json: bool) -> None:
    """What came of a job."""
    if as_json:
        return show_json(found)
    console, record = _console(), found.record
    console.print(
        f"[bold]{escape(found.job_id)}[/]  {_coloured(found.state.phase)}  {duration(found.state.seconds)}"
    )
    rows = {
        "folder": found.folder,
        "script": record.script,
        "model": record.model,
        "data set": record.dataset,
        "epochs": str(record.epochs),
        "learning rate": f"{record.learning_rate:g}",
        "nodes": ", ".join(record.nodes),
        "started": record.started_at,
        "code": f"sha256 {record.code.sha256[:12]}, git {(record.code.git_commit or 'none')[:12]}",
    }
    for key, value in rows.items():
        console.print(f"  {key:14} {escape(value)}")
    sections: dict[str, dict[str, str]] = {
        "final metrics": {key: _short(value) for key, value in found.metrics.items()},
        "checkpoints": {name: _bytes(size) for name, size in found.checkpoints.items()},
        "logs": {name: _bytes(size) for name, size in found.logs.items()},
    }
    for title, lines in sections.items():
        console.print(f"[bold]{title}[/]" + ("" if lines else ": none"))
        for key, value in lines.items():
            console.print(f"  {escape(key):32} {escape(value)}")
    _show_cause(console, found.state)
    return None


def _show_cause(console: Console, state: JobState) -> None:
    if state.cause is None or state.phase is Phase.STOPPED:
        return
    console.print(f"[red]{escape(printable_lines(state.cause.message))}[/]")
    for line in state.cause.last_lines:
        console.print(f"    {escape(printable(line))}")


def printable_lines(text: str) -> str:
    """`printable`, line by line."""
    return "\n".join(printable(line) for line in text.split("\n"))


# ---- a job as it goes ----


class Follower:
    """Shows a job as it goes: a line an event, the ranks' output behind the name of their node, and how far it is."""

    def __init__(
        self,
        experiments: Experiments,
        experiment: Experiment,
        *,
        ranks: list[int] | None = None,
        from_start: bool = True,
        quiet: bool = False,
        verbose: bool = False,
        as_json: bool = False,
    ) -> None:
        self.experiments, self.experiment = experiments, experiment
        self.ranks, self.from_start = [] if quiet or as_json else ranks, from_start
        self.verbose, self.as_json, self.quiet = verbose, as_json, quiet
        self.console = _console()
        self.state = experiment.state()
        record = experiment.record()
        self.nodes = record.nodes
        self.width = max(len(node) for node in self.nodes)
        self._begun = time.monotonic()
        self._stop_by = float("inf")
        self._metrics: dict[str, object] = {}
        self._live = self.console.status("") if self.console.is_terminal and not as_json else None

    def until_ended(self, *, interrupt_stops: bool) -> None:
        """Raises what the job ended with, nothing where it succeeded.

        Ctrl-C asks for the job to be stopped and goes on to the proof, or only leaves.
        """
        while True:
            try:
                self._show(frozenset())
                return self._end()
            except KeyboardInterrupt:
                if not interrupt_stops:
                    note(f"{self.experiment.job_id} goes on; again: inv attach {self.experiment.name}")
                    return None
                if self._stop_by < float("inf"):
                    raise self._unproven("left before the proof") from None
                self._ask_to_stop()

    def until_running(self) -> None:
        """Returns when all ranks run; raises where they do not come to it."""
        try:
            self._show(frozenset({Phase.RUNNING}))
        except KeyboardInterrupt:
            self._ask_to_stop()
            return self.until_ended(interrupt_stops=True)
        if self.state.phase.finished:
            return self._end()
        if self.as_json:
            return show_json({"job_id": self.experiment.job_id, "state": self.state})
        note(f"{self.experiment.job_id} runs; follow it: inv attach {self.experiment.name}")
        return None

    def stop(self) -> None:
        """Ask for the stop and return with the proof; raises StopUnproven with host and pids."""
        if self.state.phase.finished:
            raise UgroError(
                f"{self.experiment.job_id} has ended already ({self.state.phase}); there is nothing to stop"
            )
        self._ask_to_stop()
        try:
            self.until_ended(interrupt_stops=True)
        except Interrupted as done:
            note(done.text)

    def _ask_to_stop(self) -> None:
        self.experiment.ask_to_stop()
        from .cluster import Timeouts

        timeouts = Timeouts.model_validate(self.experiment.record().cluster["timeouts"])
        self._stop_by = time.monotonic() + timeouts.stop_grace_seconds + STOP_PATIENCE_SECONDS
        note(f"stopping {self.experiment.job_id} on all nodes")

    def _show(self, until: frozenset[Phase]) -> None:
        with self._live or contextlib.nullcontext():
            for item in watch(
                self.experiments, self.experiment, ranks=self.ranks, from_start=self.from_start, until=until
            ):
                if time.monotonic() > self._stop_by:
                    raise self._unproven("no proof yet")
                if isinstance(item, JobState):
                    self._note_state(item)
                elif isinstance(item, Metrics):
                    self._metrics = item.metrics
                elif not self.as_json:
                    self._show_item(item)
                self._update_line()

    def _note_state(self, state: JobState) -> None:
        was, self.state = self.state.phase, state
        if self.verbose and state.phase is Phase.PREPARING and was is not Phase.PREPARING:
            plan = self.experiment.record().plan
            if plan:
                show_plan(plan)

    def _show_item(self, item: Event | Line) -> None:
        if isinstance(item, Event):
            if not self.from_start and item.time < time.time() - 1:
                return
            where = f"{item.node}: " if item.node else ""
            self.console.print(
                f"[bold]{_clock(item.time)}[/] {escape(where + printable_lines(item.message))}"
            )
            return
        node = self.nodes[item.rank] if item.rank < len(self.nodes) else str(item.rank)
        colour = NODE_COLOURS[item.rank % len(NODE_COLOURS)]
        self.console.print(f"[{colour}]{escape(node):{self.width}}[/] │ {escape(printable(item.text))}")

    def _update_line(self) -> None:
        if self._live:
            self._live.update(
                escape(
                    f"{self.experiment.name} {self.state.phase} {duration(self.state.seconds)}{self._far()}"
                )
            )

    def _far(self) -> str:
        step, total, loss = (self._metrics.get(key) for key in ("step", "total_steps", "loss"))
        words = f"  step {step}" if step is not None else ""
        if isinstance(step, int) and isinstance(total, int) and total > 0:
            words += f"/{total} ({100 * step // total} %)"
        return words + (f"  loss {loss:.4f}" if isinstance(loss, float) else "")

    def _end(self) -> None:
        if self.as_json:
            show_json({"job_id": self.experiment.job_id, "state": self.state})
        state, name = self.state, self.experiment.name
        if state.phase is Phase.SUCCEEDED:
            if not self.as_json:
                self.console.print(
                    f"[green]{escape(self.experiment.job_id)} succeeded[/] in {duration(state.seconds)}"
                    f"{escape(self._far())}; see: inv results {escape(name)}"
                )
            return
        words = [f"{self.experiment.job_id} {state.phase}"]
        if state.cause:
            words[0] += f": {printable_lines(state.cause.message)}"
            words += [f"    {printable(line)}" for line in state.cause.last_lines]
        if state.phase is Phase.FAILED:
            words.append(f"see: inv logs {name}")
        raise by_exit_code(state.exit_code, "\n".join(words))

    def _unproven(self, why: str) -> StopUnproven:
        missing = [rank.node for rank in self.experiment.state().ranks if not rank.proven_gone]
        return StopUnproven(
            f"{self.experiment.job_id}: {why} from {', '.join(missing) or 'any node'}; the agent goes on asking. "
            f"See: inv status {self.experiment.name}; or: inv reset --nodes {','.join(missing)}"
        )


class Percentages:
    """A bar for each node that something is fetched from."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            console=_console(sys.stderr),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Percentages:
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, node: str, percent: int) -> None:
        """The node has come so far."""
        if node not in self._tasks:
            self._tasks[node] = self._progress.add_task(node, total=100)
        self._progress.update(self._tasks[node], completed=percent)


# ---- values ----


def duration(seconds: float | None) -> str:
    """As in 3 s, 2:05, 1:02:05."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _clock(at: float | None) -> str:
    if at is None:
        return "-"
    moment = datetime.fromtimestamp(at).astimezone()
    return (
        f"{moment:%H:%M:%S}"
        if moment.date() == datetime.now().astimezone().date()
        else f"{moment:%Y-%m-%d %H:%M}"
    )


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))


def _coloured(phase: Phase) -> str:
    colour = PHASE_COLOURS.get(phase, "cyan")
    return f"[{colour}]{phase}[/]"


def _bytes(size: int) -> str:
    count: float = size
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
