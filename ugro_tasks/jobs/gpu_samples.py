"""gpu.jsonl: the GPU samples of all nodes of a job, one line each, stored as received."""

from __future__ import annotations

import re
import threading
from collections import Counter

from ..files import File

SAMPLE_NODE = re.compile(rb'"node": "([^"]*)"')


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
