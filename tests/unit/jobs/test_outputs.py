"""The outputs of ranks in a job's folder, in the present layout and in the one before format 2."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.unit.ended import EndedJob, store
from ugro_tasks.jobs.checkpoints import fetched_checkpoints, newest_whole
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.reports.results import results


@pytest.fixture
def job(tmp_path: Path) -> Experiment:
    return EndedJob(tmp_path).home


@pytest.fixture
def old(tmp_path: Path) -> Experiment:
    """Return a job of the old layout: three checkpoints of two ranks, and other outputs."""
    home = EndedJob(tmp_path).home
    for step in (10, 20):
        for rank in (0, 1):
            store(home, f"checkpoint-{step}", step, rank, (0, 1), weights=b"w" * rank)
    (home.folder / "outputs/0/artifacts").mkdir()
    (home.folder / "outputs/0/artifacts/model.bin").write_text("model")
    (home.folder / "outputs/0/.hidden").write_text("of the script")
    (home.folder / "outputs/1/notes.txt").write_text("of rank 1")
    for name in ("0", "1"):
        for stored in (home.folder / "manifests" / name).iterdir():
            checkpoints = home.folder / "outputs" / name / "checkpoints"
            stored.rename(checkpoints / f"{stored.stem}.manifest.json")
    shutil.rmtree(home.folder / "manifests")
    for path in (home.folder / "outputs/0").iterdir():
        path.rename(home.folder / path.name)
    (home.folder / "outputs/0").rmdir()
    (home.folder / "outputs").rename(home.folder / "ranks")
    return Experiment(home.folder)


def whole(experiment: Experiment) -> list[str]:
    found = fetched_checkpoints(experiment)
    return [checkpoint.name for checkpoint in found if not checkpoint.missing]


def test_an_old_folder_is_read_as_it_is(old: Experiment) -> None:
    before = sorted(path for path in old.folder.rglob("*"))
    assert whole(old) == ["checkpoint-10", "checkpoint-20"]
    newest = newest_whole(old, lambda _: None)
    assert newest
    assert newest.name == "checkpoint-20"
    [row, _] = results(old).checkpoints
    assert (row.path, row.ranks) == ("checkpoints/checkpoint-10", [0, 1])
    assert sorted(path for path in old.folder.rglob("*")) == before


def test_an_old_folder_is_changed_before_anything_is_fetched_into_it(
    old: Experiment,
) -> None:
    state = (old.folder / "state.json").read_bytes()
    old.outputs.make(2)
    for seen in (old, Experiment(old.folder)):
        assert whole(seen) == ["checkpoint-10", "checkpoint-20"]
        newest = newest_whole(seen, lambda _: None)
        assert newest
        assert seen.outputs.ranks() == [0, 1, 2]
    outputs = old.folder / "outputs"
    assert (outputs / "0/artifacts/model.bin").read_text() == "model"
    assert (outputs / "0/.hidden").read_text() == "of the script"
    assert (outputs / "1/notes.txt").read_text() == "of rank 1"
    assert not (old.folder / "ranks").exists()
    assert (old.folder / "checkpoints").readlink() == Path("outputs/0/checkpoints")
    assert (old.folder / "artifacts/model.bin").read_text() == "model"
    assert (old.folder / "state.json").read_bytes() == state


def test_a_killed_upgrade_is_finished_by_the_next_one(
    old: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename
    done = 0
    for allowed in range(20):
        left = allowed

        def killed_after_some(*args: object, **options: object) -> None:
            nonlocal left, done
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            rename(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "rename", killed_after_some)
        try:
            Experiment(old.folder).outputs.upgrade()
        except KeyboardInterrupt:
            done += 1
        else:
            break
    assert done > 3
    assert whole(Experiment(old.folder)) == ["checkpoint-10", "checkpoint-20"]
    assert (old.folder / "outputs/1/notes.txt").read_text() == "of rank 1"
    assert not (old.folder / "outputs.making").exists()


def test_links_of_an_old_hostile_node_lead_nowhere_after_the_upgrade(
    tmp_path: Path,
) -> None:
    """Rank 0 had put links to UGRO's own files among its outputs, and they came home."""
    home = EndedJob(tmp_path).home
    shutil.rmtree(home.folder / "outputs")
    (home.folder / "checkpoints").symlink_to("code")
    (home.folder / "artifacts").symlink_to(".")
    code = {path: path.read_bytes() for path in (home.folder / "code").iterdir()}
    old = Experiment(home.folder)
    assert old.outputs.all_checkpoints() == {}
    assert old.outputs.manifests(0) == []
    with pytest.raises(OSError, match="no folder of UGRO's"):
        old.outputs.checkpoints(0).make()
    old.outputs.make(0)
    assert (old.folder / "outputs/0/checkpoints").readlink() == Path("code")
    assert not (old.folder / "checkpoints").is_symlink()
    assert {path: path.read_bytes() for path in code} == code


def test_a_link_for_people_is_made_for_what_is_here_and_takes_nothings_place(
    job: Experiment,
) -> None:
    (job.folder / "outputs/0/checkpoints").mkdir(parents=True)
    (job.folder / "outputs/0/tensorboard").mkdir()
    (job.folder / "outputs/0/artifacts").symlink_to("../../code")
    (job.folder / "tensorboard").write_text("mine")
    for _ in range(2):
        job.outputs.link_for_people()
    assert (job.folder / "checkpoints").readlink() == Path("outputs/0/checkpoints")
    assert (job.folder / "tensorboard").read_text() == "mine"
    assert not (job.folder / "artifacts").is_symlink()
