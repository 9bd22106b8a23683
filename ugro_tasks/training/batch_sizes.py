"""Batch sizes for cards of different size: the sequences of each node's micro-step, and whether they fit.

    batch_sizes(cluster, settings, facts)      # {"gpu-master": 3, "gpu1": 2, "gpu2": 2} with cards of 12, 8 and 8 GB

All ranks take the same number of micro-steps; a card with more memory takes more sequences in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ..cluster.model import Cluster, Node
from ..cluster.rules import Misfit
from ..cluster.training_schema import shipped_rules
from ..errors import UsageError
from ..jobs.plan import LaunchPlan, Memory
from ..jobs.record import JobRecord
from .memory import estimate, model_facts, on_card

if TYPE_CHECKING:  # a launch that is only queued reads no answers
    from ..hosts.answers import ProbeAnswer

    Facts = Mapping[str, ProbeAnswer]  # by node

Settings = Mapping[str, Mapping[str, Any]]

# The only script whose memory can be estimated: it follows the settings.
FORESEEN = "train_production.py"
# The variables with the folders of transformers' models.
CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")
# The largest relative error of a card's share in the ratio of small whole numbers.
RATIO_TOLERANCE = 0.1
SMALLEST_SHARE_MAX = 4
GIB = 1024


def model_to_look_for(record: JobRecord) -> dict[str, Any] | None:
    """Return the probes' request about the model; None if the script's memory is not estimated."""
    if not is_foreseen(record):
        return None
    env = {name: record.env[name] for name in CACHE_VARIABLES if name in record.env}
    return {
        "name": record.settings.get("model", {}).get("name", record.model),
        "env": env,
    }


def is_foreseen(record: JobRecord) -> bool:
    """Tell whether the job runs train_production.py, the only script whose memory can be estimated."""
    return PurePosixPath(record.script).name == FORESEEN


# ---- batch sizes ----


def batch_sizes(cluster: Cluster, settings: Settings, facts: Facts) -> dict[str, int]:
    """Return {node: sequences in a micro-step}, from the settings or else from the cluster file.

    `auto`: in the ratio of the cards' memory, in small whole numbers (12, 8 and 8 GB: 3, 2 and 2), reduced to the
    estimated capacity of each card. The probe overrides the file, and a node without a card counts as the smallest.
    Raises UsageError like `requested_sizes`.
    """
    sizes = requested_sizes(cluster, settings)
    if sizes is not None:
        return sizes
    cards = {node.name: card_mib(node, facts[node.name]) for node in cluster.nodes}
    shares = in_small_numbers(cards)
    return {
        node.name: _fitting(node, settings, facts, shares[node.name])
        for node in cluster.nodes
    }


def requested_sizes(cluster: Cluster, settings: Settings) -> dict[str, int] | None:
    """Return {node: requested size}; None for `auto`. Raises UsageError for an invalid or missing size."""
    section, key = "training", "batch_size_per_gpu"
    otherwise = cluster.training.settings.get(section, {}).get(key, 1)
    asked = settings.get(section, {}).get(key, otherwise)
    names = [node.name for node in cluster.nodes]
    try:
        # The name of another node is no fault: the launch may use only some nodes of the file.
        sizes = shipped_rules()[f"{section}.{key}"].fit(asked)
    except Misfit as error:
        raise UsageError(f"training.batch_size_per_gpu: {error}") from error
    if not isinstance(sizes, dict):
        return None if sizes == "auto" else dict.fromkeys(names, sizes)
    if missing := [name for name in names if name not in sizes]:
        near = get_close_matches(missing[0], sizes.keys() - set(names), n=1)
        hint = (
            f"; {near[0]} is none of the nodes, did you mean {missing[0]}?"
            if near
            else ""
        )
        raise UsageError(
            f"training.batch_size_per_gpu: no number for {', '.join(missing)}{hint}"
        )
    return {name: sizes[name] for name in names}


def card_mib(node: Node, facts: ProbeAnswer) -> int | None:
    """Return the MiB of the card used by the node's rank, None without a card.

    The probe's figure overrides the cluster file's.
    """
    if node.hides_card:
        return None
    if seen := _card(facts):
        return seen[0]
    return round(node.vram_gb * GIB) if node.vram_gb else None


def in_small_numbers(cards: Mapping[str, int | None]) -> dict[str, int]:
    """Return {node: share}, the ratio of the cards' memory in the smallest whole numbers.

    No share is off by more than RATIO_TOLERANCE, if the smallest card's share can stay within SMALLEST_SHARE_MAX.
    """
    known = [mib for mib in cards.values() if mib]
    smallest = min(known, default=1)
    worth = {name: (mib or smallest) / smallest for name, mib in cards.items()}

    def rounded(share: int) -> dict[str, int]:
        return {name: round(share * value) for name, value in worth.items()}

    def furthest_off(share: int) -> float:
        return max(
            abs(size / share / worth[name] - 1) for name, size in rounded(share).items()
        )

    shares = range(1, SMALLEST_SHARE_MAX + 1)
    near_enough = [share for share in shares if furthest_off(share) <= RATIO_TOLERANCE]
    return rounded(near_enough[0] if near_enough else min(shares, key=furthest_off))


def _fitting(node: Node, settings: Settings, facts: Facts, wanted: int) -> int:
    """Return the largest size up to `wanted` estimated to fit the node's card; 1 if none fits."""
    for size in range(wanted, 1, -1):
        memory = _memory(node, settings, facts, size)
        if not isinstance(memory, Memory) or memory.fit == "fits":
            return size
    return 1


def effective_batch(record: JobRecord, sizes: Mapping[str, int]) -> int | None:
    """Return the sequences in a step of all ranks together; None for a script with other rules."""
    if not is_foreseen(record):
        return None
    steps = record.settings.get("training", {}).get("gradient_accumulation_steps")
    return sum(sizes.values()) * int(steps) if steps else None


# ---- memory ----


def memories(
    cluster: Cluster, settings: Settings, facts: Facts, sizes: Mapping[str, int]
) -> dict[str, Memory | str]:
    """Return {node: estimated memory of its rank, or the reason for having no estimate}."""
    return {
        node.name: _memory(node, settings, facts, sizes[node.name])
        for node in cluster.nodes
    }


def summary(plan: LaunchPlan) -> str:
    """Return "micro-batches of 3 on gpu-master, 2 on gpu1, 2 on gpu2: 56 sequences a step"."""
    sizes = ", ".join(f"{node.batch_size} on {node.node}" for node in plan.nodes)
    return f"micro-batches of {sizes}: {plan.effective_batch} sequences a step"


def refusals(plan: LaunchPlan) -> list[str]:
    """Return a message, with numbers and remedy, for each node with a card too small for its rank."""
    return [
        _refusal(node.node, node.batch_size, node.memory)
        for node in plan.nodes
        if node.memory and node.memory.fit == "too large"
    ]


def _refusal(node: str, batch_size: int, memory: Memory) -> str:
    room = f"{memory.room_mib / GIB:.1f} GiB are free of the card's {memory.card_mib / GIB:.1f}"
    remedy = (
        "let UGRO choose: --set training.batch_size_per_gpu=auto"
        if batch_size > 1
        else "needs less: --set training.gradient_checkpointing=true, a smaller model.max_seq_length, a smaller model"
    )
    return (
        f"{node}: memory: a batch of {batch_size} needs about {in_words(memory)}, and {room}\n"
        f"    {remedy}; to launch all the same: --force"
    )


def in_words(memory: Memory) -> str:
    """Return the total and its parts: "5.3 GiB (weights 2.1, trained 0.1, activations 2.1, CUDA 1.0)"."""
    parts = {
        "weights": memory.weights_mib,
        "trained": memory.trained_mib,
        "activations": memory.activations_mib,
        "CUDA": memory.overhead_mib,
    }
    named = ", ".join(f"{name} {mib / GIB:.1f}" for name, mib in parts.items())
    return f"{memory.total_mib / GIB:.1f} GiB ({named})"


def _memory(node: Node, settings: Settings, facts: Facts, size: int) -> Memory | str:
    own = facts[node.name]
    told = [own.model, *(other.model for other in facts.values())]
    if not any(told):
        return ""
    model = next(filter(None, map(model_facts, told)), None)
    if model is None:
        return (
            own.model.missing if own.model else ""
        ) or "its config.json lacks what an estimate needs"
    card = card_mib(node, own)
    if card is None:
        return "no card is known here"
    seen = _card(own)
    taken = seen[1] if seen and own.holder is None else 0
    return on_card(estimate(model, settings, size), card, taken)


def _card(facts: ProbeAnswer) -> tuple[int, int] | None:
    """Return (total, used) MiB of the first card, as reported by nvidia-smi; None without a card."""
    cards = facts.cards
    if not cards or cards[0].total_mib is None:
        return None
    return round(cards[0].total_mib), round(cards[0].used_mib or 0)
