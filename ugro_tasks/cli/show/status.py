"""The output of `inv status`: the list of jobs, or one job in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...jobs.phase import Phase
from ...jobs.state import JobState, RankState
from ...text import printable_lines
from .console import Printer, open_console, style
from .format import coloured, columns, note, show_json
from .values import clock, duration

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...hosts.answers import StateAnswer
    from ...reports.status import JobLine, JobReport, NoAnswer


JOB_HEADS = ["job", "state", "nodes", "started", "duration", "cause"]


def show_jobs(lines: list[JobLine], *, as_json: bool) -> None:
    """Print a row for each job."""
    if as_json:
        return show_json({"jobs": lines})
    if not lines:
        note("no job yet; begin one: inv launch --name exp1")
        return None
    columns(open_console(), [JOB_HEADS, *map(_job_row, lines)])
    return None


def _job_row(line: JobLine) -> list[str]:
    state = line.state
    if state is None:
        return [line.job_id, "unreadable", "", "", "", line.damaged or ""]
    return [
        line.job_id,
        str(state.phase),
        ",".join(line.nodes),
        clock(state.started_at),
        duration(state.seconds),
        _first_line_of_cause(state),
    ]


def _first_line_of_cause(state: JobState) -> str:
    if state.is_missing_here:
        return "not all of it is here: inv gather"
    if state.cause is None or state.phase is Phase.STOPPED:
        return ""
    return state.cause.message.partition("\n")[0]


def show_job(report: JobReport, *, as_json: bool) -> None:
    """Print one job: its ranks, events and cause."""
    if as_json:
        return show_json(report)
    console = open_console()
    state = report.state
    show_job_head(console, report.job_id, state)
    for rank in state.ranks:
        node = printable_lines(rank.node)
        words = printable_lines(_rank_state(rank))
        console.print(f"  rank {rank.rank}  {node:12} {words}")
    for name, answer in (report.live or {}).items():
        words = printable_lines(_live(answer))
        console.print(f"  {printable_lines(name)} says: {words}")
    for event in report.events:
        node = printable_lines(event.node or "")
        words = printable_lines(event.message)
        console.print(f"  {clock(event.time)}  {node:12} {words}")
    show_cause(console, state)
    if state.is_missing_here:
        words = f"not all of it is here; get it: inv gather {report.job_id}"
        console.print(style(printable_lines(words), "red"))
    return None


def show_job_head(console: Printer, job_id: str, state: JobState) -> None:
    """Print a line with the job's id, state and duration."""
    console.print(
        style(printable_lines(job_id), "bold"),
        "  ",
        coloured(state.phase),
        f"  {duration(state.seconds)}",
    )


def show_cause(console: Printer, state: JobState) -> None:
    """Print a failed job's cause with the last lines of that rank; nothing for a stopped job."""
    if state.cause is None or state.phase is Phase.STOPPED:
        return
    console.print(style(printable_lines(state.cause.message), "red"))
    for line in state.cause.last_lines:
        console.print(f"    {printable_lines(line)}")


def _live(answer: StateAnswer | NoAnswer) -> str:
    # Late: it is loaded already if there is a report.
    from ...reports.status import NoAnswer

    if isinstance(answer, NoAnswer):
        return answer.error
    words = f"{len(answer.processes)} processes, supervised: {answer.supervised}"
    if answer.paused:
        pids = " ".join(map(str, answer.paused))
        words += f"; halted by a signal; to go on, there: kill -CONT {pids}"
    return words


def _rank_state(rank: RankState) -> str:
    if rank.connected:
        return "in touch"
    if rank.left_pids:
        return f"processes left: {', '.join(map(str, rank.left_pids))}"
    if rank.suspects:
        return f"left alone: {'; '.join(rank.suspects)}"
    if rank.ended_at is None:
        return "gone" if rank.proven_gone else "out of touch"
    if rank.lost:
        return rank.lost
    if rank.signal:
        return f"ended by signal {rank.signal}"
    if rank.exit_code is None:
        return "stopped"
    words = f"exit code {rank.exit_code}"
    if rank.outlived:
        words += f"; went on without it, and was ended: {'; '.join(rank.outlived)}"
    return words
