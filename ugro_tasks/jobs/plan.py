"""What a launch does, node by node."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Struct

from .spec import Resume

# No more than anybody could mean: a damaged record must not cost hours.
Rank = Annotated[int, msgspec.Meta(ge=0, le=9999)]
Mebibytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Number = Annotated[int, msgspec.Meta(ge=1, le=100_000)]


class Memory(Struct, frozen=True, kw_only=True):
    """What a rank is expected to need of its card, in MiB; memory.py says how that is found."""

    weights_mib: Mebibytes
    trained_mib: Mebibytes  # what is trained beside the weights, gradients, and the optimizer's moments
    activations_mib: Mebibytes
    overhead_mib: Mebibytes  # CUDA and its libraries
    total_mib: Mebibytes
    card_mib: Mebibytes = 0
    taken_mib: Mebibytes = 0  # of the card, by others
    # Tight: it depends on how good the estimate is.
    fit: Literal["fits", "tight", "too large"] = "fits"

    @property
    def room_mib(self) -> int:
        """What of the card is free for the rank."""
        return self.card_mib - self.taken_mib


class NodePlan(Struct, frozen=True, kw_only=True):
    """What one node runs: torchrun's argv and what its environment gains."""

    node: str
    rank: Rank
    address: str
    interface: str
    token: str  # UGRO_TOKEN: what the rank's processes are found by
    folder: str  # on the node; a leading ~/ is the remote user's home, here and in argv and env
    argv: tuple[str, ...]
    env: dict[str, str]
    activation: tuple[
        str, ...
    ] = ()  # what tells the variables of an environment of pixi's; `env` goes over them
    batch_size: Size = 1  # sequences in a micro-step of this rank
    memory: Memory | None = None  # None: there is no estimate
    # Why there is no estimate; None: for this script there never is one.
    memory_unknown: str | None = None


class LaunchPlan(Struct, frozen=True, kw_only=True):
    """What a launch does, node by node, in the order of the ranks."""

    job_id: str
    world_size: int
    master_address: str
    master_port: int
    nodes: tuple[NodePlan, ...]
    # Sequences in a step of all ranks; None: a matter of the script.
    effective_batch: Size | None = None
    attempt: Number = 1  # counts the restarts
    resume: Resume | None = None
