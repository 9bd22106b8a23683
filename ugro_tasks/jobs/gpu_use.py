"""gpu.jsonl: the samples of all cards of a job, stored as received, and the use of each card."""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections import Counter
from collections.abc import Iterable

import msgspec

from ..codec import UNREADABLE, decode
from ..files import File

SAMPLE_NODE = re.compile(rb'"node": "([^"]*)"')


class CardUse(msgspec.Struct, frozen=True, kw_only=True):
    """The use of one card during a run; None if nvidia-smi gave no number."""

    node: str
    index: int
    name: str
    samples: int
    utilization_mean_percent: float | None
    utilization_max_percent: float | None
    memory_peak_mib: float | None
    memory_total_mib: float | None
    power_mean_watts: float | None
    power_max_watts: float | None
    temperature_max_celsius: float | None


class _Sample(msgspec.Struct):
    """A line of gpu.jsonl.

    The values are the words of `nvidia-smi --query-gpu`, e.g. "57" or "[N/A]".
    """

    node: str
    index: str = "0"
    name: str = ""
    utilization: str = msgspec.field(default="", name="utilization.gpu")
    memory_used: str = msgspec.field(default="", name="memory.used")
    memory_total: str = msgspec.field(default="", name="memory.total")
    power: str = msgspec.field(default="", name="power.draw")
    temperature: str = msgspec.field(default="", name="temperature.gpu")


def card_use(file: File) -> list[CardUse]:
    """Return the use of each card, sorted by node and index; unreadable lines are skipped."""
    found: dict[tuple[str, int], list[_Sample]] = {}
    with contextlib.suppress(FileNotFoundError), file.open() as opened:
        for line in opened:
            with contextlib.suppress(*UNREADABLE):
                sample = decode(_Sample, line)
                found.setdefault((sample.node, int(sample.index)), []).append(sample)
    used = []
    for (node, index), samples in sorted(found.items()):
        used.append(_use(node, index, samples))
    return used


def _use(node: str, index: int, samples: list[_Sample]) -> CardUse:
    utilization = _numbers(sample.utilization for sample in samples)
    memory_used = _numbers(sample.memory_used for sample in samples)
    memory_total = _numbers(sample.memory_total for sample in samples)
    power = _numbers(sample.power for sample in samples)
    temperature = _numbers(sample.temperature for sample in samples)
    return CardUse(
        node=node,
        index=index,
        name=samples[-1].name,
        samples=len(samples),
        utilization_mean_percent=_mean(utilization),
        utilization_max_percent=max(utilization, default=None),
        memory_peak_mib=max(memory_used, default=None),
        memory_total_mib=max(memory_total, default=None),
        power_mean_watts=_mean(power),
        power_max_watts=max(power, default=None),
        temperature_max_celsius=max(temperature, default=None),
    )


def _numbers(texts: Iterable[str]) -> list[float]:
    found = []
    for text in texts:
        with contextlib.suppress(ValueError):
            found.append(float(text))
    return [value for value in found if math.isfinite(value)]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


class GpuSamples:
    """The bytes of each node's samples in a file that only grows."""

    def __init__(self, file: File) -> None:
        self.file = file
        self._counted = 0
        self._bytes: Counter[str] = Counter()
        self._lock = threading.Lock()

    def bytes_of(self, node: str) -> int:
        """Return the total length of a node's lines; each part of the file is read once."""
        with self._lock:
            try:
                with self.file.open() as samples:
                    if samples.seek(0, 2) < self._counted:
                        self._counted = 0
                        self._bytes.clear()
                    samples.seek(self._counted)
                    for line in samples:
                        self._count(line)
            except FileNotFoundError:
                pass
            return self._bytes[node]

    def _count(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            return
        self._counted += len(line)
        name = node_of_sample(line)
        if name is not None:
            self._bytes[name] += len(line)


def node_of_sample(line: bytes) -> str | None:
    """Return the node of a line of gpu.jsonl, None unless the line names exactly one."""
    nodes = SAMPLE_NODE.findall(line)
    if len(nodes) != 1 or not line.startswith(b"{"):
        return None
    name: bytes = nodes[0]
    return name.decode("utf-8", "replace")
