"""The protocol between controller and node: the mark before an answer, frames, limits, refusals."""

from __future__ import annotations

import re
import struct
from typing import Any

MARK = b"\x1eUGRO "

# Kind, byte offset in its stream, payload length; then the payload.
FRAME = struct.Struct(">BQI")
HEARTBEAT = 0
LOG = 1
METRICS = 2
GPU = 3
EXIT = 4
LOST = 5
MANIFEST = 6
# What cannot be sent of a rank, and why nothing more can be; as text.
NOTICE = 7
FAULT = 8
NOTICE_CHARACTERS = 500
SIZES = 9
# The frames of a file transfer, see copy.py.
ENTRIES = 16
LISTED = 17
WANTED = 18
ENOUGH = 19
NEXT = 20
CONTENT = 21
FILE = 22
STORED = 23
FAILED = 24
# The bit in a kind for a zlib-compressed payload.
COMPRESSED = 0x80

CHUNK_BYTES = 1 << 18
READER_GONE_SECONDS = 300.0
MANIFEST_BYTES = 1 << 19
MANIFEST_SUFFIX = ".manifest.json"
# Of one rank.
OUTPUTS_TOLD = 1000
PROCESSES_TOLD = 20

# Variables able to change torchrun's flags or a rank's place in the gang.
MISLEADING = re.compile(
    r"(PET|TORCHELASTIC|TORCH_ELASTIC|UGRO)_|(RANK|LOCAL_RANK|GROUP_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$"
)


class Refusal(Exception):
    """The node refuses a request; `kind` tells the controller the case."""

    def __init__(self, kind: str, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.answer = dict(facts, error=kind, message=message)
