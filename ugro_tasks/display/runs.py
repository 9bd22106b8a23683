"""Jobs as a user sees them: plans, lists, one in full, logs."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import msgspec

from ..job import JobState, LaunchPlan, Phase
from ..plaintext import printable
from .console import Printer
from .terminal import clock, coloured, columns, duration, note, open_console, show_json, shown

if TYPE_CHECKING:  # what is only shown need not be loaded for what is not
    from ..experiments import Experiment
    from ..reports import JobLine, JobReport
    from ..submit import Rehearsal


def rehearsal(found: Rehearsal, *, as_json: bool) -> None:
    """What a launch would run where."""
    if as_json:
        return show_json({"fit": not found.refusals, **msgspec.structs.asdict(found)})
    show_plan(found.plan)
    for node, why in found.environments.items():
        note(f"a launch would first make the environment of {node} anew: {why}")
    for words in found.refusals:
        note(f"a launch would be refused: {words}")
    return None


def show_plan(plan: LaunchPlan) -> None:
    """Every command in full."""
    print(f"{plan.job_id}: {plan.world_size} ranks meet at {plan.master_address} port {plan.master_port}")
    for node in plan.nodes:
        variables = " ".join(f"{key}={_quoted(value)}" for key, value in node.env.items())
        print(printable(f"rank {node.rank} on {node.node} ({node.address}), in {node.folder}/code:"))
        if node.activation:
            print(f"  with what this tells: {' '.join(map(_quoted, node.activation))}")
        print(f"  {variables} {' '.join(map(_quoted, node.argv))}")
    from .shares import show_shares

    show_shares(plan)


def _quoted(word: str) -> str:
    """The word as bash reads it; what a terminal would act upon is written as bash's own escapes."""
    if word.isprintable() or (printable(word) == word and "\n" not in word):
        return shlex.quote(word)
    plain = re.sub(r"[\\']", r"\\\g<0>", word)
    return "$'" + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in plain) + "'"


def jobs(lines: list[JobLine], *, as_json: bool) -> None:
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


def job(report: JobReport, *, as_json: bool) -> None:
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


def log_tails(experiment: Experiment, tails: dict[int, list[str]]) -> None:
    """The last lines of each rank."""
    if not tails:
        note(f"{experiment.job_id} has printed nothing yet")
    for rank, lines in tails.items():
        if len(tails) > 1:
            print(f"--- {experiment.log(rank).name} ---")
        for line in lines:
            print(printable(line))


def show_cause(console: Printer, state: JobState) -> None:
    if state.cause is None or state.phase is Phase.STOPPED:
        return
    console.print(f"[red]{shown(state.cause.message)}[/]")
    for line in state.cause.last_lines:
        console.print(f"    {shown(line)}")
