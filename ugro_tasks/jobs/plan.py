"""The plan of a launch, node by node."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Struct

from .spec import Resume

# Generous bounds: a damaged record must not cost hours.
Rank = Annotated[int, msgspec.Meta(ge=0, le=9999)]
Mebibytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Number = Annotated[int, msgspec.Meta(ge=1, le=100_000)]


class Memory(Struct, frozen=True, kw_only=True):
    """The estimated need of a rank on its card, in MiB; see training/memory.py."""

    weights_mib: Mebibytes
    trained_mib: Mebibytes  # trained parameters, gradients and the optimizer's moments
    activations_mib: Mebibytes
    overhead_mib: Mebibytes  # CUDA and its libraries
    total_mib: Mebibytes
    card_mib: Mebibytes = 0
    taken_mib: Mebibytes = 0  # used by other processes
    # Tight: within the error of the estimate.
    fit: Literal["fits", "tight", "too large"] = "fits"

    @property
    def room_mib(self) -> int:
        """Return the memory of the card left for the rank."""
        return self.card_mib - self.taken_mib


class NodePlan(Struct, frozen=True, kw_only=True):
    """The command of one node: torchrun's argv and additions to its environment."""

    node: str
    rank: Rank
    address: str
    interface: str
    token: str  # UGRO_TOKEN, the mark of the rank's processes
    folder: str  # on the node; a leading ~/ is the remote user's home, here and in argv and env
    argv: tuple[str, ...]
    env: dict[str, str]
    # Prints the variables of a pixi environment; `env` overrides them.
    activation: tuple[str, ...] = ()
    # The folder in which the environment's users are noted; None: UGRO has not made it.
    environment_work: str | None = None
    batch_size: Size = 1  # sequences in a micro-step of this rank
    memory: Memory | None = None  # None: there is no estimate
    # The reason without an estimate; None: this script never has one.
    memory_unknown: str | None = None


class LaunchPlan(Struct, frozen=True, kw_only=True, tag_field="backend", tag="ssh"):
    """The plan of a launch on SSH hosts, node by node in the order of the ranks."""

    job_id: str
    world_size: int
    master_address: str
    master_port: int
    nodes: tuple[NodePlan, ...]
    # Sequences in a step of all ranks; None: the script decides.
    effective_batch: Size | None = None
    attempt: Number = 1  # counts the restarts
    resume: Resume | None = None
