"""The ranks of one attempt as values: state, events and acts.

`gang_step.py` has the rules, `gang_loop.py` carries them out. Times are seconds of one clock that never goes back.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Any

from msgspec import Struct

from ...errors import HostError, LoginRefused, StreamFault, UgroError
from ...jobs.outcome import Outcome, RankExit
from ...jobs.phase import Phase, Reason
from .loop import Say
from .stop import StopOrder, StopResult


class Step(StrEnum):
    """The steps of a start, each done on all nodes before the next."""

    DELIVER = "delivery of the checkpoint"
    PREPARE = "prepare"
    START = "start"


class Stage(Enum):
    """How far a gang has come."""

    STARTING = "starting"
    UNDOING = "undoing"
    RUNNING = "running"
    STOPPING = "stopping"
    CATCHING_UP = "catching up"
    OVER = "over"


# ---- state ----


class Trouble(Enum):
    """What kind of trouble there is with a node."""

    AWAY = "out of reach"
    REFUSED = "the login is refused"
    FAULT = "the node says why it cannot"


def trouble_of(error: HostError) -> Trouble:
    """Tell a node that is out of reach from one that answers, and refuses."""
    if isinstance(error, LoginRefused):
        return Trouble.REFUSED
    if isinstance(error, StreamFault):
        return Trouble.FAULT
    return Trouble.AWAY


class Limits(Struct, frozen=True, kw_only=True):
    """How long a gang waits for its nodes."""

    stop_grace_seconds: float
    """From TERM to KILL at a stop that was asked for."""
    away_seconds: float | None
    """How long a node may be out of reach until its rank counts as lost; None: it is waited for."""
    catch_up_seconds: float
    """The same, once the rank is proven gone and only the rest of its streams is missing."""


class Member(Struct, frozen=True, kw_only=True):
    """One rank and its node."""

    node: str
    rank: int
    local: bool = False
    """Whether it is this machine, whose answer says nothing about the network."""
    exit: RankExit | None = None
    """How the rank ended, None while it may run."""
    connected_at: float = 0.0
    """When its stream was last connected, or first asked for."""
    in_touch: bool = False
    """Whether its stream is connected."""
    away_since: float | None = None
    """Since when the node is out of reach, None while it is followed."""
    missed_since: float | None = None
    """Since when it is out of reach while another node answers, so that this machine is not the reason."""
    follow_tries: int = 0
    """How often its stream was asked for in vain."""
    trouble: Disconnected | None = None
    """Why it broke off the last time, and told of."""
    repeats: int = 0
    """How often in a row it broke off in this way."""
    said_away: bool = False
    """Whether those who watch were told that it is out of touch."""
    only_end: bool = False
    """Whether its end is waited for without its streams, which the node cannot send."""
    follow_at: float | None = None
    """When its stream is asked for again, None while a try is under way."""
    stop: StopResult | None = None
    """What the node showed when it was last told to stop."""
    stop_tries: int = 0
    """How often it was told in vain."""
    stop_words_said: str = ""
    """Why it could not be told, as those who watch know it."""
    stopped_at: float | None = None
    """When it showed that nothing of its rank is left."""
    stop_at: float | None = None
    """When it is told again, None while a try is under way or where none is needed."""
    behind: bool = False
    """Whether its end came while the disk here took nothing, so that the rest of its streams is still there."""
    catching_up: bool = False
    """Whether the rest of its streams is fetched, after its end is known."""

    @property
    def is_followed(self) -> bool:
        """Whether its stream is connected, so that its node is known to answer."""
        return self.in_touch and not self.local

    @property
    def stop_is_known(self) -> bool:
        """Whether the last word about its stop is there: an answer, or a try without another to follow."""
        return self.stop is not None and self.stop_at is None

    @property
    def stop_words(self) -> str | None:
        """Describe the fault of its stop; None if the rank is proven gone or was not told."""
        if self.stop is None or self.stop.words is None:
            return None
        if self.stop.unreached is not None:
            return self.stop.words
        return f"{self.node}: {self.stop.words}"


class GangState(Struct, frozen=True, kw_only=True):
    """The knowledge about a gang."""

    members: tuple[Member, ...]
    limits: Limits
    stage: Stage
    steps: tuple[Step, ...] = ()
    """What is still to be done before the ranks run; the first of them is under way."""
    begun_before: bool = False
    """Whether an earlier agent began it: its ranks may have run, and what they wrote stays at an undo."""
    order: StopOrder | None = None
    """What the nodes are told at an undo or a stop."""
    tries: int | None = None
    """How often a node out of reach is told, while another one answers; None: for as long as it takes."""
    stop_asked: bool = False
    """Whether somebody asked for a stop."""
    given_up: bool = False
    """Whether somebody said that nodes out of reach are not to be waited for."""
    faults: tuple[UgroError, ...] = ()
    """Why a step could not be done."""
    offline: bool = False
    """Whether a node is missed and none answers, which may be this machine's own fault."""
    looking: bool = False
    """Whether nodes whose ranks have ended are being asked if they answer."""
    outcome: Outcome | None = None
    """How it ended where that is not a matter of its ranks' exits."""

    @property
    def stopped_for(self) -> Reason | None:
        """Why its ranks were stopped on request, None if nobody asked for it."""
        requests = {Reason.ASKED, Reason.RESET}
        if self.order is None or self.order.reason not in requests:
            return None
        return Reason(self.order.reason)

    @property
    def exits(self) -> list[RankExit]:
        """List the known ends of ranks."""
        return [member.exit for member in self.members if member.exit]

    def member(self, node: str) -> Member:
        """Give the member on a node."""
        return next(member for member in self.members if member.node == node)


# ---- events ----


class StepDone(Struct, frozen=True):
    """The step under way was done on all nodes, or could not be for these reasons."""

    faults: tuple[UgroError, ...] = ()


class Connected(Struct, frozen=True):
    """The stream of a node's rank came through."""

    node: str


class Disconnected(Struct, frozen=True):
    """The stream of a node's rank broke off, or did not come about."""

    node: str
    words: str
    at: float
    """When, in Unix seconds."""
    trouble: Trouble = Trouble.AWAY

    def is_like(self, other: Disconnected | None) -> bool:
        """Return whether it is for the same reason."""
        return other is not None and (self.trouble, self.words) == (
            other.trouble,
            other.words,
        )


class Looked(Struct, frozen=True):
    """Whether any of the nodes that were looked at answers."""

    any_answers: bool


class NotStored(Struct, frozen=True):
    """What a node's rank sends cannot be stored here; its end is waited for all the same."""

    node: str
    words: str


class Exited(Struct, frozen=True):
    """The end of a rank is known; `whole` says whether its streams are here to their end."""

    exit: RankExit
    whole: bool = True


class StopTold(Struct, frozen=True):
    """The answer of a node to the order to stop, or why it could not be told."""

    node: str
    result: StopResult


Event = StepDone | Connected | Disconnected | NotStored | Looked | Exited | StopTold


# ---- acts ----


class DoStep(Struct, frozen=True):
    """Do the step on all nodes; `StepDone` brings the result."""

    step: Step


class Follow(Struct, frozen=True):
    """Ask for the streams of a node's rank; `Connected`, `Exited` and `Disconnected` bring the news.

    With `only_end`, only its end is waited for.
    """

    node: str
    only_end: bool = False


class Look(Struct, frozen=True):
    """Ask these nodes whether they answer at all; `Looked` brings the result."""

    nodes: tuple[str, ...]


class TellToStop(Struct, frozen=True):
    """Tell a node once to stop its rank; `StopTold` brings the answer."""

    node: str
    order: StopOrder


class ChangePhase(Struct, frozen=True):
    """Write down the job's phase."""

    phase: Phase


class ChangeRank(Struct, frozen=True):
    """Write down fields of a rank's `RankState`."""

    rank: int
    changes: dict[str, Any]


class NoteRan(Struct, frozen=True):
    """Write down that the attempt's ranks have run, and with it the job's phase, if given."""

    phase: Phase | None = None


Act = DoStep | Follow | Look | TellToStop | ChangePhase | ChangeRank | NoteRan | Say
