"""What controller and node have in common: the mark before an answer, frames, limits, refusals."""

from __future__ import annotations

import re
import struct
from typing import Any

MARK = b"\x1eUGRO "

# Kind, byte offset in its stream, payload length; then the payload.
FRAME = struct.Struct(">BQI")
HEARTBEAT, LOG, METRICS, GPU, EXIT, LOST, MANIFEST = range(7)
# Those of files on their way: see copy.py.
ENTRIES, LISTED, WANTED, ENOUGH, NEXT, CONTENT, FILE, STORED, FAILED = range(16, 25)
COMPRESSED = 0x80  # set on a kind whose payload is zlib-compressed

CHUNK_BYTES = 1 << 18
READER_GONE_SECONDS = 300.0
MANIFEST_BYTES = 1 << 19
MANIFEST_SUFFIX = ".manifest.json"
OUTPUTS_TOLD = 1000

# Variables that would change torchrun's flags or a rank's place in the gang.
MISLEADING = re.compile(
    r"(PET|TORCHELASTIC|TORCH_ELASTIC|UGRO)_|(RANK|LOCAL_RANK|GROUP_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$"
)


class Refusal(Exception):
    """The node cannot do what was asked; `kind` lets the controller tell the cases apart."""

    def __init__(self, kind: str, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.answer = dict(facts, error=kind, message=message)
