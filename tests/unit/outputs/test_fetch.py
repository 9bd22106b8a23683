"""What the ranks wrote comes home, whole or told what is missing."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.unit.ended import EndedJob, small_disk
from ugro_tasks.errors import HostError, RecordError
from ugro_tasks.jobs.checkpoints import fetched_checkpoints
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import Attempt
from ugro_tasks.node.tree import PARTIAL_FOLDER

MIB = 1 << 20


@pytest.fixture
def job(tmp_path: Path) -> EndedJob:
    return EndedJob(tmp_path)


def test_what_the_ranks_wrote_comes_home_and_is_marked_so(job: EndedJob) -> None:
    job.write(0, "artifacts/model.bin", b"model")
    job.write(2, "notes.txt", b"of rank 2")
    before = time.time()
    assert job.gather() == []
    assert (job.home.folder / "artifacts" / "model.bin").read_bytes() == b"model"
    assert (
        job.home.folder / "outputs" / "2" / "notes.txt"
    ).read_bytes() == b"of rank 2"
    assert not (job.home.folder / "outputs" / "1").exists()
    assert (job.home.state().gathered_at or 0) >= before


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.STOPPING])
def test_a_job_that_runs_is_gathered_as_far_as_it_is_but_not_marked(
    job: EndedJob, phase: Phase
) -> None:
    job.end(phase)
    job.write(0, "tensorboard/events", b"so far")
    job.gather()
    assert (job.home.folder / "tensorboard" / "events").read_bytes() == b"so far"
    assert job.home.state().gathered_at is None
    assert not (job.home.outputs.of(0).path / "metrics.jsonl").exists()  # a stream


def test_a_job_that_never_ran_has_nothing_to_gather(job: EndedJob) -> None:
    job.home.save_record(msgspec.structs.replace(job.home.record(), plan=None))
    with pytest.raises(RecordError, match="never ran"):
        job.gather()


def test_where_the_end_is_not_proven_the_node_is_asked(job: EndedJob) -> None:
    job.end(Phase.FAILED, proven_gone=False)
    environment = {"UGRO_TOKEN": job.token(1), "PATH": os.environ["PATH"]}
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        with pytest.raises(HostError, match="gpu1: rank 1 still runs there"):
            job.gather()
        process.kill()
    assert job.home.state().gathered_at is None
    job.gather()
    assert job.home.state().gathered_at


def test_a_node_without_the_folder_is_an_error_and_the_others_are_gathered(
    job: EndedJob,
) -> None:
    job.write(0, "artifacts/model.bin", b"model")
    job.folder(1).rename(job.folder(1).with_name("away"))
    with pytest.raises(HostError, match=r"gpu1: .*folder there is gone"):
        job.gather()
    assert (job.home.folder / "artifacts" / "model.bin").exists()
    assert job.home.state().gathered_at is None


def test_of_a_restart_that_never_ran_the_attempt_before_is_gathered(
    job: EndedJob,
) -> None:
    record, attempts = job.home.record(), []
    assert record.plan
    for number, ran in ((1, True), (2, False)):
        attempts.append(
            Attempt(
                number=number,
                nodes=("gpu0", "gpu1", "gpu2"),
                began_at=1.0,
                bases={},
                ran=ran,
                ended_at=2.0,
            )
        )
    nodes = tuple(
        msgspec.structs.replace(node, folder=f"{node.folder}-2")
        for node in record.plan.nodes
    )
    plan = msgspec.structs.replace(record.plan, nodes=nodes, attempt=2)
    job.home.save_record(msgspec.structs.replace(record, plan=plan))
    job.end(Phase.FAILED, attempts=tuple(attempts))
    job.write(2, "notes.txt", b"of the attempt before")
    job.gather()
    assert (
        job.home.folder / "outputs" / "2" / "notes.txt"
    ).read_bytes() == b"of the attempt before"
    assert job.home.state().gathered_at


def test_a_node_that_was_cleaned_is_not_asked(job: EndedJob) -> None:
    job.folder(1).rename(job.folder(1).with_name("away"))
    job.end(Phase.SUCCEEDED, cleaned=("gpu1",))
    assert job.gather() == ["gpu1"]
    job.end(Phase.SUCCEEDED, cleaned=("gpu0", "gpu1", "gpu2"))
    assert job.gather() == ["gpu0", "gpu1", "gpu2"]


# ---- checkpoints ----


def test_checkpoints_come_by_the_mirror_and_their_manifests_only_by_it(
    job: EndedJob,
) -> None:
    for rank in range(3):
        job.write_checkpoint(rank, 50, b"weights")
    job.write(0, "checkpoints/torn.manifest.json", b"{")
    job.write(0, "checkpoints/last.pt", b"without a manifest")
    with pytest.raises(HostError, match="manifest"):
        job.gather()
    (job.folder(0) / "output" / "checkpoints" / "torn.manifest.json").unlink()
    job.gather()
    [checkpoint] = fetched_checkpoints(job.home)
    assert (checkpoint.name, checkpoint.missing) == ("checkpoint-50", None)
    assert (job.home.outputs.checkpoints(0).path / "last.pt").exists()
    assert not (job.home.outputs.checkpoints(0).path / "torn.manifest.json").exists()


def test_while_a_job_runs_no_manifest_comes_that_the_mirror_has_not_brought(
    job: EndedJob,
) -> None:
    job.write_checkpoint(0, 50, b"weights")
    job.end(Phase.RUNNING)
    job.gather()
    assert fetched_checkpoints(job.home) == []


def test_what_the_mirror_has_brought_is_not_pulled_again(job: EndedJob) -> None:
    for rank in range(3):
        job.write_checkpoint(rank, 50, b"weights")
    job.gather()
    stored = job.home.outputs.checkpoints(0).path / "checkpoint-50" / "rank0.bin"
    stored.write_bytes(b"at home")  # as long as it was, but newer
    job.end(Phase.RUNNING)
    job.gather()
    assert stored.read_bytes() == b"at home"


# ---- in doubt ----


@pytest.mark.parametrize(
    "name", ["artifacts/model.bin", "checkpoints/checkpoint-50/rank0.bin"]
)
def test_verify_finds_what_size_and_time_do_not_show(job: EndedJob, name: str) -> None:
    for rank in range(3):
        job.write_checkpoint(rank, 50, b"weights")
    job.write(0, "artifacts/model.bin", b"weights")
    job.gather()
    path = job.home.folder / name
    facts = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    job.gather()
    assert path.read_bytes() == b"WEIGHTS"
    job.gather(verify=True)
    assert path.read_bytes() == b"weights"


# ---- a full disk ----


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The experiments folder, on a disk of 8 MiB."""
    with small_disk(tmp_path / "experiments", mebibytes=8) as folder:
        yield folder


@pytest.mark.parametrize("checkpoint", [False, True], ids=["outputs", "checkpoints"])
def test_a_full_disk_here_is_one_error_and_a_second_gather_completes(
    disk: Path, tmp_path: Path, checkpoint: bool
) -> None:
    job = EndedJob(tmp_path)
    content = os.urandom(6 * MIB)
    for rank in range(3):
        if checkpoint:
            job.write_checkpoint(rank, 50, content)
        else:
            job.write(rank, "artifacts/model.bin", content)
    with pytest.raises(RecordError, match="No space left on device") as caught:
        job.gather()
    words = caught.value.text
    assert str(job.home.folder) in words
    assert " MiB free" in words
    assert re.search(r"gpu\d has \d\.\d MiB more", words)
    assert f"inv gather {job.home.job_id}" in words
    assert len(words.splitlines()) == 2
    assert job.home.state().gathered_at is None
    assert not any(c.missing is None for c in fetched_checkpoints(job.home))
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    job.gather()
    assert job.home.state().gathered_at
    name = (
        f"checkpoints/checkpoint-50/rank{2}.bin"
        if checkpoint
        else "artifacts/model.bin"
    )
    assert (job.home.folder / "outputs" / "2" / name).read_bytes() == content
    assert list(job.home.folder.rglob(PARTIAL_FOLDER)) == []
