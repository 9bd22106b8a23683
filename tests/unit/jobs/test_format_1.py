"""An experiments folder of the first format, recorded from UGRO d8df41d on two hosts: read, adopted, gone on with.

The recording is {path: content}; paths of that machine are replaced, and logs are cut off after six lines.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ugro_tasks.errors import NotSigned
from ugro_tasks.jobs.adoption import adopt, would_adopt
from ugro_tasks.jobs.checkpoints import resume_from
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.reports.logs import log_tails
from ugro_tasks.reports.results import results
from ugro_tasks.reports.status import all_jobs, one_job

RECORDING = Path(__file__).parents[1] / "recordings" / "format_1.json"
STATES = {
    "stopped": Phase.STOPPED,
    "refused": Phase.REFUSED,
    "resumed": Phase.SUCCEEDED,
    "again": Phase.FAILED,
    "exp1": Phase.SUCCEEDED,
}
CHECKPOINTS = ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


@pytest.fixture
def experiments(tmp_path: Path) -> Experiments:
    """Return the folder as it was."""
    for name, content in json.loads(RECORDING.read_text()).items():
        path = tmp_path / "experiments" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Experiments(tmp_path / "experiments")


def contents(experiments: Experiments) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in experiments.folder.rglob("*")
        if path.is_file()
    }


def test_all_is_read_and_nothing_is_changed_by_that(experiments: Experiments) -> None:
    before = contents(experiments)
    rows = all_jobs(experiments, None)
    assert [row.state.phase for row in rows if row.state] == list(STATES.values())
    for job in experiments.all():
        assert one_job(job, live=False).state.phase is STATES[job.name]
        found = results(job)
        if job.name == "refused":
            continue
        assert found.metrics.best["loss"].step == 3
        assert found.metrics.unreadable_lines == 0
        assert [(row.name, row.whole) for row in found.checkpoints] == [
            (name, True) for name in CHECKPOINTS
        ]
        assert all(
            "rank" in "".join(lines) for lines in log_tails(job, None, 10).values()
        )
    assert experiments.to_supervise() == ([], {})
    assert contents(experiments) == before


def test_compared_are_what_was_asked_for_and_what_came_of_it(
    experiments: Experiments,
) -> None:
    found = {}
    for job in experiments.all():
        record = job.record()
        metrics = results(job).metrics
        best = metrics.best["loss"].value if metrics.best else None
        found[job.name] = (record.learning_rate, best, job.state().exit_code)
    assert found == {
        "exp1": (0.3, pytest.approx(1.029), 0),
        "resumed": (0.3, pytest.approx(1.029), 0),
        "again": (0.003, pytest.approx(2.973, abs=0.1), 7),
        "stopped": (0.003, pytest.approx(2.973, abs=0.1), 130),
        "refused": (0.003, None, 5),
    }


def test_a_job_is_gone_on_with_only_after_it_was_adopted(
    experiments: Experiments,
) -> None:
    for name in ("exp1", "again", "resumed", "stopped"):
        job = experiments.find(name)
        with pytest.raises(NotSigned, match=r"agent\.adopt"):
            job.signed_record()
        adopt(job, would_adopt(job))
        assert (job.record().format, job.state().format) == (2, 2)
        assert resume_from(job).checkpoint == "checkpoint-3"
        assert [(row.name, row.whole) for row in results(job).checkpoints] == [
            (name, True) for name in CHECKPOINTS
        ]
        assert (job.folder / "outputs/1/checkpoints/checkpoint-3/rank1.bin").is_file()
        assert str((job.folder / "checkpoints").readlink()) == "outputs/0/checkpoints"
