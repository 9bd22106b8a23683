"""The ends of attempts and ranks."""

from __future__ import annotations

import msgspec

from ..errors import UgroError
from .phase import Phase
from .state import Cause


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an attempt, and of the job if no other attempt follows."""

    phase: Phase
    error: type[UgroError] | UgroError | None = None
    """The error with the exit code; None for a success."""
    words: str = ""
    cause: Cause | None = None
    final: bool = False
    """Whether a restart cannot help."""

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

    `lost` is the reason if there is no exit record: the supervisor was killed, the node rebooted,
    or, with `gave_up`, the node stayed out of reach for too long.
    """

    node: str
    rank: int
    at: float
    code: int | None = None
    signal: int | None = None
    error: str | None = None
    stopped: str | None = None
    lost: str | None = None
    gave_up: bool = False
    outputs: tuple[str, ...] = ()
    """The topmost names of the files it wrote."""

    @classmethod
    def given_up(cls, node: str, rank: int, at: float, why: str) -> RankExit:
        """Make the end of a rank whose exit record is not waited for any longer."""
        return cls(node=node, rank=rank, at=at, lost=why, gave_up=True)

    @property
    def failed(self) -> bool:
        """Return whether the rank ended badly without being stopped by UGRO."""
        return self.stopped is None and self.code != 0
