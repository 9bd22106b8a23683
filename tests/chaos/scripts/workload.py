"""A rank for the chaos suite: prints and saves as it is told, says when it is through, and needs no torch.

Its last line is `rank R ends well`, printed when all else is done: by that the suite knows, without UGRO, whether a
rank came to its end. Each other line is one of its kind, so that one that is lost or comes twice can be told.
"""

import argparse
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import hostile  # type: ignore[import-not-found]  # it lies beside this script

parser = argparse.ArgumentParser()
for flag in (
    "--model-name",
    "--dataset-name",
    "--num-epochs",
    "--learning-rate",
    "--job-id",
):
    parser.add_argument(flag)
parser.add_argument(
    "--seconds", type=float, default=2.0, help="how long the steps take together"
)
parser.add_argument(
    "--output",
    default="plain",
    help="what to print besides: plain, giant, binary, flood",
)
parser.add_argument(
    "--loud-rank", type=int, default=0, help="who prints that; a flood comes from all"
)
parser.add_argument(
    "--fail-rank",
    type=int,
    default=-1,
    help="this one ends with code 3, half way, in a first run",
)
parser.add_argument(
    "--save-every", type=int, default=0, help="a checkpoint after so many steps"
)
parser.add_argument(
    "--quiet", action="store_true", help="no word from the fourth step to the last"
)
parser.add_argument("--ignore-term", action="store_true")
parser.add_argument(
    "--daemon",
    action="store_true",
    help="leave a process of a session of its own behind",
)
parser.add_argument(
    "--hide",
    action="store_true",
    help="leave one behind that has an empty environment and is deaf to TERM",
)
parser.add_argument(
    "--unreadable",
    action="store_true",
    help="the loud rank leaves what its own user may not read",
)
parser.add_argument(
    "--hostile",
    choices=list(hostile.ACTS),
    help="what the loud rank does against UGRO, besides forging",
)
options = parser.parse_args()

STEP_SECONDS = 0.05
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
output = Path(os.environ["UGRO_OUTPUT_DIR"])
checkpoints = output / "checkpoints"


def write(descriptor: int, data: bytes) -> None:
    """All of it, however long the disk is full."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            time.sleep(0.05)


def write_file(path: Path, data: bytes, flags: int = os.O_TRUNC) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
    write(descriptor, data)
    os.close(descriptor)


def make_folder(path: Path) -> None:
    while True:
        try:
            return path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            time.sleep(0.05)


def say(words: str) -> None:
    write(1, f"rank {rank} {words}\n".encode())


def save(step: int) -> None:
    """A checkpoint as docs/checkpoints.md tells it: the files, and last the manifest."""
    name = f"checkpoint-{step}"
    make_folder(checkpoints / name)
    write_file(checkpoints / name / "model.bin", b"%d " % step * 20_000)
    write_file(
        checkpoints / name / f"rng_{rank}.json",
        json.dumps({"step": step, "rank": rank}).encode(),
    )
    parts = {
        str(path.relative_to(checkpoints)): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in (checkpoints / name).iterdir()
    }
    manifest = {
        "checkpoint": name,
        "step": step,
        "rank": rank,
        "ranks": [*range(world)],
        "files": parts,
    }
    half = checkpoints / f".{name}.half"
    write_file(half, json.dumps(manifest).encode())
    half.rename(checkpoints / f"{name}.manifest.json")


def be_loud() -> None:
    """What a terminal, a line reader or a decoder would rather not meet."""
    if options.output == "giant":
        write(1, b"x" * 10_000_000 + b"\n")
    elif options.output == "binary":
        write(1, b"\xff\xfe\x00\xe2\x82 \x1b]0;owned\x07\x1b[2J\xf0\x9f\x98\r\n")
        write(1, random.Random(rank).randbytes(300_000))
        write(1, b"\n")
    elif options.output == "flood":
        line = b"x" * 100
        for block in range(20):
            write(
                1,
                b"".join(
                    b"flood %d %06d %s\n" % (rank, block * 1000 + n, line)
                    for n in range(1000)
                ),
            )


def withhold() -> None:
    """Leave a file and a folder that may not be read; and a name that is no text, which may."""
    artifacts = output / "artifacts"
    write_file(artifacts / "closed.bin", b"closed\n")
    (artifacts / "closed.bin").chmod(0)
    make_folder(artifacts / "shut")
    write_file(artifacts / "shut" / "inside.bin", b"inside\n")
    (artifacts / "shut").chmod(0)
    write_file(artifacts / os.fsdecode(b"no-text-\xff\xfe.bin"), b"no text\n")


def turn_against_ugro(act: str) -> None:
    write(1, hostile.words(rank, world))
    hostile.forge_error(rank, world)
    if rank == 0:
        lines = "".join(f"{line}\n" for line in hostile.METRICS)
        write_file(output / "metrics.jsonl", lines.encode(), os.O_APPEND)
    hostile.act(act)


first = 0
if "UGRO_RESUME" in os.environ:
    first = int((Path(os.environ["UGRO_RESUME"]) / "model.bin").read_text().split()[0])
say(f"begins at {first} of {world}")
if options.ignore_term:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if options.daemon:
    subprocess.Popen(["sleep", "600"], start_new_session=True)
if options.hide:
    deaf = "trap '' TERM; while :; do sleep 1; done"
    subprocess.Popen(["/bin/sh", "-c", deaf], env={}, start_new_session=True)
steps = max(2, round(options.seconds / STEP_SECONDS))
for step in range(first + 1, steps + 1):
    time.sleep(STEP_SECONDS)
    if not options.quiet or step <= first + 3:
        say(f"step {step}")
    if rank == 0 and not options.quiet:
        write_file(
            output / "metrics.jsonl",
            json.dumps({"step": step, "loss": 1 / step}).encode() + b"\n",
            os.O_APPEND,
        )
    if options.save_every and step % options.save_every == 0:
        save(step)
    if step == first + 3 and (rank == options.loud_rank or options.output == "flood"):
        be_loud()
    if step == first + 4 and rank == options.loud_rank and options.hostile:
        turn_against_ugro(options.hostile)
    if step == steps // 2 and rank == options.fail_rank and not first:
        say("has had enough")
        sys.exit(3)
make_folder(output / "artifacts")
write_file(
    output / "artifacts" / f"result-{rank}.bin", b"result of rank %d\n" % rank * 1000
)
if options.unreadable and rank == options.loud_rank:
    withhold()
say("ends well")
