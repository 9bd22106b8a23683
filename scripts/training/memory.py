"""The check of this rank's memory: UGRO's estimate, compared with the free memory of the card."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from .faults import Fault
from .ranks import Ranks

MIB, GIB = 2**20, 2**30
# UGRO compared the same number with the memory free before the start, and allowed 15 %. By now this process's own part
# of CUDA, included in the estimate, is taken. With less than this part of the estimate free, others took the rest.
LEAST_PART = 0.75


def refuse_if_too_large(
    needed_mib: int | None, settings: SimpleNamespace, batch_size: int, ranks: Ranks
) -> str | None:
    """Return a line with the needed and the free memory; None without an estimate or a GPU.

    Raises Fault if too little is free.
    """
    if needed_mib is None or ranks.device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(ranks.device)
    card = f"GPU memory ({torch.cuda.get_device_name(ranks.device)})"
    numbers = f"about {_gib(needed_mib * MIB)} GiB are needed, {_gib(free)} of {_gib(total)} are free"
    if free < LEAST_PART * needed_mib * MIB:
        raise Fault(
            f"not enough {card} on {ranks.name}: {numbers}; see what has the rest (nvidia-smi), or need less: "
            f"{', '.join(_ways_to_need_less(settings, batch_size))}"
        )
    return f"{card}: {numbers}"


def _ways_to_need_less(settings: SimpleNamespace, batch_size: int) -> list[str]:
    ways = [f"a smaller model.max_seq_length (it is {settings.model.max_seq_length})"]
    if batch_size > 1:
        ways.append(f"a smaller training.batch_size_per_gpu (it is {batch_size} here)")
    if not settings.training.gradient_checkpointing:
        ways.append("training.gradient_checkpointing=true")
    if not settings.lora.enabled:
        ways.append("lora.enabled=true")
    elif not settings.quantization.enabled:
        ways.append("quantization.enabled=true")
    return ways


def _gib(count: int) -> str:
    return f"{count / GIB:.1f}"
