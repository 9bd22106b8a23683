"""The jobs in a list, and one in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...jobs.state import JobState, Phase
from .console import Printer
from .format import clock, coloured, columns, duration, note, open_console, show_json, shown

if TYPE_CHECKING:  # what is only shown need not be loaded for what is not
    from ...reports.status import JobLine, JobReport


def show_jobs(lines: list[JobLine], *, as_json: bool) -> None:
    """A row a job."""
    if as_json:
        return show_json(lines)
    if not lines:
        note("no job yet; begin one: inv launch --name exp1")
        return None
    console = open_console()
    columns(console, [["job", "state", "nodes", "started", "duration", "cause"], *map(_job_row, lines)])
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


def show_job(report: JobReport, *, as_json: bool) -> None:
    """One job: its ranks, what happened, its cause."""
    if as_json:
        return show_json(report)
    console, state = open_console(), report.state
    console.print(f"[bold]{shown(report.job_id)}[/]  {coloured(state.phase)}  {duration(state.seconds)}")
    for rank in state.ranks:
        how = "in touch" if rank.connected else _ending(rank)
        console.print(f"  rank {rank.rank}  {shown(rank.node):12} {shown(how)}")
    for node, told in (report.live or {}).items():
        words = told.get("error") or f"{len(told['processes'])} processes, supervised: {told['supervised']}"
        console.print(f"  {shown(node)} says: {shown(words)}")
    for event in report.events:
        console.print(f"  {clock(event.time)}  {shown(event.node or ''):12} {shown(event.message)}")
    show_cause(console, state)
    return None


def _ending(rank: Any) -> str:
    if rank.left_pids:
        return f"processes left: {', '.join(map(str, rank.left_pids))}"
    if rank.ended_at is None:
        return "gone" if rank.proven_gone else "out of touch"
    return rank.lost or (f"ended by signal {rank.signal}" if rank.signal else f"exit code {rank.exit_code}")


def show_cause(console: Printer, state: JobState) -> None:
    if state.cause is None or state.phase is Phase.STOPPED:
        return
    console.print(f"[red]{shown(state.cause.message)}[/]")
    for line in state.cause.last_lines:
        console.print(f"    {shown(line)}")
