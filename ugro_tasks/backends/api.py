"""The seam between the agent and what runs a job on machines.

The agent decides what follows an attempt; a backend knows how an attempt is planned, started, run to its end, stopped
and fetched. `tests/unit/backends/test_contract.py` holds every backend to what is promised here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from msgspec import Struct

from ..errors import UgroError
from ..jobs.outcome import Outcome, RankExit
from ..jobs.plan import LaunchPlan
from ..jobs.spec import Resume


class AttemptEnd(Struct, frozen=True, kw_only=True):
    """How the ranks of an attempt ended."""

    exits: tuple[RankExit, ...]
    """One for each rank; where the job was given up, a rank whose machine did not answer may be missing."""
    asked: bool
    """Whether the ranks were stopped because somebody asked for it."""
    wrote: dict[str, tuple[str, ...]]
    """{node: the topmost names of what its rank wrote beyond the metrics}, of those that wrote something."""
    unproven: Outcome | None = None
    """The outcome where the ranks were stopped, and a machine could not show that nothing is left."""


class Backend(Protocol):
    """Runs the attempts of one job, and keeps the phase and the ranks of its journal up to date.

    An attempt is named by its plan, so an agent can go on with one that another has begun. Each method but `close`
    may raise UgroError, which ends the job.
    """

    def begin(self) -> None:
        """Take up what an earlier agent was about: machines that were left behind are still to be told to stop."""

    def plan(
        self, number: int, resume: Callable[[], Resume | None]
    ) -> LaunchPlan | Outcome:
        """Find the machines for the attempt of this number, and give its plan; nothing of the attempt runs yet.

        From the second attempt on, what is left of the one before is stopped first, machines that are away are waited
        for, and those that stay away are left behind. `resume` finds the checkpoint that the attempt goes on from, once
        the machines are there. The outcome says why there is no plan: refused, failed, or stopped as asked.
        """

    def start(self, plan: LaunchPlan, *, begun_before: bool) -> Outcome | None:
        """Start all ranks of the plan, or none: then the outcome says why.

        Where an earlier agent has `begun_before`, ranks may have run for long: those go on, and what they wrote stays.
        After an outcome nothing of the attempt is left, or its words name the machines where something may be.
        """

    def run_to_end(self, plan: LaunchPlan, away_seconds: float | None) -> AttemptEnd:
        """Bring home what the ranks print and measure until all have ended; the first failure stops the others.

        So does a stop that was asked for. A machine out of reach for `away_seconds` counts as lost; with None it is
        waited for.
        """

    def stop(self) -> None:
        """Tell what is left of the last attempt once to stop; ranks that are gone by their machines' word are noted."""

    def fetch(
        self, plan: LaunchPlan, end: AttemptEnd, nodes: Collection[str]
    ) -> list[UgroError]:
        """Bring home what the ranks on these nodes wrote; give what went wrong."""

    def fetch_checkpoints(self, plan: LaunchPlan) -> list[UgroError]:
        """Bring home the checkpoints that are whole on their machines; give what went wrong."""

    def still_away(self) -> set[str]:
        """Name the nodes that were left behind and have not answered since."""

    def close(self) -> None:
        """End what was kept open between the calls."""
