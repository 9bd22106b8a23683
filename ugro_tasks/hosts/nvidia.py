"""Parsers for the output of nvidia-smi; the queries are in `node/gpu.py`."""

from __future__ import annotations

import re

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from ..codec import convert
from ..node.gpu import GPU_FIELDS, HEALTH_FIELDS

# Rather than `isdigit`, which accepts a ²; the length is limited.
DIGITS = re.compile("[0-9]{1,12}")
NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12}")
# Printed instead of a value if a card is lost or has to be reset.
ERROR_VALUES = ("ERR!", "GPU requires reset", "GPU is lost", "Unknown Error")


class Gpu(Struct, frozen=True, kw_only=True):
    """A card with values as printed by nvidia-smi, such as "[N/A]".

    In JSON the fields have nvidia-smi's names. Memory is in MiB, power in W.
    """

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
        """Return the card's memory, None if nvidia-smi prints no number."""
        return number_of(self.memory_total)

    @property
    def used_mib(self) -> float | None:
        """Return the memory in use, None if nvidia-smi prints no number."""
        return number_of(self.memory_used)

    @property
    def error_count(self) -> float:
        """Return the number of uncorrected memory errors; 0 if they are not counted."""
        if isinstance(self.uncorrected_errors, UnsetType):
            return 0.0
        return number_of(self.uncorrected_errors) or 0.0

    @property
    def faults(self) -> list[str]:
        """Return the values of a hanging or lost card, as in: ERR! (power.draw)."""
        found = []
        for name, value in msgspec.to_builtins(self).items():
            if any(words in value for words in ERROR_VALUES):
                found.append(f"{value} ({name})")
        return found


class GpuProcess(Struct, frozen=True, kw_only=True):
    """A process using memory of a card."""

    pid: int
    # 0 if nvidia-smi does not tell.
    used_mib: int
    name: str


def parse_gpus(output: str) -> tuple[Gpu, ...]:
    """Parse the output of `nvidia-smi --query-gpu`, skipping lines that are no cards."""
    # The two queries differ in their number of values.
    queries = [GPU_FIELDS.split(","), HEALTH_FIELDS.split(",")]
    names_by_length = {len(names): names for names in queries}
    cards = []
    for line in output.splitlines():
        row = [value.strip() for value in line.split(",")]
        names = names_by_length.get(len(row))
        if names and DIGITS.fullmatch(row[0]):
            values = dict(zip(names, row, strict=True))
            cards.append(convert(Gpu, values))
    return tuple(cards)


def parse_apps(output: str) -> tuple[GpuProcess, ...]:
    """Parse the output of `nvidia-smi --query-compute-apps`."""
    processes = []
    for line in output.splitlines():
        pid, _, rest = line.partition(",")
        used, _, name = rest.partition(",")
        pid = pid.strip()
        used = used.strip()
        if not DIGITS.fullmatch(pid):
            continue
        process = GpuProcess(
            pid=int(pid),
            used_mib=int(used) if DIGITS.fullmatch(used) else 0,
            name=name.strip(),
        )
        processes.append(process)
    return tuple(processes)


def number_of(text: str) -> float | None:
    """Parse a number; return None for [N/A] and the like."""
    return float(text) if NUMBER.fullmatch(text) else None
