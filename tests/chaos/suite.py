"""Rounds one after the other on one lab, what each came to, and the sum of it."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lab import Lab, LabError, LabUnavailable
from lab.host import VOLATILE
from lab.registry import labs
from lab.tools import lab_processes
from tests.chaos import invariants, nodes
from tests.chaos.faults import HABITS, KINDS, Stage
from tests.chaos.home import Home
from tests.chaos.plans import HOSTS, Plan, available, draw
from tests.chaos.rounds import Played, Round
from tests.chaos.timeline import Note, Timeline
from ugro_tasks.errors import ToolMissing, UsageError


@dataclass(kw_only=True)
class Outcome:
    """What came of one round."""

    seed: int
    plan: str
    faults: list[str]  # the kinds that hit
    habits: list[str]
    state: str
    beside: str  # the state of the round's other job, "" without one
    cause: str
    seconds: float
    violations: list[str]
    timeline: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Summary:
    """What came of all rounds."""

    seed: int
    rounds: int
    seconds: float
    violations: int
    states: dict[str, int]
    habits: dict[str, int]  # of the scripts
    faults: dict[str, int]  # how often each hit
    left_out: list[str]  # what this machine has not the means for
    failed_seeds: list[int]
    outcomes: list[Outcome]


class Suite:
    """A lab with two controllers, on which rounds are played."""

    def __init__(self, lab: Lab, common: Path, *, verbose: bool = False) -> None:
        self.lab, self.verbose = lab, verbose
        # What the hosts share, where they have one home.
        self.common = common
        lab.trust()
        for host in lab.hosts:
            nodes.give_disk(lab, host)
            nodes.obey_modes(host)
        self.home, self.other = Home(lab, "one"), Home(lab, "two")

    def play(self, plan: Plan) -> Outcome:
        """One round, judged; afterwards the lab is as before, whatever came of it."""
        begun = time.monotonic()
        timeline = Timeline()
        stage = Stage(
            lab=self.lab,
            home=self.home,
            other=self.other,
            timeline=timeline,
            name=plan.name,
        )
        with self._homes(plan):
            played = Round(plan, stage).play()
            found = list(invariants.violations(played))
            if found or self.verbose:
                self._tell(stage, played)
        outcome = Outcome(
            seed=plan.seed,
            plan=str(plan),
            faults=sorted(played.kinds),
            habits=list(plan.habits),
            state=played.state.get("state", "no job"),
            beside=(
                played.beside.state.get("state", "no job") if played.beside else ""
            ),
            cause=((played.state.get("cause") or {}).get("message") or "").partition(
                "\n"
            )[0],
            seconds=time.monotonic() - begun,
            violations=found,
            timeline=timeline.lines() if found or self.verbose else [],
        )
        self._tidy(by_force=bool(found))
        return outcome

    def check_launch(self) -> list[str]:
        """That a launch without any fault succeeds; what was wrong with it."""
        plan = draw(0, ["agent-killed"])
        quiet = replace(
            plan,
            faults=(),
            habits=(),
            goal="end",
            fail_rank=-1,
            seconds=0.2,
            shared_home=False,
            beside=None,
            nodes=tuple(range(HOSTS)),
        )
        outcome = self.play(quiet)
        if outcome.state != "succeeded":
            return [
                f"the next launch: {outcome.state}: {outcome.cause}",
                *outcome.violations,
            ]
        return outcome.violations

    def close(self) -> None:
        """End both controllers."""
        self.home.close()
        self.other.close()

    @contextlib.contextmanager
    def _homes(self, plan: Plan) -> Iterator[None]:
        """Have the hosts share a home, where that is drawn."""
        if not plan.shared_home:
            yield
            return
        nodes.share_home(self.lab, self.common)
        try:
            yield
        finally:
            nodes.end_shared_home(self.lab)

    def _tell(self, stage: Stage, played: Played) -> None:
        timeline = stage.timeline
        names = [
            (self.home, "job", stage.name),
            (self.home, "job x", played.beside.plan.name if played.beside else ""),
            (self.other, "job 2", stage.second_name),
        ]
        for home, who, name in names:
            if name and (folder := home.job_folder(name)):
                timeline.add_events(folder / "events.jsonl", who)
        for home in (self.home, self.other):
            timeline.add_log(home.logs / "agent.log", f"agent {home.name}")
        for job in played.jobs:
            self._tell_of_job(timeline, job)

    def _tell_of_job(self, timeline: Timeline, job: Played) -> None:
        for host in self.lab.hosts if job.job_id else ():
            for attempt in nodes.attempts(self.lab, host, job.job_id):
                at = (attempt.exit or {}).get("ended_at") or time.time()
                words = f"{job.plan.name}, attempt {attempt.number}: exit.json {attempt.exit}"
                timeline.notes.append(Note(at, host.name, words))
                if said := attempt.stream("supervisor.log"):
                    words = said.decode(errors="replace")[-3000:]
                    timeline.note(host.name, f"supervisor.log: {words}")
        timeline.note("state", str(job.state))
        timeline.note("launch", f"said: {job.launch_said[-1500:]}")

    def _tidy(self, *, by_force: bool) -> None:
        """Nothing of the round is left for the next one to stumble over, but the agent and its connections."""
        if by_force:
            self.lab.go_online()
            self.home.end_all()
            self.other.end_all()
        for host in self.lab.hosts:
            if by_force:
                with contextlib.suppress(LabError):
                    host.kill_all()
                host.reset()
                for place in VOLATILE:
                    # A clone in /tmp stays: it is seen there by every host, and is the real one.
                    host.empty(place, check=False)
                host.run(["find", f"{nodes.DISK}/own", "-mindepth", "1", "-delete"])
            host.remove(f"{nodes.project_of(self.lab)}/jobs", check=False)
        for folder in self.common.iterdir():
            if by_force or folder.name != ".ugro":
                shutil.rmtree(folder)
        for home in (self.home, self.other):
            for path in home.experiments.glob("c[0-9]*_*_*"):
                shutil.rmtree(path)
            if by_force:
                for path in (
                    *home.experiments.glob(".making-*"),
                    *home.temporary.iterdir(),
                ):
                    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def suite(*, verbose: bool = False) -> Iterator[Suite]:
    """A suite on a lab of its own; afterwards nothing of the lab may be there any more.

    With `verbose` the timeline of each round is kept, not only of those that fail.
    """
    with contextlib.ExitStack() as after:
        common = Path(after.enter_context(TemporaryDirectory(prefix="chaos-home-")))
        try:
            lab = after.enter_context(Lab.up(owned=True, share=[common]))
        except LabUnavailable as why:
            raise ToolMissing(f"no lab: {why}") from why
        made = Suite(lab, common, verbose=verbose)
        try:
            yield made
        finally:
            made.close()
    left = [str(other.folder) for other in labs() if other.folder == lab.folder]
    left += [f"process {pid}" for pid in lab_processes(lab.folder)]
    if left or lab.folder.exists():
        raise LabError(f"the lab is down, and this is left of it: {left or lab.folder}")


def run(
    rounds: int,
    seed: int,
    kinds: Sequence[str] = (),
    *,
    tell: Callable[[str], None] = print,
    verbose: bool = False,
) -> Summary:
    """The rounds of the seeds from `seed` on; `tell` gets a line a round, and all about one that failed."""
    begun = time.monotonic()
    outcomes: list[Outcome] = []
    with suite(verbose=verbose) as played:
        for number in range(rounds):
            plan = draw(seed + number, kinds)
            outcome = played.play(plan)
            outcomes.append(outcome)
            tell(line(outcome, number + 1, rounds))
            for words in report(outcome, kinds):
                tell(words)
        if last := played.check_launch():
            outcomes[-1].violations += last
            tell(f"after the last round: {last}")
    hit = Counter(kind for outcome in outcomes for kind in outcome.faults)
    habits = Counter(habit for outcome in outcomes for habit in outcome.habits)
    failed = [outcome for outcome in outcomes if outcome.violations]
    return Summary(
        seed=seed,
        rounds=rounds,
        seconds=time.monotonic() - begun,
        violations=sum(len(outcome.violations) for outcome in outcomes),
        states=dict(Counter(outcome.state for outcome in outcomes).most_common()),
        faults={kind: hit[kind] for kind in available()},
        habits={habit: habits[habit] for habit in HABITS},
        left_out=[kind for kind in KINDS if kind not in available()],
        failed_seeds=[outcome.seed for outcome in failed],
        outcomes=outcomes,
    )


def kinds_in(faults: str | None) -> list[str]:
    """The faults and habits of a flag like `link-down,quiet`; raises UsageError."""
    kinds = [kind.strip() for kind in faults.split(",")] if faults else []
    for kind in kinds:
        if kind not in {*available(), *HABITS}:
            raise UsageError(
                f"--faults {faults}: {kind!r} cannot be done here. There are: {', '.join([*available(), *HABITS])}"
            )
    return kinds


def sum_up(summary: Summary) -> str:
    """All rounds in a few lines."""
    failed = (
        f", in the rounds {', '.join(map(str, summary.failed_seeds))}"
        if summary.failed_seeds
        else ""
    )
    left_out = (
        f"\nleft out, for want of a C compiler: {', '.join(summary.left_out)}"
        if summary.left_out
        else ""
    )
    counts = [*summary.faults.items(), *summary.habits.items()]
    return (
        f"{summary.rounds} rounds from seed {summary.seed} on in {summary.seconds / 60:.0f} min: "
        f"{summary.violations} violations{failed}\n"
        f"jobs: {', '.join(f'{count} {state}' for state, count in summary.states.items())}\n"
        f"faults that hit: {', '.join(f'{kind} {count}' for kind, count in counts)}{left_out}"
    )


def line(outcome: Outcome, number: int, rounds: int) -> str:
    """One line about a round."""
    end = outcome.state + (f": {outcome.cause}" if outcome.cause else "")
    beside = f"  beside: {outcome.beside}" if outcome.beside else ""
    verdict = (
        "ok" if not outcome.violations else f"{len(outcome.violations)} VIOLATIONS"
    )
    what = f"{number:4}/{rounds}  seed {outcome.seed}  {outcome.plan}"
    return f"{what}  {end[:110]}{beside}  {outcome.seconds:.1f} s  {verdict}"


def report(outcome: Outcome, kinds: Sequence[str]) -> Iterator[str]:
    """What was wrong, when what happened, and how to see it again; nothing where all was well."""
    for words in outcome.violations:
        yield f"  VIOLATION  {words}"
    yield from outcome.timeline
    if not outcome.violations:
        return
    faults = f" --faults {','.join(kinds)}" if kinds else ""
    yield f"  again: inv chaos --seed {outcome.seed} --rounds 1{faults}"
