"""Links in a rank's outputs: what they lead to comes home, or is named and stays."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.ended import EndedJob, small_disk
from ugro_tasks.errors import NodeFault, RecordError
from ugro_tasks.hosts.copy import Copy
from ugro_tasks.hosts.local import LocalHost
from ugro_tasks.hosts.transfer import Transfer
from ugro_tasks.node.outputs import Outputs
from ugro_tasks.node.receiver import do_nothing
from ugro_tasks.outputs import fetch
from ugro_tasks.outputs.clean import Wish, clean


@pytest.fixture
def job(tmp_path: Path) -> EndedJob:
    """A job of one node that has ended."""
    return EndedJob(tmp_path, ranks=1)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A bigger disk, with a folder of the user's in it."""
    made = tmp_path / "big"
    (made / "step5" / "deep").mkdir(parents=True)
    (made / "step5" / "model.bin").write_bytes(b"weights")
    (made / "step5" / "deep" / "empty").touch()
    (made / "latest").symlink_to("step5")
    (made / "best").symlink_to(made / "step5" / "model.bin")
    return made


def link(job: EndedJob, name: str, target: object) -> None:
    path = job.folder(0) / "output" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(str(target))


def home(job: EndedJob) -> Path:
    return job.home.outputs.of(0).path


def stays(job: EndedJob) -> list[str]:
    found, errors = clean(job.experiments, job.cluster, Wish())
    assert errors == []
    return [stay.reason for stay in found.stays]


# ---- what comes ----


def test_checkpoints_on_another_disk_come_home(job: EndedJob, disk: Path) -> None:
    link(job, "checkpoints", disk)
    job.gather()
    here = home(job) / "checkpoints"
    assert not here.is_symlink()
    assert (here / "step5" / "model.bin").read_bytes() == b"weights"
    assert (here / "step5" / "deep" / "empty").read_bytes() == b""
    # Inside of what comes they are links, absolute ones made relative.
    assert (here / "latest").readlink() == Path("step5")
    assert (here / "best").readlink() == Path("step5/model.bin")
    assert stays(job) == []
    assert (disk / "step5" / "model.bin").exists()


@pytest.mark.parametrize("top", ["checkpoints", "artifacts"])
def test_links_to_files_and_folders_come_as_what_they_lead_to(
    job: EndedJob, disk: Path, top: str
) -> None:
    link(job, f"{top}/file", disk / "step5" / "model.bin")
    link(job, f"{top}/deep/chain", disk / "best")
    link(job, f"{top}/folder", disk / "step5")
    job.gather()
    for name in ("file", "deep/chain", "folder/model.bin"):
        path = home(job) / top / name
        assert not path.is_symlink()
        assert path.read_bytes() == b"weights"
    assert job.home.state().gathered_at


def test_links_in_what_a_link_leads_to_are_followed_as_well(
    job: EndedJob, disk: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "more").write_bytes(b"more")
    (disk / "step5" / "far").symlink_to(other)
    link(job, "checkpoints/step5", disk / "step5")
    job.gather()
    assert (home(job) / "checkpoints/step5/far/more").read_bytes() == b"more"


def test_an_absolute_link_to_a_path_inside_comes_as_a_relative_one(
    job: EndedJob,
) -> None:
    path = job.write(0, "runs/1/log", b"log")
    link(job, "runs/latest", path.parent)
    job.gather()
    assert (home(job) / "runs" / "latest").readlink() == Path("1")
    assert (home(job) / "runs" / "latest" / "log").read_bytes() == b"log"


def test_what_a_link_leads_to_is_fetched_once_and_again_when_it_has_grown(
    job: EndedJob, disk: Path
) -> None:
    link(job, "artifacts/model", disk / "step5")
    job.gather()
    before = (home(job) / "artifacts/model/model.bin").stat().st_ino
    job.gather()
    assert (home(job) / "artifacts/model/model.bin").stat().st_ino == before
    (disk / "step5" / "new").write_bytes(b"new")
    assert "artifacts/model/new" in stays(job)[0]
    job.gather()
    assert stays(job) == []


def test_the_size_of_what_is_large_is_said_before_it_comes(
    job: EndedJob, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "LARGE_BYTES", 7)
    link(job, "artifacts/model", disk / "step5" / "model.bin")
    job.gather()
    said = [event.message for event in job.home.events()[0]]
    assert any("artifacts/model leads to" in words for words in said)


def test_hard_links_and_holes_come_as_files(job: EndedJob) -> None:
    path = job.write(0, "artifacts/model.bin", b"model")
    os.link(path, path.with_name("same"))
    with path.with_name("holes").open("wb") as file:
        file.truncate(3_000_000)
    job.gather()
    assert (home(job) / "artifacts" / "same").read_bytes() == b"model"
    assert (home(job) / "artifacts" / "holes").stat().st_size == 3_000_000


@pytest.mark.parametrize("target", [".", "code", "checkpoints"])
def test_checkpoints_that_lead_to_nothing_of_their_own_are_passed_over(
    job: EndedJob, target: str
) -> None:
    job.write(0, "artifacts/model.bin", b"model")
    link(job, "checkpoints", target)
    job.gather()
    assert not os.path.lexists(home(job) / "checkpoints")
    assert job.home.state().gathered_at


def test_checkpoints_elsewhere_in_the_outputs_come_as_a_folder(job: EndedJob) -> None:
    job.write(0, "saved/model.bin", b"model")
    link(job, "checkpoints", "saved")
    job.gather()
    assert not (home(job) / "checkpoints").is_symlink()
    assert (home(job) / "checkpoints" / "model.bin").read_bytes() == b"model"


# ---- what does not ----


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def a_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s"))
    return folder / "s"


def anothers(folder: Path) -> Path:
    (folder / "anothers").write_bytes(b"secret")
    os.chown(folder / "anothers", 4242, 4242)
    return folder / "anothers"


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


REFUSED: dict[str, Callable[[Path], Path]] = {
    "nothing": lambda folder: folder / "missing",
    "pipe": pipe,
    "socket": a_socket,
    "loop": loop,
    "device": lambda _: Path("/dev/zero"),
    "process": lambda _: Path("/proc/self/environ"),
    "passwords": lambda _: Path("/etc/passwd"),
    "everything": lambda _: Path("/"),
    "home": lambda _: Path.home(),
    "keys": lambda _: Path.home() / ".ssh",
    "job": lambda folder: next(folder.glob("node0/jobs/*")),
    "plan": lambda folder: next(folder.glob("node0/jobs/*/plan.json")),
    "jobs": lambda folder: folder / "node0" / "jobs",
    "project": lambda folder: folder / "node0",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_may_not_come_is_named_and_the_rest_comes(
    job: EndedJob, tmp_path: Path, kind: str
) -> None:
    job.write(0, "artifacts/model.bin", b"model")
    link(job, "artifacts/odd", REFUSED[kind](tmp_path))
    with pytest.raises(NodeFault, match=r"gpu0: .*artifacts/odd: it leads to"):
        job.gather()
    assert not os.path.lexists(home(job) / "artifacts" / "odd")
    assert (home(job) / "artifacts" / "model.bin").read_bytes() == b"model"
    assert job.home.state().gathered_at is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("inside", [False, True], ids=["file", "in a folder"])
def test_a_file_of_another_user_is_named(
    job: EndedJob, disk: Path, inside: bool
) -> None:
    path = anothers(disk)
    link(job, "artifacts/odd", disk if inside else path)
    with pytest.raises(NodeFault, match="it belongs to another user"):
        job.gather()
    assert not any("anothers" in path.name for path in home(job).rglob("*"))


def test_a_link_that_leads_out_elsewhere_is_named(job: EndedJob, disk: Path) -> None:
    link(job, "data", disk)
    with pytest.raises(NodeFault, match="only links in checkpoints and artifacts"):
        job.gather()
    assert not os.path.lexists(home(job) / "data")


def test_links_that_lead_in_a_circle_end(
    job: EndedJob, disk: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "back").symlink_to(disk)
    (disk / "on").symlink_to(other)
    link(job, "artifacts/model", disk)
    with pytest.raises(NodeFault, match=r"artifacts/model/on/back: .*a loop"):
        job.gather()
    assert (home(job) / "artifacts/model/step5/model.bin").exists()


def test_links_can_be_left_out_by_name_and_the_job_counts_as_gathered(
    job: EndedJob, disk: Path
) -> None:
    job.write(0, "artifacts/model.bin", b"model")
    link(job, "artifacts/big", disk)
    link(job, "data", disk)
    job.gather(leave_links=True)
    assert job.home.state().gathered_at
    assert sorted(path.name for path in home(job).rglob("*")) == [
        "artifacts",
        "model.bin",
    ]
    said = [event.message for event in job.home.events()[0]]
    assert any("artifacts/big" in words and "data" in words for words in said)
    assert stays(job) == []


def test_files_and_links_that_do_not_come_are_named_together(
    job: EndedJob, disk: Path
) -> None:
    job.write(0, "artifacts/model.bin", b"model")
    link(job, "data", disk)
    # A folder of the user's own in the place of the file.
    (home(job) / "artifacts/model.bin/notes").mkdir(parents=True)
    both = (
        r"artifacts/model\.bin: [^;]*; what these links lead to does not come: data: "
    )
    with pytest.raises(NodeFault, match=both) as error:
        job.gather()
    assert "--leave-links" in error.value.fix
    with pytest.raises(NodeFault, match=r"artifacts/model\.bin") as error:
        job.gather(leave_links=True)
    assert "data" not in error.value.what
    said = [event.message for event in job.home.events()[0]]
    assert any(words.startswith("links left out: data: ") for words in said)


def test_what_links_lead_to_keeps_a_folder_until_it_was_left_out_or_came(
    job: EndedJob, disk: Path
) -> None:
    job.gather()
    link(job, "data", disk)
    assert "data: it leads to" in stays(job)[0]
    job.gather(leave_links=True)
    assert stays(job) == []


def test_a_file_that_may_not_be_read_is_told_by_its_source(
    job: EndedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root has written it in a container; for a test as root its reading fails."""

    def refuse(self: Outputs, path: str) -> int:
        if path == "artifacts/of root":
            raise PermissionError(13, "Permission denied")
        return os.open(f"{self.folder}/{path}", os.O_RDONLY)

    put: list[tuple[int, bytes]] = []
    job.write(0, "artifacts/of root", b"secret")
    monkeypatch.setattr(Outputs, "_open", refuse)
    source = Outputs(str(job.folder(0) / "output"))
    source.send(
        ["artifacts/of root", 0, None, True],
        lambda kind, _, payload: put.append((kind, payload)),
        do_nothing,
    )
    assert b"Permission denied" in put[-1][1]


def test_a_link_that_is_put_in_the_place_of_a_file_is_not_read(
    job: EndedJob, tmp_path: Path
) -> None:
    source = Outputs(str(job.folder(0) / "output"))
    path = job.write(0, "artifacts/model.bin", b"model")
    assert ["f", "artifacts/model.bin"] in [e[:2] for e in source.entries(do_nothing)]
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="leads elsewhere"):
        source._open("artifacts/model.bin")


# ---- by rsync and without ----


def test_what_rsync_passes_over_is_found_by_our_own_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: EndedJob, disk: Path
) -> None:
    monkeypatch.setattr(LocalHost, "rsync_remote", lambda _: ([], ""))
    output = job.folder(0) / "output"
    job.write(0, "artifacts/model.bin", b"model")
    link(job, "artifacts/big", disk / "step5")
    link(job, "data", disk)
    here = tmp_path / "here"
    here.mkdir()
    left = Transfer(LocalHost(job.cluster.nodes[0])).pull_outputs(
        f"{output}/", f"{here}/", never_links=["checkpoints"]
    )
    assert left.faults == []
    assert len(left.links) == 1
    assert left.links[0].startswith("data: ")
    assert (here / "artifacts/big/model.bin").read_bytes() == b"weights"
    found = Copy(LocalHost(job.cluster.nodes[0])).missing(f"{output}/", f"{here}/")
    assert found == left.links


def test_many_empty_files_do_not_take_the_last_names_of_a_disk(
    job: EndedJob, tmp_path: Path
) -> None:
    for number in range(2500):
        job.write(0, f"artifacts/{number}", b"")
    with small_disk(tmp_path / "small", 8) as small:
        remount = ["mount", "-o", "remount,nr_inodes=2000", str(small)]
        subprocess.run(remount, check=True)
        free = os.statvfs(small).f_favail
        assert free < 2000
        with pytest.raises(OSError, match="No space left"):
            Transfer(LocalHost(job.cluster.nodes[0])).pull_outputs(
                f"{job.folder(0)}/output/", f"{small}/"
            )
        assert os.statvfs(small).f_favail >= 39


def test_a_disk_without_names_is_an_error_of_this_machine(
    job: EndedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ugro_tasks.hosts.copy.leave_room", full)
    job.write(0, "empty", b"")
    with pytest.raises(RecordError, match="No space left on device"):
        job.gather()
