"""The answers of nvidia-smi, as `node/gpu.py` asks for them."""

from __future__ import annotations

import re

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from ..codec import convert
from ..node.gpu import GPU_FIELDS, HEALTH_FIELDS

# Not `isdigit`, which takes a ² for one; nor any number of them.
DIGITS = re.compile("[0-9]{1,12}")
NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12}")
# What it says instead of a value of a card that has to be reset, or that is gone.
ERROR_VALUES = ("ERR!", "GPU requires reset", "GPU is lost", "Unknown Error")


class Gpu(Struct, frozen=True, kw_only=True):
    """A card in nvidia-smi's own words, "[N/A]" say; in JSON under its own names. Memory is in MiB, power in W."""

    index: str
    name: str
    uuid: str
    driver_version: str
    memory_total: str = field(name="memory.total")
    memory_used: str = field(name="memory.used")
    utilization: str = field(name="utilization.gpu")
    temperature: str = field(name="temperature.gpu")
    power_draw: str = field(name="power.draw")
    uncorrected_errors: str | UnsetType = field(
        default=UNSET, name="ecc.errors.uncorrected.volatile.total"
    )

    @property
    def total_mib(self) -> float | None:
        """Its memory; None where nvidia-smi tells no number."""
        return number_of(self.memory_total)

    @property
    def used_mib(self) -> float | None:
        """The memory in use; None where nvidia-smi tells no number."""
        return number_of(self.memory_used)

    @property
    def error_count(self) -> float:
        """The memory errors that ECC could not correct; 0 where they are not counted."""
        if isinstance(self.uncorrected_errors, UnsetType):
            return 0.0
        return number_of(self.uncorrected_errors) or 0.0

    @property
    def faults(self) -> list[str]:
        """The values that speak of a card which hangs or is gone, as in: ERR! (power.draw)."""
        values = msgspec.to_builtins(self)
        return [
            f"{value} ({name})"
            for name, value in values.items()
            if any(words in value for words in ERROR_VALUES)
        ]


class GpuProcess(Struct, frozen=True, kw_only=True):
    """A process that has memory of a card."""

    pid: int
    used_mib: int  # 0 where nvidia-smi does not tell
    name: str


def parse_gpus(output: str) -> tuple[Gpu, ...]:
    """Read the cards in the answer to `nvidia-smi --query-gpu`; lines that are none are passed over."""
    by_length = {
        len(names): names for names in (GPU_FIELDS.split(","), HEALTH_FIELDS.split(","))
    }
    cards = []
    for line in output.splitlines():
        row = [value.strip() for value in line.split(",")]
        if len(row) in by_length and DIGITS.fullmatch(row[0]):
            cards.append(convert(Gpu, dict(zip(by_length[len(row)], row, strict=True))))
    return tuple(cards)


def parse_apps(output: str) -> tuple[GpuProcess, ...]:
    """Read the processes in the answer to `nvidia-smi --query-compute-apps`."""
    processes = []
    for line in output.splitlines():
        pid, used, name = ([value.strip() for value in line.split(",", 2)] + ["", ""])[
            :3
        ]
        if DIGITS.fullmatch(pid):
            used_mib = int(used) if DIGITS.fullmatch(used) else 0
            processes.append(GpuProcess(pid=int(pid), used_mib=used_mib, name=name))
    return tuple(processes)


def number_of(text: str) -> float | None:
    """Read a value as a number; None for [N/A] and the like."""
    return float(text) if NUMBER.fullmatch(text) else None
