"""The ends of attempts and ranks."""

from __future__ import annotations

import msgspec

from ..errors import Interrupted, UgroError
from .phase import Phase, Reason
from .state import Cause


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an attempt, and of the job if no other attempt follows."""

    phase: Phase
    error: type[UgroError] | UgroError | None = None
    """The error with the exit code; None for a success."""
    words: str = ""
    cause: Cause | None = None
    reason: Reason | None = None
    """Why it was stopped; None if it was not."""
    final: bool = False
    """Whether a restart cannot help."""

    def __post_init__(self) -> None:
        if (self.phase is Phase.STOPPED) != (self.reason is not None):
            raise ValueError(f"{self.phase} for the reason {self.reason}")

    @classmethod
    def stopped(cls, words: str, reason: Reason = Reason.ASKED) -> Outcome:
        """Make the end of what somebody has asked to stop, or reset."""
        return cls(phase=Phase.STOPPED, error=Interrupted, words=words, reason=reason)

    @property
    def exit_code(self) -> int:
        """Return the exit code of `inv launch`."""
        return self.error.exit_code if self.error else 0

    def as_cause(self) -> Cause | None:
        """Return the reason as a Cause for the record; None for a success."""
        if self.cause is not None:
            return self.cause
        return Cause(message=self.words) if self.words else None


class RankExit(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a rank: torchrun's exit code or signal, and the text of its error file.

    `stopped` is the reason of an order to stop; `interrupted` is the number of a signal that was no
    order, which somebody else has sent to the supervisor. `lost` is the reason if there is no exit
    record: the supervisor was killed, the node rebooted, or, with `gave_up`, the node stayed out of
    reach for too long.
    """

    node: str
    rank: int
    at: float
    code: int | None = None
    signal: int | None = None
    error: str | None = None
    stopped: str | None = None
    stopped_by: str | None = None
    """The person who asked for a reset."""
    interrupted: int | None = None
    shutting_down: bool = False
    """Whether the node was, when its rank was interrupted."""
    log_bytes: int | None = None
    """The size of its log when it was told to stop or interrupted: what stands before was said before."""
    oom_kills: int = 0
    """How many processes the node's kernel has killed for lack of memory meanwhile."""
    lost: str | None = None
    gave_up: bool = False
    left_pids: tuple[int, ...] = ()
    """The processes that would not end with it, as those of another user."""
    outlived: tuple[str, ...] = ()
    """The processes that went on after its good end, and were ended."""
    suspects: tuple[str, ...] = ()
    """Processes that may be of it, and why; that is not proven, and they were left alone."""
    outputs: tuple[str, ...] = ()
    """The topmost names of the files it wrote."""

    @classmethod
    def given_up(cls, node: str, rank: int, at: float, why: str) -> RankExit:
        """Make the end of a rank whose exit record is not waited for any longer."""
        return cls(node=node, rank=rank, at=at, lost=why, gave_up=True)

    @property
    def succeeded(self) -> bool:
        """Return whether the rank has ended by itself and well; the proof that a job needs from each."""
        disturbed = self.signal or self.interrupted or self.stopped or self.lost
        return self.code == 0 and not disturbed

    @property
    def failed(self) -> bool:
        """Return whether the rank ended badly without being stopped by UGRO."""
        return self.stopped is None and not self.succeeded

    @property
    def was_reset(self) -> bool:
        """Return whether somebody has reset the node, which is a request to stop."""
        return self.stopped == Reason.RESET
