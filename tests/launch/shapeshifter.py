"""A hostile user of a node: what a job has there keeps turning into links, pipes and the like, and back.

    python3 shapeshifter.py JOB CYCLES

In each folder `~/ugro/jobs/JOB*`, every place takes every shape for some milliseconds. It ends when
its standard input does, not before so many cycles, and prints how many shapes there were. Whoever
follows one of the links finds nothing precious: they lead into the job's folders or to `~/lures`.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

Shape = Callable[[Path], object]
SHAPE_SECONDS = 0.004
HOME = Path.home()
LURES = HOME / "lures"
PLACES = [
    "output", "output/checkpoints", "output/checkpoints/step", "output/checkpoints/step/rank",
    "output/checkpoints/step.manifest.json", "output/checkpoints/config.json", "output/artifacts",
    "output/artifacts/model.bin", "output/tensorboard", "output/metrics.jsonl", "output/config.json",
    "output/logs", "output/code", "log", "gpu.jsonl", "exit.json", "error.json", "stop.json", "torchrun.json",
    "manifests", "outputs",
]  # fmt: skip


def link_to(target: str) -> Shape:
    return lambda path: path.symlink_to(target)


def listening(path: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(str(path))


def shapes() -> dict[str, Shape]:
    return {
        "the job's folder": link_to("."),
        "the folder above": link_to(".."),
        "another folder": link_to(str(LURES)),
        "a record at home": link_to("../../config.json"),
        "a record at home, one deeper": link_to("../../../config.json"),
        "code at home": link_to("../../code"),
        "a secret": link_to(str(LURES / "secret")),
        "an endless file": link_to("/dev/zero"),
        "nothing": link_to("nowhere"),
        "pipe": os.mkfifo,
        "socket": listening,
        "folder": Path.mkdir,
        "file": lambda path: path.write_bytes(b'{"forged": true}\n'),
        "another name of a secret": lambda path: os.link(LURES / "secret", path),
        "no file": lambda _: None,
    }


def shift(path: Path, shape: Shape) -> bool:
    """Let a place take a shape for a moment; return whether it did."""
    kept = path.with_name(path.name + ".kept")
    try:
        there = os.path.lexists(path)
        if there:
            path.rename(kept)
        try:
            shape(path)
            time.sleep(SHAPE_SECONDS)
        finally:
            remove(path)
            if there:
                remove(path)
                kept.rename(path)
    except OSError:
        # It may have been made, moved or removed by its owner at the same time.
        return False
    return True


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    job, cycles = sys.argv[1:]
    LURES.mkdir(exist_ok=True)
    (LURES / "secret").write_text("SECRET-OF-THE-NODE")
    kinds = list(shapes().values())
    done, shifted = 0, 0
    while done < int(cycles) or not select.select([sys.stdin], [], [], 0)[0]:
        for folder in (HOME / "ugro/jobs").glob(f"{job}*.*"):
            for place in random.sample(PLACES, len(PLACES)):
                for kind in random.sample(kinds, len(kinds)):
                    shifted += shift(folder / place, kind)
        done += 1
        time.sleep(SHAPE_SECONDS)
    print(shifted)


main()
