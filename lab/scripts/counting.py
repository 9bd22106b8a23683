"""A rank that counts and saves its progress, for tests of checkpoints and restarts. No torch."""

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
for flag in (
    "--model-name",
    "--dataset-name",
    "--num-epochs",
    "--learning-rate",
    "--job-id",
):
    parser.add_argument(flag)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--step-seconds", type=float, default=0.05)
parser.add_argument("--save-every", type=int, default=5)
parser.add_argument(
    "--die-at", type=int, default=-1, help="rank 1 ends at this step of every run"
)
parser.add_argument(
    "--die-unless-resumed",
    type=int,
    default=-1,
    help="rank 1 ends at this step of a first run",
)
parser.add_argument(
    "--half", action="store_true", help="rank 1 leaves its last checkpoint half-written"
)
options = parser.parse_args()

rank = int(os.environ["RANK"])
world = int(os.environ["WORLD_SIZE"])
output = Path(os.environ["UGRO_OUTPUT_DIR"])
checkpoints = output / "checkpoints"
checkpoints.mkdir(exist_ok=True)


def save(step: int) -> None:
    name = f"checkpoint-{step}"
    (checkpoints / name).mkdir()
    (checkpoints / name / "model.bin").write_bytes(b"%d " % step * 50_000)
    if options.half and rank == 1 and step >= options.steps:
        return
    (checkpoints / name / f"rng_{rank}.json").write_text(
        json.dumps({"step": step, "rank": rank})
    )
    files = {
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
        "files": files,
    }
    half = checkpoints / f".{name}.half"
    half.write_text(json.dumps({**manifest, "world_size": world}))
    half.rename(checkpoints / f"{name}.manifest.json")


first = 0
if "UGRO_RESUME" in os.environ:
    resumed = Path(os.environ["UGRO_RESUME"])
    first = int((resumed / "model.bin").read_text().split()[0])
    own = resumed / f"rng_{rank}.json"
    print(
        f"rank {rank} goes on from step {first}, own part: {own.exists()}", flush=True
    )
for step in range(first + 1, options.steps + 1):
    time.sleep(options.step_seconds)
    print(f"rank {rank} of {world} step {step}", flush=True)
    if rank == 0:
        with (output / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": 1.0 / step}) + "\n")
    if step % options.save_every == 0:
        save(step)
    dies_at = {options.die_at}
    if not first:
        dies_at.add(options.die_unless_resumed)
    if rank == 1 and step in dies_at:
        print("rank 1 has had enough", flush=True)
        sys.exit(3)
