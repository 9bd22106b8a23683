"""The seam between the agent and the ways to run a job on machines.

The agent decides between a restart and the end; a backend plans an attempt, starts it, runs it to its end, stops it and
fetches its outputs. `tests/unit/backends/test_contract.py` holds every backend to these promises.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from msgspec import Struct

from ..errors import UgroError
from ..jobs.outcome import Outcome, RankExit
from ..jobs.phase import Reason
from ..jobs.plan import LaunchPlan
from ..jobs.spec import Resume


class AttemptEnd(Struct, frozen=True, kw_only=True):
    """How the ranks of an attempt ended."""

    exits: tuple[RankExit, ...]
    """One for each rank. In a job that was given up, ranks of machines out of reach are missing."""
    stopped_for: Reason | None
    """Why the ranks were stopped on request; None if nobody asked for it."""
    wrote: tuple[str, ...]
    """The nodes that have outputs besides the metrics, or may have some."""
    unread: tuple[str, ...] = ()
    """The nodes whose streams may not be here to their end."""
    unproven: Outcome | None = None
    """The outcome, if the ranks were stopped and a machine could not show that nothing is left."""


class Backend(Protocol):
    """Runs the attempts of one job, and keeps the phase and the ranks of its journal up to date.

    An attempt is named by its plan alone, so an agent can go on with an attempt of another. Each method but `close`
    may raise UgroError, which ends the job.
    """

    def begin(self) -> None:
        """Take up unfinished work, also of an earlier agent: machines left behind are still to be told to stop."""

    def plan(
        self, number: int, resume: Callable[[], Resume | None]
    ) -> LaunchPlan | Outcome:
        """Find the machines for the attempt of this number, and give its plan; nothing of the attempt runs yet.

        From the second attempt on, the rest of the one before is stopped first, missing machines are waited for, and
        after a while left behind. `resume` is called once the machines are there, and finds the checkpoint to go on
        from. An outcome instead of a plan says why there is none: refused, failed, or stopped as asked.
        """

    def start(self, plan: LaunchPlan, *, begun_before: bool) -> Outcome | None:
        """Start all ranks of the plan, or none: then the outcome says why.

        `begun_before` means that an earlier agent began it: its ranks may run, and go on; their outputs stay in any
        case. After an outcome nothing of the attempt is left, or its words name the machines in doubt.
        """

    def run_to_end(self, plan: LaunchPlan, away_seconds: float | None) -> AttemptEnd:
        """Fetch logs and metrics of the ranks until all have ended; the first failure stops the others.

        So does a request to stop. A machine out of reach for `away_seconds` counts as lost; with None it is waited for.
        """

    def stop(self) -> None:
        """Tell the rest of the last attempt once to stop, and note the ranks that are proven gone."""

    def fetch(
        self, plan: LaunchPlan, end: AttemptEnd, nodes: Collection[str]
    ) -> list[UgroError]:
        """Fetch what is missing of the streams and outputs of the ranks on these nodes; give the errors."""

    def fetch_earlier(self, before: int) -> list[UgroError]:
        """Fetch the same of the attempts before the one of this number that are not gathered; give the errors."""

    def fetch_checkpoints(self, plan: LaunchPlan) -> list[UgroError]:
        """Fetch the whole checkpoints from all machines of the plan; give the errors."""

    def see_off(self) -> None:
        """Go on telling the machines that may still run the job's ranks to stop, until each has answered."""

    def still_away(self) -> set[str]:
        """Name the nodes left behind that have not answered since."""

    def close(self) -> None:
        """End the connections kept open between the calls."""
