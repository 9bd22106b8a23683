"""The Python interface: plain values in, data out, nothing printed, and nothing loaded before it is needed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.factories import make_record, make_scripts
from ugro_tasks import api
from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.errors import JobNotFound
from ugro_tasks.jobs.experiments import Experiments


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_scripts(tmp_path / "scripts")
    return tmp_path


def test_a_launch_is_called_after_its_script_and_takes_plain_values(
    folder: Path,
) -> None:
    spec, cluster = api.spec(
        cluster="local",
        nodes=["local0", "local2"],
        script="train.py",
        env={"A": "1,2"},
        epochs=2,
    )
    assert (spec.name, spec.env, spec.epochs) == ("train", {"A": "1,2"}, 2)
    assert [(node.name, node.rank) for node in cluster.nodes] == [
        ("local0", 0),
        ("local2", 1),
    ]
    assert api.spec("mine", cluster=cluster, script="train.py")[0].name == "mine"


def test_a_job_is_found_by_name_or_is_one_already(folder: Path) -> None:
    cluster = load_cluster("local")
    made = Experiments(cluster.experiments).create(
        make_record(cluster, name="exp1"), folder / "scripts"
    )
    found = api.find("exp1", "local")
    assert found.folder == made.folder
    assert api.find(found) is found
    assert [line.job_id for line in api.status("local")] == [made.job_id]
    assert api.logs("exp1", "local") == {}
    assert api.gather("exp1", "local", dry_run=True).nodes == (
        "local0",
        "local1",
        "local2",
    )


def test_a_job_that_is_none_is_a_plain_error(folder: Path) -> None:
    with pytest.raises(JobNotFound):
        api.stop("exp9", "local")


def test_nothing_is_loaded_before_it_is_needed() -> None:
    heavy = {"fabric", "invoke", "rich", "paramiko", "pydantic"}
    ask = f"import sys, ugro_tasks.api; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_task_may_follow_in_a_thread() -> None:
    from ugro_tasks.cli.interrupts import Interrupts

    pressed: list[bool] = []

    def follow() -> None:
        with Interrupts() as interrupts:
            pressed.append(interrupts.take())

    thread = threading.Thread(target=follow)
    thread.start()
    thread.join()
    assert pressed == [False]
