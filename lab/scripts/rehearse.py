"""A rank that follows its flags, without torch, for tests of everything around the training."""

import argparse
import json
import os
import signal
import subprocess
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
parser.add_argument(
    "--seconds", type=float, default=0.0, help="how long to go on, a line every 50 ms"
)
parser.add_argument(
    "--bytes", type=int, default=0, help="print so many bytes as fast as possible"
)
parser.add_argument("--raw", default="", help="print these bytes, in hexadecimal")
parser.add_argument("--fail-rank", type=int, default=-1)
parser.add_argument("--fail-code", type=int, default=0, help="0: raise instead")
parser.add_argument("--ignore-term", action="store_true")
parser.add_argument(
    "--daemon",
    action="store_true",
    help="leave a process of a session of its own behind",
)
parser.add_argument(
    "--hide",
    action="store_true",
    help="so, and it is no child of this one and has an empty environment",
)
parser.add_argument(
    "--sudo", action="store_true", help="so, of the second rank, deaf and as root"
)
parser.add_argument(
    "--clash",
    action="store_true",
    help="write a file with the name of one of UGRO's own",
)
parser.add_argument("--echo", default="")
options = parser.parse_args()

rank = int(os.environ["RANK"])
world = int(os.environ["WORLD_SIZE"])
output = Path(os.environ["UGRO_OUTPUT_DIR"])
print(f"rank {rank} of {world} in {os.environ['UGRO_JOB_ID']}", flush=True)
if options.echo:
    print(f"echo {options.echo!r} {os.environ.get('ECHO')!r}", flush=True)
if options.ignore_term:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if options.daemon:
    subprocess.Popen(["sleep", "600"], start_new_session=True)
if options.hide:
    subprocess.run(["setsid", "--fork", "env", "-i", "sleep", "600"], check=True)
if options.sudo and rank == 1:
    deaf = ["sh", "-c", "trap '' TERM; while sleep 1; do :; done"]
    subprocess.run(["sudo", "--background", *deaf], check=True)
if options.raw:
    sys.stdout.buffer.write(bytes.fromhex(options.raw))
    sys.stdout.buffer.flush()
line = b"%07d " % rank + b"x" * 91 + b"\n"
for _ in range(options.bytes // (len(line) * 1000)):
    sys.stdout.buffer.write(line * 1000)
begun = time.monotonic()
step = 0
while time.monotonic() - begun < options.seconds:
    print(f"rank {rank} step {step}", flush=True)
    if rank == 0:
        with (output / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": 1.0 / (step + 1)}) + "\n")
    step += 1
    time.sleep(0.05)
if rank == options.fail_rank:
    if options.fail_code:
        sys.exit(options.fail_code)
    raise ValueError("the learning rate went to the moon")
if options.fail_rank >= 0:
    time.sleep(600)  # as a peer that waits in a collective
if options.clash:
    (output / "config.json").write_text("a model's")
(output / "checkpoints").mkdir(exist_ok=True)
(output / "checkpoints" / "last.pt").write_bytes(b"weights of rank %d" % rank)
