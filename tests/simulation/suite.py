"""Many schedules played in memory, in processes of their own, and some of them again on files and with threads."""

from __future__ import annotations

import os
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as with_seed

from tests.simulation.homes import InMemory, OnDisk, queued_job
from tests.simulation.schedules import Schedule, schedules
from tests.simulation.world import Met, World
from ugro_tasks.backends.ssh.gang import Stage
from ugro_tasks.jobs import signature

# Each with a seed of its own, so that a seed gives the same schedules on any number of processors.
PARTS = 8
SECRET = bytes(signature.KEY_BYTES)


class Played(msgspec.Struct, frozen=True):
    """What came of a schedule: the state of its job without times, and what those who watch were told."""

    schedule: Schedule
    state: dict[str, Any]
    said: list[str]


@dataclass(kw_only=True)
class Part:
    """What came of some schedules."""

    count: int = 0
    met: Met = field(default_factory=Met)
    ends: Counter[str] = field(default_factory=Counter)
    again: list[Played] = field(default_factory=list)
    """Those to be played again."""
    failures: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Summary(Part):
    """What came of all schedules."""

    seed: int
    seconds: float = 0.0
    seconds_on_files: float = 0.0
    count_on_files: int = 0


def run(count: int, seed: int, on_files: int = 0) -> Summary:
    """Play so many schedules, or until one fails in each part, and some of them again on files."""
    summary = Summary(seed=seed)
    begun = time.monotonic()
    counts = [len(range(part, count, PARTS)) for part in range(PARTS)]
    again = [len(range(part, on_files, PARTS)) for part in range(PARTS)]
    seeds = [seed * PARTS + part for part in range(PARTS)]
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        for part in processes.map(play_many, counts, seeds, again):
            summary.count += part.count
            summary.met.update(part.met)
            summary.ends.update(part.ends)
            summary.again += part.again
            summary.failures += part.failures
        summary.seconds = time.monotonic() - begun
        for failure in processes.map(play_on_files, summary.again):
            summary.count_on_files += 1
            summary.failures += [failure] if failure else []
    summary.seconds_on_files = time.monotonic() - begun - summary.seconds
    return summary


def play_many(count: int, seed: int, again: int) -> Part:
    """Play drawn schedules in memory; one that fails is made as small as possible, and ends the part."""
    part = Part()
    every = max(1, count // again) if again else count + 1

    @with_seed(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules)
    def play_one(schedule: Schedule) -> None:
        played = play_in_memory(schedule, part.met)
        part.count += 1
        part.ends[_end_of(played.state)] += 1
        if part.count % every == 0 and len(part.again) < again:
            part.again.append(played)

    if count:
        try:
            play_one()
        except BaseException as error:
            part.failures.append("".join(traceback.format_exception(error)))
    return part


def play_in_memory(schedule: Schedule, met: Met | None = None) -> Played:
    """Play a schedule in memory, all in one thread."""
    # Read from its file for each signature, it would take a tenth of the time.
    with patch.object(signature, "_key", lambda *, make: SECRET):  # noqa: ARG005
        world = World(schedule, InMemory(queued_job_of(schedule)), met)
        return _play(world)


def play_on_files(played: Played) -> str:
    """Play a schedule again on files and with threads; say what is not as it was, "" if nothing is."""
    with TemporaryDirectory() as folder, patch.dict(os.environ, XDG_STATE_HOME=folder):
        Path(folder, "ugro").mkdir()
        key = Path(folder, "ugro", signature.KEY_NAME)
        key.write_bytes(SECRET)
        key.chmod(0o600)
        home = OnDisk(Path(folder, "experiments"), queued_job_of(played.schedule))
        try:
            again = _play(World(played.schedule, home, threads=True))
        except BaseException as error:
            return "".join(traceback.format_exception(error))
    if again == played:
        return ""
    return f"not as it was in memory: {played}\n    on files and with threads: {again}"


def queued_job_of(schedule: Schedule) -> dict[str, bytes | None]:
    """Give the files of the job of a schedule, before anything happens."""
    local = min(schedule.local, schedule.ranks)
    return queued_job(schedule.ranks, local, schedule.restarts, schedule.min_nodes)


def _play(world: World) -> Played:
    world.run()
    state = msgspec.to_builtins(world.job.state())
    said = [event.message for event in world.job.events()[0]]
    # The id of a job has the time at which it was made.
    nameless = [words.replace(world.job.job_id, "<job>") for words in said]
    return Played(world.schedule, _without_times(state), nameless)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not k.endswith("_at")}
    if isinstance(value, list | tuple):
        return [_without_times(item) for item in value]
    return value


def _end_of(state: dict[str, Any]) -> str:
    reason = f": {state['reason']}" if state["reason"] else ""
    attempts = len(state["attempts"])
    again = f" at attempt {attempts}" if attempts > 1 else ""
    return f"{state['state']}{reason}{again}"


# ---- what is shown ----


def tables(summary: Summary) -> str:
    """Give how many schedules were played, what was met in them, and how they ended."""
    stages = [stage.name for stage in Stage if stage is not Stage.OVER]
    phases = ["queued", "preparing", "running", "stopping"]
    ends = ", ".join(f"{n:,} {end}" for end, n in summary.ends.most_common())
    lines = [
        f"{summary.count:,} schedules in {summary.seconds:.0f} s, seed {summary.seed}",
        "",
        *_table("events of a gang, by its stage", summary.met.events, stages),
        "",
        *_table("what happened, by the job's state", summary.met.happenings, phases),
        "",
        f"ends: {ends}",
    ]
    if summary.count_on_files:
        lines.append(
            f"{summary.count_on_files} of them on files and with threads, in {summary.seconds_on_files:.0f} s"
        )
    return "\n".join(lines)


def _table(
    title: str, met: Counter[tuple[str, str]], states: Sequence[str]
) -> list[str]:
    lines = [f"{title:34}" + "".join(f"{state.lower():>13}" for state in states)]
    for event in sorted({event for _, event in met}):
        counts = "".join(f"{met[state, event]:13,}" for state in states)
        lines.append(f"{event:34}{counts}")
    return lines
