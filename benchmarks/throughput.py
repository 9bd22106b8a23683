"""Tokens a second of a training on three hosts: by `inv launch`, beside the same torchrun typed on each.

python -m benchmarks.throughput [ROUNDS]

No OpenMP thread spins while it waits: with three ranks on two cores that measures the scheduler.
"""

import json
import os
import shlex
import statistics
import sys
from contextlib import ExitStack

from benchmarks.common import ROOT, in_turn, lab_with_user, table, typed_torchruns
from tests.lab import Lab
from tests.launch.ugro import Ugro

FLAGS = ["--num-epochs", "1", "--learning-rate", "0.003", "--steps-per-epoch", "300", "--log-every", "20"]


def rate(lines: str) -> float:
    """The median of what rank 0 logged; the first line has the start in it."""
    return statistics.median(float(json.loads(line)["tokens_per_second"]) for line in lines.splitlines()[1:])


def by_hand(lab: Lab) -> float:
    """Its log goes into a file here, as anybody would do it who wants to keep it."""
    before = (
        f"cd {ROOT}/scripts; export OMP_WAIT_POLICY=passive CUDA_VISIBLE_DEVICES= UGRO_OUTPUT_DIR=$HOME/by_hand; "
        "rm -rf $HOME/by_hand;"
    )
    with ExitStack() as files:
        logs = [
            files.enter_context((lab.folder / f"by_hand{rank}.log").open("wb"))
            for rank in range(len(lab.hosts))
        ]
        terminals = typed_torchruns(
            lab, f"train_single_test.py {shlex.join(FLAGS)}", before=before, into=logs
        )
        for terminal in terminals:
            assert terminal.wait(timeout=120) == 0
    return rate(lab.hosts[0].run(["cat", "by_hand/metrics.jsonl"]).stdout)


def launched(ugro: Ugro) -> float:
    flags = ["--epochs", "1", "--args", shlex.join(FLAGS[4:]), "--env", "OMP_WAIT_POLICY=passive"]
    done = ugro.run("launch", "--name", "speed", "--script", "train_single_test.py", *flags, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return rate((ugro.job("speed").folder / "metrics.jsonl").read_text())


def main(rounds: int) -> None:
    with lab_with_user(ROOT / "scripts") as (lab, ugro):
        figures = in_turn({"inv launch": lambda: launched(ugro), "by hand": lambda: by_hand(lab)}, rounds)
        title = f"characters a second of train_single_test.py, three hosts, {rounds} rounds, {os.cpu_count()} cores"
        table(title, figures, "inv launch", "/s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
