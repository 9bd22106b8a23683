"""`inv status` with 10,000 experiments beside `ls`, `inv logs` on a log of 1 GB beside `tail`."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks.command import add_rounds, make_parser, run, whole
from benchmarks.common import in_turn, machine, quietly, seconds, table
from tests.unit.factories import make_cluster, make_record
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import JobState, RankState


def fill(root: Path, jobs: int, log_bytes: int) -> Experiment:
    """Write jobs that have ended; give the newest, whose first rank has printed so much."""
    cluster = make_cluster(root)
    begun = 1_760_000_000
    (root / "cluster.yaml").write_text(
        "cluster: {name: lab, master: {hostname: gpu0, ip: 10.0.0.1}}\n"
        "workers: [{name: gpu1, ip: 10.0.0.2}, {name: gpu2, ip: 10.0.0.3}]\n"
    )
    experiments = Experiments(root / "experiments")
    experiments.make_folder()
    ranks = tuple(
        RankState(rank=rank, node=f"gpu{rank}", exit_code=0) for rank in range(3)
    )
    for number in range(jobs):
        at = begun + 60 * number
        experiment = Experiment(
            experiments.folder
            / f"exp{number % 100}_{time.strftime('%Y%m%d_%H%M%S', time.gmtime(at))}"
        )
        (experiment.folder / "logs").mkdir(parents=True)
        record = msgspec.structs.replace(
            make_record(cluster, name=experiment.name), job_id=experiment.job_id
        )
        state = JobState(
            phase=Phase.SUCCEEDED,
            submitted_at=at,
            started_at=at + 1,
            ended_at=at + 50,
            ranks=ranks,
            gathered_at=at + 51,
        )
        experiment.save_record(record)
        experiment.save_state(state)
        experiments.add_to_history(experiment, record, state)
    line = b"step %07d loss 2.34567 grad_norm 0.98765 learning_rate 0.0002 tokens_per_second 12345.6\n"
    with experiment.log(0).path.open("wb") as log:
        block = b"".join(line % step for step in range(100_000))
        while log.tell() < log_bytes:
            log.write(block)
    return experiment


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    made = make_parser("listing", __doc__)
    add_rounds(made)
    made.add_argument(
        "--jobs", type=whole(1), default=10_000, help="how many experiments there are"
    )
    made.add_argument(
        "--megabytes", type=whole(1), default=1000, help="the log of the newest"
    )
    return made


def main(rounds: int, jobs: int, megabytes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="ugro-bench-") as folder:
        root = Path(folder)
        newest = fill(root, jobs, megabytes * 1_000_000)
        environ = {**os.environ, "UGRO_CLUSTER": str(root / "cluster.yaml")}

        def inv(*words: str) -> float:
            return seconds(
                lambda: quietly(
                    [sys.executable, "-m", "ugro_tasks.cli.program", *words], environ
                )
            )

        def program(*words: str) -> float:
            return seconds(
                lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            )

        figures = in_turn(
            {
                "inv status": lambda: inv("status"),
                "inv --version": lambda: inv("--version"),
                "ls -lt": lambda: program("ls", "-lt", str(root / "experiments")),
            },
            rounds,
        )
        table(
            f"status with {jobs} experiments, {rounds} rounds, {machine()}",
            figures,
            "inv status",
        )
        figures = in_turn(
            {
                "inv logs": lambda: inv("logs", newest.job_id),
                "inv --version": lambda: inv("--version"),
                "tail -n 50": lambda: program("tail", "-n", "50", str(newest.log(0))),
            },
            rounds,
        )
        table(
            f"logs of {megabytes / 1000:g} GB, {rounds} rounds, {machine()}",
            figures,
            "inv logs",
        )


if __name__ == "__main__":
    run(parser(), main)
