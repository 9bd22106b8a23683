"""What a user sees: tables, lines, progress, colours. Plain text where stdout is no terminal; JSON where asked for.

Nothing that came from a node reaches the terminal raw.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from .errors import HostError
from .job import JobState, LaunchPlan, Phase
from .plaintext import as_called, printable, printable_lines

if TYPE_CHECKING:  # what is only shown need not be loaded for what is not
    from .experiments import Experiment
    from .health import ClusterHealth, NodeHealth
    from .reports import JobLine, JobReport, Results

# Where nobody looks at a terminal's width, nothing is cut off.
PLAIN_WIDTH = 200
COLOURS = {
    "succeeded": "green", "failed": "red", "refused": "red", "stopped": "yellow", "unreadable": "red",
    "running": "cyan", "queued": "cyan", "preparing": "cyan", "stopping": "cyan", "✓": "green", "✗": "red",
}  # fmt: skip


def open_console(stream: Any = None) -> Console:
    """Where to print: coloured and as wide as the terminal, or plain."""
    terminal = (stream or sys.stdout).isatty()
    return Console(file=stream, width=None if terminal else PLAIN_WIDTH, highlight=False, soft_wrap=True)


def shown(text: str) -> str:
    """The text as rich may have it: no control sequences, and what looks like markup is none."""
    return escape(printable_lines(text))


def show_json(value: Any) -> None:
    """The value as JSON on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def note(message: str) -> None:
    """A line for the user, on stderr."""
    sys.stderr.write(f"{as_called(printable_lines(message))}\n")
    sys.stderr.flush()


def _columns(console: Console, rows: list[list[str]]) -> None:
    """The rows in columns, the first one as their heads; a state has its colour."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [shown(cell.ljust(width)) for cell, width in zip(row, widths, strict=True)]
        for column, cell in enumerate(row):
            if colour := COLOURS.get(cell):
                cells[column] = f"[{colour}]{cells[column]}[/]"
        line = "  ".join(cells).rstrip()
        console.print(f"[bold]{line}[/]" if number == 0 else line)


def agree(question: str) -> bool:
    """Whether the user says yes; no where there is nobody to ask."""
    if not sys.stdin.isatty():
        note(f"{question} nobody is here to say yes (use --accept-new-host-keys)")
        return False
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}


@contextlib.contextmanager
def waiting(message: str) -> Iterator[None]:
    """A spinner while something takes its time, on a terminal."""
    console = open_console(sys.stderr)
    with console.status(message) if console.is_terminal else contextlib.nullcontext():
        yield


# ---- health ----


def health(
    found: ClusterHealth, measured: list[dict[str, Any]] | None, *, verbose: bool, as_json: bool
) -> None:
    """A row a node, then each fault with its fix."""
    if as_json:
        return show_json({"fit": found.fit, **msgspec.to_builtins(found), "allreduce": measured})
    console = open_console()
    header = ["", "node", "address", "round trip", "GPU", "environment", "disk", "state"]
    _columns(console, [header, *map(_health_row, found.nodes)])
    checks = [(node.node, check) for node in found.nodes for check in node.checks]
    checks += [("cluster", check) for check in found.across]
    for name, check in checks:
        if not check.ok:
            console.print(f"[red]✗ {shown(name)}: {shown(check.name)}:[/] {shown(check.value)}")
            if check.fix:
                console.print(f"    {shown(as_called(check.fix))}")
        elif verbose or check.note:
            console.print(
                f"{'·' if check.note else '✓'} {shown(name)}: {shown(check.name)}: {shown(check.value)}"
            )
    for measurement in measured or []:
        console.print(shown(_measured(measurement)))
    verdict = "[green]fit[/]" if found.fit else "[red]not fit[/]"
    console.print(f"{shown(found.cluster)}: {verdict}, {len(found.nodes)} nodes in {found.seconds:.1f} s")
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
    return (
        f"all-reduce over {len(found['hosts'])} nodes ({found['backend']}): {found['latency_us']:.0f} µs, "
        f"{found['bandwidth_mb_per_second']:.0f} MB/s (bus {found['bus_bandwidth_mb_per_second']:.0f} MB/s)"
    )


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
            print(printable(f"{node}: ended pid {process['pid']} of {process['job']}: {process['command']}"))
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
    console = open_console()
    _columns(console, [["job", "state", "nodes", "started", "duration", "cause"], *map(_job_row, lines)])
    return None


def _job_row(line: JobLine) -> list[str]:
    if line.state is None:
        return [line.job_id, "unreadable", "", "", "", line.damaged or ""]
    cause = line.state.cause.message.partition("\n")[0] if line.state.cause else ""
    return [
        line.job_id,
        str(line.state.phase),
        ",".join(line.nodes),
        clock(line.state.started_at),
        duration(line.state.seconds),
        cause if line.state.phase is not Phase.STOPPED else "",
    ]


def job(report: JobReport, *, as_json: bool) -> None:
    """One job: its ranks, what happened, its cause."""
    if as_json:
        return show_json(report)
    console, state = open_console(), report.state
    console.print(f"[bold]{shown(report.job_id)}[/]  {_coloured(state.phase)}  {duration(state.seconds)}")
    for rank in state.ranks:
        how = "in touch" if rank.connected else ("out of touch" if rank.ended_at is None else _ending(rank))
        console.print(f"  rank {rank.rank}  {shown(rank.node):12} {shown(how)}")
    for node, told in (report.live or {}).items():
        words = told.get("error") or f"{len(told['processes'])} processes, supervised: {told['supervised']}"
        console.print(f"  {shown(node)} says: {shown(words)}")
    for event in report.events:
        console.print(f"  {clock(event.time)}  {shown(event.node or ''):12} {shown(event.message)}")
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
    console, record = open_console(), found.record
    console.print(
        f"[bold]{shown(found.job_id)}[/]  {_coloured(found.state.phase)}  {duration(found.state.seconds)}"
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
        console.print(f"  {key:14} {shown(value)}")
    sections: dict[str, dict[str, str]] = {
        "final metrics": {key: _short(value) for key, value in found.metrics.items() if key != "time"},
        "checkpoints": {name: _bytes(size) for name, size in found.checkpoints.items()},
        "logs": {name: _bytes(size) for name, size in found.logs.items()},
    }
    for title, lines in sections.items():
        console.print(f"[bold]{title}[/]" + ("" if lines else ": none"))
        for key, value in lines.items():
            console.print(f"  {shown(key):32} {shown(value)}")
    _show_cause(console, found.state)
    return None


def _show_cause(console: Console, state: JobState) -> None:
    if state.cause is None or state.phase is Phase.STOPPED:
        return
    console.print(f"[red]{shown(state.cause.message)}[/]")
    for line in state.cause.last_lines:
        console.print(f"    {shown(line)}")


# ---- a bar for each node ----


class Percentages:
    """A bar for each node that something is fetched from."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            console=open_console(sys.stderr),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Percentages:
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
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
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = max(60, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def clock(at: float | None) -> str:
    """The time of day, with the date where it was another day."""
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
    return f"[{COLOURS[phase]}]{phase}[/]"


def _bytes(size: int) -> str:
    count: float = size
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
