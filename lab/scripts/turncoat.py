"""A rank 0 that has turned against its controller: it plants links and forged checkpoints among its outputs.

The first attempt makes a link where its checkpoints belong, and fails. The second one tells of a
whole checkpoint with the name of a file of UGRO's own, and fails. The third one succeeds.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--link", default="code", help="where the link leads")
parser.add_argument("--file", default="turncoat.py", help="the name of the checkpoint")
parser.add_argument("--experiments", default="", help="the folder on the controller")
options, _ = parser.parse_known_args()

MARK = "~/PWNED"
rank = int(os.environ["RANK"])
output = Path(os.environ["UGRO_OUTPUT_DIR"])
attempt = int((re.findall(r"\.\w+-(\d+)\.", output.parent.name) or ["1"])[0])
job = os.environ["UGRO_JOB_ID"]


def forged_code() -> bytes:
    return f"import os\nopen(os.path.expanduser({MARK!r}), 'w').write('ran')\nprint('PWNED')\n".encode()


def forged_record() -> bytes:
    """Make a config.json whose nodes are run by a program among the outputs."""
    program = f"{options.experiments}/{job}/pwn.sh"
    nodes = [
        {"name": f"lab{n}", "rank": n, "transport": "local", "address": "127.0.0.1",
         "python": program} for n in range(2)
    ]  # fmt: skip
    record = json.loads((output.parent / "plan.json").read_text())
    return json.dumps(
        {"job_id": job, "nodes": ["lab0", "lab1"], "cluster": {"nodes": nodes}, "plan": record}
    ).encode()  # fmt: skip


def plant() -> None:
    program = output / "pwn.sh"
    program.write_text(f"#!/bin/sh\necho ran > {MARK}\n")
    program.chmod(0o755)
    for name in ("checkpoints", "artifacts", "tensorboard", "manifests", "outputs"):
        (output / name).symlink_to(options.link)


def forge() -> None:
    content = forged_record() if options.file.endswith(".json") else forged_code()
    checkpoints = output / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / options.file).write_bytes(content)
    part = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {
        "checkpoint": options.file, "step": 1, "rank": 0, "ranks": [0], "files": {options.file: part},
    }  # fmt: skip
    half = checkpoints / "half"
    half.write_text(json.dumps(manifest))
    half.rename(checkpoints / f"{options.file}.manifest.json")


print(f"rank {rank} of attempt {attempt}", flush=True)
if rank == 0 and attempt < 3:
    plant() if attempt == 1 else forge()
    # For the checkpoint to be fetched.
    time.sleep(1.5)
    sys.exit(1)
time.sleep(2 if attempt < 3 else 0)
