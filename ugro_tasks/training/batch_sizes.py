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
ESTIMATED_SCRIPT = "train_production.py"
BATCH_SIZE = "training.batch_size_per_gpu"
# The variables with the folders of transformers' models.
CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")
# The largest relative error of a card's share in the ratio of small whole numbers.
RATIO_TOLERANCE = 0.1
SMALLEST_SHARE_MAX = 4
GIB = 1024


def model_to_look_for(record: JobRecord) -> dict[str, Any] | None:
    """Return the probes' request about the model; None if the script's memory is not estimated."""
    if not is_estimated(record):
        return None
    name = record.settings.get("model", {}).get("name", record.model)
    env = {name: record.env[name] for name in CACHE_VARIABLES if name in record.env}
    return {"name": name, "env": env}


def is_estimated(record: JobRecord) -> bool:
    """Tell whether the job runs train_production.py, the only script whose memory can be estimated."""
    return PurePosixPath(record.script).name == ESTIMATED_SCRIPT


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
    shares = smallest_ratio(cards)
    fitting = {}
    for node in cluster.nodes:
        share = shares[node.name]
        fitting[node.name] = _largest_fitting(node, settings, facts, share)
    return fitting


def requested_sizes(cluster: Cluster, settings: Settings) -> dict[str, int] | None:
    """Return {node: requested size}; None for `auto`. Raises UsageError for an invalid or missing size."""
    default = cluster.training.settings.get("training", {}).get("batch_size_per_gpu", 1)
    requested = settings.get("training", {}).get("batch_size_per_gpu", default)
    names = [node.name for node in cluster.nodes]
    try:
        # The name of another node is no fault: the launch may use only some nodes of the file.
        sizes = shipped_rules()[BATCH_SIZE].fit(requested)
    except Misfit as error:
        raise UsageError(f"{BATCH_SIZE}: {error}") from error
    if sizes == "auto":
        return None
    if not isinstance(sizes, dict):
        return dict.fromkeys(names, sizes)
    missing = [name for name in names if name not in sizes]
    if missing:
        hint = ""
        other_names = sizes.keys() - set(names)
        near = get_close_matches(missing[0], other_names, n=1)
        if near:
            hint = f"; {near[0]} is none of the nodes, did you mean {missing[0]}?"
        raise UsageError(f"{BATCH_SIZE}: no number for {', '.join(missing)}{hint}")
    return {name: sizes[name] for name in names}


def card_mib(node: Node, facts: ProbeAnswer) -> int | None:
    """Return the MiB of the card used by the node's rank, None without a card.

    The probe's figure overrides the cluster file's.
    """
    if node.hides_card:
        return None
    card = _first_card(facts)
    if card is not None:
        total, _ = card
        return total
    if node.vram_gb:
        return round(node.vram_gb * GIB)
    return None


def smallest_ratio(cards: Mapping[str, int | None]) -> dict[str, int]:
    """Return {node: share}, the ratio of the cards' memory in the smallest whole numbers.

    No share is off by more than RATIO_TOLERANCE, if the smallest card's share can stay within SMALLEST_SHARE_MAX.
    """
    known = [mib for mib in cards.values() if mib]
    smallest = min(known, default=1)
    ratios = {name: (mib or smallest) / smallest for name, mib in cards.items()}

    def rounded(smallest_share: int) -> dict[str, int]:
        return {name: round(smallest_share * ratio) for name, ratio in ratios.items()}

    def largest_error(smallest_share: int) -> float:
        errors = []
        for name, share in rounded(smallest_share).items():
            errors.append(abs(share / smallest_share / ratios[name] - 1))
        return max(errors)

    candidates = range(1, SMALLEST_SHARE_MAX + 1)
    for smallest_share in candidates:
        if largest_error(smallest_share) <= RATIO_TOLERANCE:
            return rounded(smallest_share)
    return rounded(min(candidates, key=largest_error))


def _largest_fitting(node: Node, settings: Settings, facts: Facts, wanted: int) -> int:
    """Return the largest size up to `wanted` estimated to fit the node's card; 1 if none fits."""
    for size in range(wanted, 1, -1):
        memory = _memory(node, settings, facts, size)
        if not isinstance(memory, Memory) or memory.fit == "fits":
            return size
    return 1


def effective_batch(record: JobRecord, sizes: Mapping[str, int]) -> int | None:
    """Return the sequences in a step of all ranks together; None for a script with other rules."""
    if not is_estimated(record):
        return None
    steps = record.settings.get("training", {}).get("gradient_accumulation_steps")
    if not steps:
        return None
    return sum(sizes.values()) * int(steps)


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
    lines = []
    for node in plan.nodes:
        if node.memory and node.memory.fit == "too large":
            lines.append(_refusal(node.node, node.batch_size, node.memory))
    return lines


def _refusal(node: str, batch_size: int, memory: Memory) -> str:
    free = f"{memory.room_mib / GIB:.1f} GiB"
    card = f"{memory.card_mib / GIB:.1f}"
    needed = f"a batch of {batch_size} needs about {_described(memory)}"
    if batch_size > 1:
        remedy = "let UGRO choose: --set training.batch_size_per_gpu=auto"
    else:
        remedy = (
            "needs less: --set training.gradient_checkpointing=true, "
            "a smaller model.max_seq_length, a smaller model"
        )
    return (
        f"{node}: memory: {needed}, and {free} are free of the card's {card}\n"
        f"    {remedy}; to launch all the same: --force"
    )


def _described(memory: Memory) -> str:
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
    answers = [own.model]
    answers += [other.model for other in facts.values()]
    if not any(answers):
        return ""
    # The node's own answer first; another node may have the model where this one has not.
    models = [model_facts(answer) for answer in answers]
    model = next((model for model in models if model), None)
    if model is None:
        missing = own.model.missing if own.model else ""
        return missing or "its config.json lacks what an estimate needs"
    total = card_mib(node, own)
    if total is None:
        return "no card is known here"
    used_by_others = 0
    card = _first_card(own)
    # A rank holding the node will be gone before this one starts.
    if card is not None and own.holder is None:
        _, used_by_others = card
    return on_card(estimate(model, settings, size), total, used_by_others)


def _first_card(facts: ProbeAnswer) -> tuple[int, int] | None:
    """Return (total, used) MiB of the first card, as reported by nvidia-smi; None without a card."""
    if not facts.cards:
        return None
    card = facts.cards[0]
    if card.total_mib is None:
        return None
    return round(card.total_mib), round(card.used_mib or 0)
