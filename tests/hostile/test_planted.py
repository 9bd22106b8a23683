"""Links, pipes and the like in each place of a job's folder: no command follows, waits, or writes elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.ended import EndedJob, store
from ugro_tasks.errors import UgroError
from ugro_tasks.jobs.checkpoints import resume_from
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.state import Event
from ugro_tasks.outputs.clean import Wish, clean
from ugro_tasks.outputs.gather import gather
from ugro_tasks.reports.logs import log_ends, log_tails
from ugro_tasks.reports.results import results
from ugro_tasks.reports.status import all_jobs, one_job

PLACES = [
    "config.json", ".config.json.copy", "state.json", ".state.json.copy", "events.jsonl", "metrics.jsonl", "gpu.jsonl",
    "stop", "code", "code/train.py", "logs", "logs/training_rank0.log", "manifests", "manifests/0",
    "manifests/0/checkpoint-2.json", "outputs", "outputs/0", "outputs/0/checkpoints",
    "outputs/0/checkpoints/checkpoint-2", "outputs/0/checkpoints/checkpoint-2/rank0", "checkpoints",
]  # fmt: skip
PATIENCE_SECONDS = 20


def link_to_file(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "victim")


def link_to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def link_to_the_job(path: Path, outside: Path) -> None:
    del outside
    path.symlink_to(".")


def dangling(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "new")


def pipe(path: Path, outside: Path) -> None:
    del outside
    os.mkfifo(path)


def other_sort(path: Path, outside: Path) -> None:
    """A folder where a file belongs, and a file where a folder belongs."""
    del outside
    if path.suffix:
        path.mkdir()
    else:
        path.write_bytes(b"no folder")


KINDS = [link_to_file, link_to_folder, link_to_the_job, dangling, pipe, other_sort]


def looked_at(job: EndedJob) -> None:
    one_job(job.home, live=False)
    all_jobs(job.experiments, None)
    log_tails(job.home, None, 10)
    log_ends(job.home)


def written(job: EndedJob) -> None:
    job.home.add_event(Event(time=1.0, message="x"))
    job.home.save_state(job.home.state())
    job.home.save_record(job.home.record())
    job.home.ask_to_stop()
    job.home.log(0).append_stream(b"x")
    job.home.gpu_bytes("gpu0")


STEPS: dict[str, Callable[[EndedJob], object]] = {
    "look": looked_at,
    "results": lambda job: results(job.home),
    "resume": lambda job: resume_from(job.home),
    "pack": lambda job: job.home.code_archive(),
    "write": written,
    "gather": lambda job: gather(job.home, lambda *_: None),
    "clean": lambda job: clean(job.experiments, job.cluster, Wish(at_home=True)),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> EndedJob:
    job = EndedJob(tmp_path_factory.mktemp("planted"), ranks=1)
    for step in (1, 2, 3):
        store(job.home, f"checkpoint-{step}", step, 0, (0,), rank0=b"weights")
    for file in (job.home.log(0), job.home.metrics, job.home.gpu):
        file.append_lines(b"{}\n")
    job.home.add_event(Event(time=1.0, message="x"))
    job.home.outputs.link_for_people()
    job.write(0, "artifacts/model.bin", b"model")
    job.write_checkpoint(0, 9, b"weights")
    shutil.copytree(job.home.folder, job.home.folder.parents[1] / "kept", symlinks=True)
    return job


@pytest.fixture
def job(pristine: EndedJob) -> Iterator[EndedJob]:
    """Return the job as it was, with a limit for whatever waits."""

    def too_long(*_: object) -> None:
        raise TimeoutError("it waits for something")

    folder = pristine.home.folder
    shutil.rmtree(folder)
    shutil.copytree(folder.parents[1] / "kept", folder, symlinks=True)
    pristine.home = Experiment(folder)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PATIENCE_SECONDS)
    yield pristine
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_planted_is_neither_followed_nor_waited_for(
    job: EndedJob, tmp_path: Path, place: str, kind: Callable[[Path, Path], None]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"precious")
    path = job.home.folder / place
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    kind(path, outside)
    for name, step in STEPS.items():
        try:
            step(job)
        except (UgroError, OSError) as error:
            assert not isinstance(error, TimeoutError), name
            assert str(error), name
        assert [entry.name for entry in outside.iterdir()] == ["victim"], name
        assert (outside / "victim").read_bytes() == b"precious", name
