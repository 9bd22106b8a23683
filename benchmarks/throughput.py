"""Tokens a second of a training on three hosts: by `inv launch`, beside the same torchrun typed on each.

No OpenMP thread spins while it waits: with three ranks on two cores that measures the scheduler.
"""

import argparse
import json
import os
import shlex
import statistics
from contextlib import ExitStack

from benchmarks.command import BenchmarkError, add_rounds, make_parser, run, whole
from benchmarks.common import check, in_turn, lab_with_user, table, typed_torchruns
from benchmarks.peers import ROOT
from lab import Lab
from lab.ugro import Ugro

LOG_EVERY = 20
PATIENCE_SECONDS = 120


def rate(lines: str) -> float:
    """Take the median of what rank 0 logged; the first line has the start in it."""
    return statistics.median(
        float(json.loads(line)["tokens_per_second"]) for line in lines.splitlines()[1:]
    )


def by_hand(lab: Lab, flags: list[str]) -> float:
    """Type the torchruns. Their logs go into files here, as anybody would do it who wants to keep them."""
    own_flags = ["--num-epochs", "1", "--learning-rate", "0.003", *flags]
    before = (
        f"cd {ROOT}/scripts; export OMP_WAIT_POLICY=passive CUDA_VISIBLE_DEVICES= UGRO_OUTPUT_DIR=/run/lab/by_hand; "
        "rm -rf /run/lab/by_hand;"  # a folder that only a host has
    )
    with ExitStack() as files:
        logs = [
            files.enter_context((lab.folder / f"by_hand{rank}.log").open("wb"))
            for rank in range(len(lab.hosts))
        ]
        terminals = typed_torchruns(
            lab,
            f"train_single_test.py {shlex.join(own_flags)}",
            before=before,
            into=logs,
        )
        for terminal in terminals:
            if terminal.wait(timeout=PATIENCE_SECONDS) != 0:
                raise BenchmarkError(
                    f"torchrun by hand ended with exit code {terminal.returncode}"
                )
    return rate(lab.hosts[0].run(["cat", "/run/lab/by_hand/metrics.jsonl"]).stdout)


def launched(ugro: Ugro, flags: list[str]) -> float:
    """Launch the same training."""
    words = [
        "launch",
        "--name",
        "speed",
        "--script",
        "train_single_test.py",
        "--epochs",
        "1",
    ]
    words += ["--args", shlex.join(flags), "--env", "OMP_WAIT_POLICY=passive"]
    done = ugro.run(*words, timeout=PATIENCE_SECONDS)
    check(["inv", *words], done.returncode, done.stdout + done.stderr)
    return rate((ugro.job("speed").folder / "metrics.jsonl").read_text())


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    made = make_parser("throughput", __doc__)
    add_rounds(made)
    made.add_argument(
        "--steps", type=whole(3 * LOG_EVERY), default=300, help="of each training"
    )
    return made


def main(rounds: int, steps: int) -> None:
    flags = ["--steps-per-epoch", str(steps), "--log-every", str(LOG_EVERY)]
    with lab_with_user(ROOT / "scripts") as (lab, ugro):
        measures = {
            "inv launch": lambda: launched(ugro, flags),
            "by hand": lambda: by_hand(lab, flags),
        }
        figures = in_turn(measures, rounds)
    title = f"characters a second of train_single_test.py, three hosts, {rounds} rounds, {os.cpu_count()} cores"
    table(title, figures, "inv launch", "/s")


if __name__ == "__main__":
    run(parser(), main)
