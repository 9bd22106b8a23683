"""Which checkpoints at home are whole, and what a hostile manifest is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.factories import make_cluster, make_record
from ugro_tasks.errors import UsageError
from ugro_tasks.jobs.checkpoints import (
    fetched_checkpoints,
    metrics_until,
    newest_whole,
    read_manifest,
    resume_from,
)
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import JobState


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    made = Experiment(tmp_path / "exp1_20260120_120000")
    made.folder.mkdir()
    made.save_record(make_record(make_cluster(tmp_path)))
    made.save_state(JobState(phase=Phase.STOPPED))
    return made


def manifest(
    step: int, rank: int, files: dict[str, bytes], **changes: Any
) -> dict[str, Any]:
    parts = {
        path: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()}
        for path, b in files.items()
    }
    name = f"checkpoint-{step}"
    return {
        "checkpoint": name,
        "step": step,
        "rank": rank,
        "ranks": [0, 1],
        "files": parts,
        **changes,
    }


def keep(
    experiment: Experiment,
    step: int,
    *,
    ranks: tuple[int, ...] = (0, 1),
    **changes: Any,
) -> None:
    """A checkpoint of two ranks as the mirror leaves it at home: what both have lies with rank 0."""
    name = f"checkpoint-{step}"
    shared = {f"{name}/model.bin": b"weights %d" % step}
    for rank in ranks:
        own = {f"{name}/rng_{rank}": b"state %d" % rank}
        folder = experiment.outputs.checkpoints(rank).path
        for path, content in {**own, **(shared if rank == 0 else {})}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        stored = experiment.outputs.manifest(rank, name)
        stored.parent.make()
        told = json.dumps(manifest(step, rank, {**shared, **own}, **changes))
        stored.replace(told.encode())


def test_the_newest_whole_checkpoint_is_taken(experiment: Experiment) -> None:
    keep(experiment, 5)
    keep(experiment, 10)
    keep(experiment, 15, ranks=(0,))
    passed: list[str] = []
    found = newest_whole(experiment, passed.append)
    assert found
    assert found.name == "checkpoint-10"
    assert found.size_bytes == len(b"weights 10") + 2 * len(b"state 0")
    assert passed == ["checkpoint-15 is not whole: the part of rank 1 has not come"]


def test_the_one_that_is_farthest_in_the_data_is_taken(experiment: Experiment) -> None:
    """With three ranks a step goes farther than with the two that were left before."""
    keep(experiment, 140, epoch=2.0)
    keep(experiment, 120, epoch=2.5)
    assert [checkpoint.step for checkpoint in fetched_checkpoints(experiment)] == [
        140,
        120,
    ]
    keep(experiment, 130)  # of a script that tells no epochs
    assert [checkpoint.step for checkpoint in fetched_checkpoints(experiment)] == [
        120,
        130,
        140,
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_with_a_changed_byte_is_passed_over(
    experiment: Experiment, rank: int
) -> None:
    keep(experiment, 5)
    keep(experiment, 10)
    folder = experiment.outputs.checkpoints(rank)
    file = folder.file(f"checkpoint-10/rng_{rank}").path
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    found = newest_whole(experiment, lambda _: None)
    assert found
    assert found.name == "checkpoint-5"


def test_parts_of_two_different_saves_make_no_checkpoint(
    experiment: Experiment,
) -> None:
    keep(experiment, 10)
    path = experiment.outputs.manifest(1, "checkpoint-10").path
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 11}))
    assert [checkpoint.missing for checkpoint in fetched_checkpoints(experiment)] == [
        "the part of rank 1 has not come"
    ]


def test_a_job_that_runs_cannot_be_resumed(experiment: Experiment) -> None:
    keep(experiment, 5)
    experiment.save_state(
        msgspec.structs.replace(experiment.state(), phase=Phase.RUNNING)
    )
    with pytest.raises(UsageError, match="is not finished"):
        resume_from(experiment)


def test_without_a_whole_checkpoint_the_reason_is_told(experiment: Experiment) -> None:
    keep(experiment, 5, ranks=(0,))
    with pytest.raises(UsageError, match="the part of rank 1 has not come"):
        resume_from(experiment)


def test_the_metrics_up_to_a_step_go_along(experiment: Experiment) -> None:
    experiment.metrics.path.write_text(
        '{"step": 1}\n{"step": 2, "loss": NaN}\n3\ngarbage\n{"step": 3}\n{"step": 2}\n'
    )
    assert (
        metrics_until(experiment, 2)
        == b'{"step": 1}\n{"step": 2, "loss": NaN}\n{"step": 2}\n'
    )


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "../x"},
        {"checkpoint": ".."},
        {"checkpoint": ""},
        {"rank": -1},
        {"ranks": [0, 10**9]},
        {"files": {"checkpoint-5/../../x": {"bytes": 1, "sha256": "a"}}},
        {"files": {"/proc/version": {"bytes": 1, "sha256": "a"}}},
        {"files": {"checkpoint-6/x": {"bytes": 1, "sha256": "a"}}},
        {"files": {"checkpoint-5//x": {"bytes": 1, "sha256": "a"}}},
        {"files": {"checkpoint-5/x\0": {"bytes": 1, "sha256": "a"}}},
        {"files": {"checkpoint-5/y.manifest.json": {"bytes": 1, "sha256": "a"}}},
        {"files": [1]},
        {"step": "five"},
    ],
)
def test_a_manifest_that_points_elsewhere_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^it"):
        read_manifest(json.dumps({**manifest(5, 0, {}), **change}).encode())
