"""How an attempt and its ranks ended."""

from __future__ import annotations

import msgspec

from ..errors import UgroError
from .state import Cause, Phase


class Over(Exception):
    """The job has ended: how, and the exit code that tells so."""

    def __init__(
        self,
        phase: Phase,
        error: type[UgroError] | UgroError | None = None,  # whose exit code it is
        words: str = "",
        cause: Cause | None = None,
        *,
        final: bool = False,  # a restart cannot mend it
    ) -> None:
        super().__init__(words)
        self.phase, self.error, self.words, self.cause, self.final = phase, error, words, cause, final

    @property
    def exit_code(self) -> int:
        """What `inv launch` ends with."""
        return self.error.exit_code if self.error else 0

    def as_cause(self) -> Cause | None:
        """Why, for the record."""
        return self.cause or (Cause(message=self.words) if self.words else None)


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a rank ended: torchrun's exit code or the signal that killed it, and what it left in its error file.

    `lost` stands for an exit record that nobody could write: the supervisor was killed, or the node rebooted; or that
    nobody waited for, where `away` is true.
    """

    node: str
    rank: int
    at: float
    code: int | None = None
    signal: int | None = None
    error: str | None = None
    stopped: str | None = None
    lost: str | None = None
    away: bool = False
    outputs: tuple[str, ...] = ()  # the topmost names of what it wrote

    @property
    def failed(self) -> bool:
        """Whether the rank ended badly and not because UGRO told it to."""
        return self.stopped is None and self.code != 0
