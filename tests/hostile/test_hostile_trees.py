"""Trees of files that a node gives to rsync: all that comes of them stays in the folder of their job."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.hostile.nodes import HostileHost
from tests.hostile.profiles import examples
from tests.hostile.running import tree
from tests.hostile.strategies import changed, dumped
from tests.unit.ended import EndedJob
from tests.unit.factories import asked_to_stop
from ugro_tasks.errors import HostError, UgroError
from ugro_tasks.hosts.fleet import Fleet
from ugro_tasks.hosts.received import remove_strays
from ugro_tasks.outputs.checkpoints import _checked, fetch_checkpoints
from ugro_tasks.outputs.fetch import fetch_outputs

NAMES = [
    b"a",
    b"b",
    b"deep",
    b"checkpoints",
    b"checkpoint-2",
    b"logs",
    b"config.json",
    b"state.json",
    b"ranks",
    b"stop",
]
NAMES += [
    b"\xff\xfe",
    b"\x1b[31m",
    b"a\nb",
    b".ugro-partial",
    b"code",
    b"-x",
    b"*",
    b".state.json.1.1",
    b"x.manifest.json",
]
# Of absolute paths, one that nobody can write: a test must do no harm where it finds a fault.
TARGETS = [
    b"/proc/version",
    b"/",
    b"..",
    b"../..",
    b"../../other_20260120_120000",
    b"../../../outside",
    b".",
    b"a",
    b"deep/a",
    b"a/a/a/../../..",
]
TARGETS += [
    b"../other_20260120_120000/config.json",
    b"b/b/b/../../../../outside",
    b"logs",
    b"config.json",
    b"nowhere",
    b"checkpoints",
]
entries = st.lists(
    st.tuples(
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
        st.sampled_from(["file", "file", "link", "link", "folder", "fifo", "setuid"]),
        st.sampled_from(TARGETS),
    ),
    max_size=8,
)


def plant(root: Path, things: list[tuple[list[bytes], str, bytes]]) -> None:
    """These things below a folder, as far as they go together."""
    if os.path.lexists(root) and not (root.is_dir() and not root.is_symlink()):
        root.unlink()  # another test planted a link, or a file, of that name
    elif root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    for parts, kind, target in things:
        path = os.path.join(os.fsencode(root), *parts)
        with contextlib.suppress(OSError):
            if not any(
                os.path.islink(os.path.join(os.fsencode(root), *parts[:n]))
                for n in range(1, len(parts))
            ):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                if kind == "link":
                    os.symlink(target, path)
                elif kind == "folder":
                    os.makedirs(path)
                elif kind == "fifo":
                    os.mkfifo(path)
                else:
                    write_plainly(path, target, 0o4755 if kind == "setuid" else 0o644)


def write_plainly(path: bytes, content: bytes, mode: int) -> None:
    """Write a file of this very name: through no link, and into no pipe, whose reader would be waited for."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(path, flags), "wb") as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.truncate()
            file.write(content)
            os.fchmod(file.fileno(), mode)


def outside(root: Path) -> dict[str, Any]:
    """Everything but the nodes' folders and what the job may have got."""
    job = "experiments/exp1_20260120_120000/"
    gets = ("outputs/", "manifests", "checkpoints", "artifacts", "tensorboard")
    return {
        name: value
        for name, value in tree(root).items()
        if not name.startswith(("node", *(job + one for one in gets)))
    }


def no_way_out(folder: Path) -> None:
    """No link leads out of the folder, and nothing in it is anything but a file, a folder or a link."""
    root = os.path.realpath(folder)
    for where, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(where, name)
            mode = os.lstat(path).st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), path
            assert not mode & stat.S_ISUID or stat.S_ISLNK(mode), path
            assert os.path.realpath(path).startswith(os.fsencode(root)), path


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> EndedJob:
    root = tmp_path_factory.mktemp("trees")
    EndedJob(root, "other", stamp="20260120_120000", ranks=2)
    job = EndedJob(root, "exp1", stamp="20260120_120000", ranks=2)
    job.home.log(0).path.write_bytes(b"log\n")
    (root / "outside").mkdir()
    (root / "outside" / "precious").write_text("precious")
    return job


@examples(4)
@given(first=entries, second=entries)
@example(
    first=[([b"a"], "link", b"."), ([b"b"], "link", b"a/a/a/../../..")],
    second=[([b"b", b"owned"], "file", b"owned")],
)
@example(
    first=[([b"a"], "link", b"../../other_20260120_120000")],
    second=[([b"a", b"config.json"], "file", b"owned")],
)
@example(
    first=[([b"checkpoints"], "link", b"..")],
    second=[([b"checkpoints", b"x"], "file", b"owned")],
)
def test_what_a_node_gives_to_gather_stays_in_the_folder_of_its_job(
    trees: EndedJob, first: Any, second: Any
) -> None:
    home = trees.home
    record = home.record()
    assert record.plan
    fleet = Fleet.from_connections(
        [HostileHost(node, lambda *_: b"") for node in trees.cluster.nodes]
    )
    kept = shutil.copytree(
        home.folder,
        home.folder.parent.parent / "kept",
        symlinks=True,
        dirs_exist_ok=True,
    )
    before = outside(trees.home.folder.parent.parent)
    own = {
        name: (home.folder / name).read_bytes()
        for name in ("config.json", "state.json", "logs/training_rank0.log")
    }
    try:
        for things in (first, second):
            for rank in (0, 1):
                plant(trees.folder(rank) / "output", things)
            errors = fetch_outputs(home, record.plan.nodes, fleet)
            assert all(isinstance(error, UgroError) for error in errors)
            assert outside(home.folder.parent.parent) == before
            no_way_out(home.folder)
            assert {name: (home.folder / name).read_bytes() for name in own} == own
            assert not asked_to_stop(home)
    finally:
        shutil.rmtree(home.folder)
        shutil.copytree(kept, home.folder, symlinks=True)
        shutil.rmtree(kept)


def manifest_of(name: str, files: dict[str, bytes], rank: int) -> dict[str, Any]:
    parts = {
        path: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()}
        for path, c in files.items()
    }
    return {
        "checkpoint": name,
        "step": 2,
        "rank": rank,
        "ranks": [0, 1],
        "files": parts,
        "epoch": 1.0,
    }


@examples(8)
@given(
    things=entries,
    forged=changed(
        manifest_of(
            "checkpoint-2", {"checkpoint-2/a": b"/", "checkpoint-2/deep/b": b"x"}, 0
        ),
        times=3,
    ),
    paths=st.lists(
        st.sampled_from(
            [
                "../x",
                "checkpoint-2/../../x",
                "/proc/version",
                "checkpoint-2/a",
                "checkpoint-2",
                "checkpoint-2//a",
                "checkpoint-2/\0",
            ]
        )
    ),
)
def test_what_a_manifest_names_stays_in_the_folder_of_its_job(
    trees: EndedJob, things: Any, forged: Any, paths: list[str]
) -> None:
    home = trees.home
    record = home.record()
    assert record.plan
    plant(trees.folder(0) / "output" / "checkpoints", things)
    if isinstance(forged, dict) and isinstance(forged.get("files"), dict):
        forged["files"] |= {path: {"bytes": 1, "sha256": "x"} for path in paths}
    before = outside(home.folder.parent.parent)
    host = HostileHost(trees.cluster.nodes[0], lambda *_: b"")
    with contextlib.suppress(HostError, OSError):
        fetch_checkpoints(
            home,
            host,
            record.plan.nodes[0],
            [_checked(record.plan.nodes[0], dumped(forged))],
        )
    assert outside(home.folder.parent.parent) == before
    no_way_out(home.folder)
    shutil.rmtree(home.folder / "outputs" / "0", ignore_errors=True)


def test_links_that_lead_out_by_way_of_others_are_removed(tmp_path: Path) -> None:
    """What an rsync older than 3.4 lets through although it was told to take safe links only."""
    folder = tmp_path / "job"
    (folder / "sub").mkdir(parents=True)
    links = {
        "here": ".",
        "chain": "here/here/../..",
        "sub/chain": "../here/../..",
        "loop": "loop",
        "good": "sub",
        "gone": "x/y",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    remove_strays(str(folder))
    assert {path.name for path in folder.rglob("*") if path.is_symlink()} == {
        "here",
        "loop",
        "good",
        "gone",
    }
    assert not (folder / "sub" / "chain").is_symlink()
