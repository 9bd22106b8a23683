"""Manifests, the proof for outside readers of a checkpoint's completeness.

`checkpoints/<name>` is a file or a folder. After all of it is written, its rank writes
`checkpoints/<name>.manifest.json` beside it:

    {"checkpoint": "checkpoint-50", "step": 50, "epoch": 1.0, "rank": 0, "ranks": [0, 1], "world_size": 2,
     "files": {"checkpoint-50/optimizer.pt": {"bytes": 123, "sha256": "..."}, ...}}

`ranks` are the ranks writing a part; the checkpoint is whole once each of them has its manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

CHUNK_BYTES = 1 << 20


def manifest_of(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's manifest, existing or not."""
    return checkpoint.with_name(f"{checkpoint.name}.manifest.json")


def write_manifest(
    checkpoint: Path,
    *,
    step: int,
    epoch: float,
    rank: int,
    ranks: Sequence[int],
    world_size: int,
) -> None:
    """Write the manifest, after all files of the checkpoint: a reader of the manifest finds all of them."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    if not files:
        files = [checkpoint]  # it is a file itself
    content = {
        "checkpoint": checkpoint.name,
        "step": step,
        "epoch": epoch,
        "rank": rank,
        "ranks": list(ranks),
        "world_size": world_size,
        "files": {
            str(path.relative_to(checkpoint.parent)): _measured(path) for path in files
        },
    }
    unfinished = checkpoint.with_name(f".{checkpoint.name}.manifest.tmp")
    unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")
    unfinished.replace(manifest_of(checkpoint))


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its manifest first: none may vouch for a half removed checkpoint."""
    manifest_of(checkpoint).unlink(missing_ok=True)
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)


def whole_ones(folder: Path, pattern: str) -> list[Path]:
    """List the checkpoints with a manifest, in the order of the numbers in their names."""
    whole = [path for path in folder.glob(pattern) if manifest_of(path).exists()]
    return sorted(whole, key=_numbers_in_name)


def _numbers_in_name(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _measured(path: Path) -> dict[str, int | str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        size = os.fstat(file.fileno()).st_size
    return {"bytes": size, "sha256": digest.hexdigest()}
