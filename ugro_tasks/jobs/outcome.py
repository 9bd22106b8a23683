"""How an attempt and its ranks ended."""

from __future__ import annotations

import msgspec

from ..errors import UgroError
from .state import Cause, Phase


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended, and the job with it where no other attempt follows."""

    phase: Phase
    error: type[UgroError] | UgroError | None = None
    """Whose exit code tells so; None for a success."""
    words: str = ""
    cause: Cause | None = None
    final: bool = False
    """Whether a restart cannot mend it."""

    @property
    def exit_code(self) -> int:
        """What `inv launch` ends with."""
        return self.error.exit_code if self.error else 0

    def as_cause(self) -> Cause | None:
        """Say why, for the record."""
        if self.cause is not None:
            return self.cause
        return Cause(message=self.words) if self.words else None


class RankExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a rank ended: torchrun's exit code or the signal that killed it, and what it left in its error file.

    `lost` stands for an exit record that nobody could write: the supervisor was killed, or the node rebooted; or that
    nobody waited for any longer, where `gave_up` is true.
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
    """The topmost names of what it wrote."""

    @property
    def failed(self) -> bool:
        """Whether the rank ended badly and not because UGRO told it to."""
        return self.stopped is None and self.code != 0
