"""From what a user says to the spec of a job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.unit.factories import make_cluster, make_record, make_scripts
from ugro_tasks.cluster.model import Cluster
from ugro_tasks.errors import JobNotFound, UsageError
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.spec import Resume
from ugro_tasks.launch import spec as launch_spec
from ugro_tasks.launch.spec import spec_from


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    make_scripts(tmp_path / "scripts")
    return make_cluster(tmp_path)


@pytest.mark.parametrize(
    ("name", "script", "called"),
    [
        (None, None, "train_production"),
        (None, "nets/train.py", "train"),
        ("exp1", "train.py", "exp1"),
    ],
)
def test_a_job_without_a_name_is_called_after_its_script(
    cluster: Cluster, name: str | None, script: str | None, called: str
) -> None:
    assert spec_from(cluster, name, script=script).name == called


@pytest.mark.parametrize("env", [{"A": "1=2", "B": ""}, ["A=1=2", "B="]])
def test_variables_are_a_mapping_or_pairs(
    cluster: Cluster, env: Mapping[str, str] | Iterable[str]
) -> None:
    assert spec_from(cluster, env=env).env == {"A": "1=2", "B": ""}


def test_what_is_said_counts_and_the_rest_is_the_cluster_files(
    cluster: Cluster,
) -> None:
    spec = spec_from(
        cluster, args="--a 'b c'", epochs=7, settings=["training.seed=3"], force=True
    )
    assert (spec.args, spec.epochs, spec.force) == (("--a", "b c"), 7, True)
    assert (spec.model, spec.learning_rate) == ("unsloth/tinyllama-bnb-4bit", 2e-4)
    assert spec.settings["training"]["seed"] == 3
    assert spec.settings["training"]["num_epochs"] == 7


def test_a_resumed_job_keeps_what_it_had_where_nothing_else_is_said(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record(cluster, args=("--x",), env={"A": "1", "B": "2"})
    Experiments(cluster.experiments).create(record, cluster.scripts)
    here = Resume(job_id="exp1", checkpoint="checkpoint-5", step=5)
    monkeypatch.setattr(launch_spec, "resume_from", lambda _source: here)
    spec = spec_from(cluster, resume="exp1", env={"B": "3"})
    assert (spec.name, spec.script, spec.args) == ("exp1", "train.py", ("--x",))
    assert (spec.env, spec.resume) == ({"A": "1", "B": "3"}, here)
    assert spec_from(cluster, "more", resume="exp1", args="").args == ()


def test_a_job_to_resume_must_be_there_and_have_ended(cluster: Cluster) -> None:
    with pytest.raises(JobNotFound):
        spec_from(cluster, resume="exp1")
    Experiments(cluster.experiments).create(make_record(cluster), cluster.scripts)
    with pytest.raises(UsageError, match="is not finished"):
        spec_from(cluster, resume="exp1")


def test_what_cannot_be_read_is_told_by_its_flag(cluster: Cluster) -> None:
    with pytest.raises(UsageError, match="quote it as for a shell"):
        spec_from(cluster, args="'open")
    with pytest.raises(UsageError, match="--env NOVALUE: use KEY=VALUE"):
        spec_from(cluster, env=["NOVALUE"])
