"""The training scripts, run as a node runs them: by the training environment's own interpreter."""

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ports import reserved_port
from tests.training.ranks import clean_environment

# Each process imports torch, which on a machine with other work takes a while.
pytestmark = pytest.mark.timeout(600)

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = REPOSITORY / "scripts" / "train_single_test.py"
MEASURE = REPOSITORY / "scripts" / "measure_allreduce.py"
SMALL = [
    "--width",
    "16",
    "--batch-size",
    "4",
    "--context",
    "32",
    "--steps-per-epoch",
    "12",
]
DEADLINE_SECONDS = 180


@pytest.fixture(scope="session")
def two_epochs(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of two epochs on two ranks under torchrun."""
    output = tmp_path_factory.mktemp("two_epochs")
    done = torchrun(training_python, output, TRAIN, *SMALL, "--num-epochs", "2")
    assert done.returncode == 0, done.stderr
    return output


def environment(output: Path) -> dict[str, str]:
    return clean_environment(UGRO_OUTPUT_DIR=str(output))


def plain(
    python: str, output: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    command = [python, str(TRAIN), *arguments]
    return subprocess.run(
        command,
        env=environment(output),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


def torchrun(
    python: str, output: Path, script: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    # Else torchrun leaves a folder among the temporary ones.
    command += ["--log-dir", str(output / "torchrun")]
    with reserved_port() as port:
        return subprocess.run(
            [
                *command,
                "--master-addr",
                "127.0.0.1",
                "--master-port",
                str(port),
                str(script),
                *arguments,
            ],
            env=environment(output),
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )


@contextmanager
def two_ranks(
    python: str, output: Path, *arguments: str
) -> Iterator[list[subprocess.Popen[str]]]:
    """Two ranks without torchrun between them and the test, which so sees each one's exit code."""
    with reserved_port() as port:
        meeting = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        ranks = [
            subprocess.Popen(
                [python, str(TRAIN), *arguments],
                env={**environment(output), **meeting, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            yield ranks
        finally:
            for rank in ranks:
                rank.kill()
                rank.communicate()


def metrics(output: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()
    ]


def wait_for_first_step(output: Path) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (output / "metrics.jsonl").exists():
        assert time.monotonic() < deadline, "no step was logged"
        time.sleep(0.05)


def test_two_ranks_leave_checkpoints_and_a_sample(two_epochs: Path) -> None:
    checkpoints = sorted(
        path.name for path in (two_epochs / "checkpoints").glob("*.pt")
    )
    assert checkpoints == ["epoch_1.pt", "epoch_2.pt"]
    assert (two_epochs / "artifacts" / "sample.txt").stat().st_size > 100


def test_a_manifest_vouches_for_each_checkpoint(two_epochs: Path) -> None:
    folder = two_epochs / "checkpoints"
    assert json.loads((folder / "epoch_2.pt.manifest.json").read_text()) == {
        "checkpoint": "epoch_2.pt",
        "step": 24,
        "epoch": 2.0,
        "rank": 0,
        "ranks": [0],
        "world_size": 2,
        "files": {
            "epoch_2.pt": {
                "bytes": (folder / "epoch_2.pt").stat().st_size,
                "sha256": hashlib.sha256(
                    (folder / "epoch_2.pt").read_bytes()
                ).hexdigest(),
            }
        },
    }
    assert {path.name for path in folder.iterdir()} == {
        name + end
        for name in ("epoch_1.pt", "epoch_2.pt")
        for end in ("", ".manifest.json")
    }


def test_metrics_hold_one_complete_object_a_logged_step(two_epochs: Path) -> None:
    lines = metrics(two_epochs)
    assert [line["step"] for line in lines] == [1, 5, 10, 15, 20, 24]
    assert set(lines[0]) == {
        "step",
        "total_steps",
        "epoch",
        "total_epochs",
        "loss",
        "learning_rate",
        "tokens_per_second",
        "elapsed_seconds",
        "time",
    }
    assert (
        lines[-1]["epoch"],
        lines[-1]["total_epochs"],
        lines[-1]["total_steps"],
    ) == (2, 2, 24)


def test_loss_falls_from_that_of_guessing(training_python: str, tmp_path: Path) -> None:
    done = plain(
        training_python, tmp_path, "--num-epochs", "1", "--learning-rate", "0.01"
    )
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path)
    assert lines[0]["loss"] > 4.0  # ln(61 characters) is 4.1
    assert lines[-1]["loss"] < 2.6


def test_resumed_run_equals_the_uninterrupted_one(
    training_python: str, tmp_path: Path, two_epochs: Path
) -> None:
    first = torchrun(training_python, tmp_path, TRAIN, *SMALL, "--num-epochs", "1")
    second = torchrun(
        training_python,
        tmp_path,
        TRAIN,
        *SMALL,
        "--num-epochs",
        "2",
        "--resume",
        "latest",
    )
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    resumed = {line["step"]: line["loss"] for line in metrics(tmp_path)}
    for line in metrics(two_epochs):
        assert resumed[line["step"]] == pytest.approx(line["loss"], abs=1e-6)


def test_term_on_one_rank_saves_and_stops_all_with_143(
    training_python: str, tmp_path: Path
) -> None:
    endless = [*SMALL, "--num-epochs", "100000", "--save-every-epochs", "100000"]
    with two_ranks(training_python, tmp_path, *endless) as (first, second):
        wait_for_first_step(tmp_path)
        second.terminate()
        assert (first.wait(DEADLINE_SECONDS), second.wait(DEADLINE_SECONDS)) == (
            143,
            143,
        )
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.pt")
    done = metrics(tmp_path)[-1]["step"]
    suffix = f"_step_{done}" if done % 12 else ""
    assert checkpoint.name == f"epoch_{done // 12}{suffix}.pt"


def test_term_ends_a_rank_whose_peer_is_frozen(
    training_python: str, tmp_path: Path
) -> None:
    with two_ranks(training_python, tmp_path, *SMALL, "--num-epochs", "100000") as (
        first,
        second,
    ):
        wait_for_first_step(tmp_path)
        second.send_signal(signal.SIGSTOP)
        first.terminate()
        said, _ = first.communicate(timeout=DEADLINE_SECONDS)
    assert first.returncode == 143
    assert "no step in common" in said


def test_stopped_in_mid_epoch_resumes_at_its_step(
    training_python: str, tmp_path: Path
) -> None:
    long_epoch = ["--width", "16", "--steps-per-epoch", "100000", "--log-every", "1"]
    with two_ranks(training_python, tmp_path, *long_epoch) as (first, second):
        wait_for_first_step(tmp_path)
        first.terminate()
        assert (first.wait(DEADLINE_SECONDS), second.wait(DEADLINE_SECONDS)) == (
            143,
            143,
        )
    stopped = metrics(tmp_path)[-1]["step"]
    with two_ranks(
        training_python, tmp_path, *long_epoch, "--resume", "latest"
    ) as ranks:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(lines := metrics(tmp_path)) == stopped:
            assert time.monotonic() < deadline, "the resumed run logged no step"
            assert all(rank.poll() is None for rank in ranks), "the resumed run ended"
            time.sleep(0.05)
    assert lines[stopped]["step"] == stopped + 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset-name", "wikitext"], "unknown dataset 'wikitext'"),
        (["--dataset-name", "/"], "Is a directory"),
        (["--model-name", "llama-7b"], "unknown model 'llama-7b'"),
        (["--num-epochs", "0"], "must be at least 1"),
        (["--learning-rate", "fast"], "invalid float value"),
        (["--width", "30"], "cannot be divided"),
        (["--what"], "unrecognized arguments: --what"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_2(
    training_python: str, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = plain(training_python, tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_to_resume_is_one_line_and_exit_2(
    training_python: str, tmp_path: Path
) -> None:
    done = plain(training_python, tmp_path, "--resume", "latest")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "checkpoints") in done.stderr


def test_measure_allreduce_tells_of_the_ring_and_of_each_pair(
    training_python: str, tmp_path: Path
) -> None:
    done = torchrun(training_python, tmp_path, MEASURE)
    assert done.returncode == 0, done.stderr
    ring, pair = metrics(tmp_path)
    assert (ring["kind"], ring["backend"], len(ring["hosts"])) == (
        "allreduce",
        "gloo",
        2,
    )
    # With two ranks the bus carries exactly what the operation carries: 2 (n - 1) / n is 1.
    assert ring["bus_bandwidth_mb_per_second"] == ring["bandwidth_mb_per_second"] > 1
    assert 0 < ring["latency_us"] < 1e6
    assert (pair["kind"], pair["ranks"], len(pair["hosts"])) == ("pair", [0, 1], 2)
    assert 0 < pair["round_trip_ms"] < 1000
    assert pair["bandwidth_mb_per_second"] > 1
