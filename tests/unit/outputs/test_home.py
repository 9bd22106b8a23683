"""What counts as home: every stream of every attempt, and every file."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.unit.ended import EndedJob
from ugro_tasks.errors import NodeFault, UgroError
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import Attempt
from ugro_tasks.outputs.clean import Cleaning, Wish, clean

NODES = ("gpu0", "gpu1", "gpu2")


@pytest.fixture
def job(tmp_path: Path) -> EndedJob:
    """A job of one node that has ended."""
    return EndedJob(tmp_path, ranks=1)


@pytest.fixture
def restarted(tmp_path: Path) -> EndedJob:
    """A job of two attempts; of the second all is here, of the first not."""
    made = EndedJob(tmp_path, attempts=2)
    for rank in made.ranks:
        write_stream(made, rank, "log", b"first attempt\n", made.attempts[0])
        write_stream(made, rank, "log", b"second\n")
        made.home.log(rank).append_stream(b"first second\n")
    names = {f"log {rank}": 6 for rank in made.ranks}
    bases = {**names, "metrics": 0, **{f"gpu {node}": 0 for node in NODES}}
    attempts = tuple(
        Attempt(
            number=number,
            nodes=NODES,
            began_at=1.0,
            bases=bases if number == 2 else {},
            ran=True,
            gathered=number == 2,
            ended_at=2.0,
        )
        for number in (1, 2)
    )
    made.end(Phase.SUCCEEDED, attempts=attempts)
    return made


def write_stream(
    job: EndedJob, rank: int, name: str, content: bytes, attempt: str | None = None
) -> None:
    """Let a rank's stream have these bytes on its node."""
    (job.folder(rank, attempt) / name).write_bytes(content)


def cleaned(job: EndedJob, *, at_home: bool = False, dry_run: bool = False) -> Cleaning:
    found, errors = clean(
        job.experiments, job.cluster, Wish(at_home=at_home, dry_run=dry_run)
    )
    assert errors == []
    return found


def sample(node: str, number: int) -> bytes:
    return json.dumps({"time": number, "node": node}).encode() + b"\n"


# ---- gather ----


def test_the_rest_of_each_stream_comes_before_a_job_counts_as_gathered(
    job: EndedJob,
) -> None:
    lines = b"".join(sample("gpu0", number) for number in range(50))
    write_stream(job, 0, "log", b"to the \xff end\n" * 40_000)
    write_stream(job, 0, "gpu.jsonl", lines)
    write_stream(job, 0, "output/metrics.jsonl", b'{}\n{"loss": 1}\n')
    job.home.log(0).append_stream(b"to the \xff")
    job.home.gpu.append_lines(lines[: len(sample("gpu0", 1))])
    job.gather()
    assert job.home.log(0).read() == b"to the \xff end\n" * 40_000
    assert job.home.gpu.read() == lines
    assert job.home.metrics.read() == b'{}\n{"loss": 1}\n'
    assert job.home.state().gathered_at


def test_half_a_line_of_samples_is_not_waited_for(job: EndedJob) -> None:
    job.end(Phase.SUCCEEDED, gathered_at=1.0)
    write_stream(job, 0, "gpu.jsonl", sample("gpu0", 1) + b'{"half')
    job.gather()
    assert job.home.gpu.read() == sample("gpu0", 1)
    assert len(cleaned(job).removals) == 1


def test_samples_of_two_nodes_are_counted_by_their_node(tmp_path: Path) -> None:
    job = EndedJob(tmp_path, ranks=2)
    for rank in job.ranks:
        lines = [sample(f"gpu{rank}", number) for number in range(rank + 3)]
        write_stream(job, rank, "gpu.jsonl", b"".join(lines))
        job.home.gpu.append_lines(lines[0])
    job.gather()
    assert len(job.home.gpu.read().splitlines()) == 7
    job.gather()
    assert len(job.home.gpu.read().splitlines()) == 7


def test_two_gathers_at_once_write_no_byte_twice(job: EndedJob) -> None:
    content = b"a line of a log\n" * 200_000
    write_stream(job, 0, "log", content)
    threads = [threading.Thread(target=job.gather) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert job.home.log(0).read() == content


def test_of_an_attempt_before_the_last_the_rest_is_put_beside_the_streams(
    restarted: EndedJob,
) -> None:
    restarted.write(1, "notes.txt", b"of the last")
    first = restarted.folder(1, restarted.attempts[0]) / "output"
    (first / "notes.txt").write_bytes(b"of the first")
    (first / "only.txt").write_bytes(b"of the first")
    restarted.gather()
    late = restarted.home.folder / "logs" / "late" / "attempt1_rank1.log"
    assert late.read_bytes() == b"attempt\n"
    assert restarted.home.log(1).read() == b"first second\n"
    outputs = restarted.home.outputs.of(1).path
    assert (outputs / "notes.txt").read_bytes() == b"of the last"
    assert (outputs / "only.txt").read_bytes() == b"of the first"
    assert restarted.home.state().gathered_at
    restarted.gather()
    assert late.read_bytes() == b"attempt\n"
    assert len(cleaned(restarted).removals) == 6


def test_a_folder_that_is_gone_is_said_and_the_job_is_not_gathered(
    restarted: EndedJob,
) -> None:
    folder = restarted.folder(2, restarted.attempts[0])
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(NodeFault, match=r"gpu2: attempt 1: .* is gone"):
        restarted.gather()
    assert restarted.home.state().gathered_at is None


# ---- clean ----


@pytest.mark.parametrize("stream", ["log", "output/metrics.jsonl", "gpu.jsonl"])
def test_a_folder_with_more_of_a_stream_than_is_here_stays(
    job: EndedJob, stream: str
) -> None:
    job.end(Phase.FAILED, gathered_at=1.0)
    write_stream(job, 0, stream, sample("gpu0", 1))
    for dry_run in (True, False):
        found = cleaned(job, dry_run=dry_run)
        assert found.removals == []
        assert "more is there than here" in found.stays[0].reason
    assert job.folder(0).exists()
    job.gather()
    assert len(cleaned(job).removals) == 1
    assert not job.folder(0).exists()


@pytest.mark.parametrize("name", ["new", "deep/down/new", "with\nline feed", "\udcff"])
@pytest.mark.parametrize("content", [b"", b"x"])
def test_a_folder_with_a_file_that_is_not_here_stays(
    job: EndedJob, name: str, content: bytes
) -> None:
    job.write(0, "artifacts/model.bin", b"model")
    job.gather()
    path = job.write(0, name, content)
    assert cleaned(job).removals == []
    assert path.exists()
    job.gather()
    assert len(cleaned(job).removals) == 1


def test_a_folder_with_a_file_that_has_grown_stays(job: EndedJob) -> None:
    path = job.write(0, "artifacts/model.bin", b"model")
    job.gather()
    path.write_bytes(b"more of the model")
    assert "artifacts/model.bin" in cleaned(job).stays[0].reason
    assert path.exists()


def test_of_several_folders_only_what_is_here_goes(tmp_path: Path) -> None:
    job = EndedJob(tmp_path)
    job.gather()
    job.write(1, "new", b"x")
    found = cleaned(job)
    assert [removal.where for removal in found.removals] == ["gpu0", "gpu2"]
    assert found.stays[0].reason.startswith("gpu1: ")
    assert job.home.state().cleaned == ("gpu0", "gpu2")


def test_checkpoints_removed_here_on_purpose_do_not_keep_a_folder(
    job: EndedJob,
) -> None:
    for step in (10, 20, 30):
        job.write_checkpoint(0, step, b"weights", ranks=(0,))
    job.gather()
    found = cleaned(job, at_home=True)
    assert {removal.where for removal in found.removals} == {"home", "gpu0"}
    assert not job.folder(0).exists()


def test_what_cannot_be_compared_stays(
    job: EndedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> list[str]:
        raise UgroError("it broke off")

    job.gather()
    monkeypatch.setattr("ugro_tasks.outputs.home.missing_outputs", fail)
    assert "cannot be compared" in cleaned(job).stays[0].reason
    assert job.folder(0).exists()


def test_a_job_gathered_by_an_earlier_version_is_compared_as_well(
    restarted: EndedJob,
) -> None:
    state = restarted.home.state()
    restarted.home.save_state(replace(state, gathered_at=1.0))
    kept = {stay.reason.partition(":")[0] for stay in cleaned(restarted).stays}
    assert kept == set(NODES)
    assert all(restarted.folder(r, restarted.attempts[0]).exists() for r in range(3))
