"""The copy of the scripts: what is sent to the nodes is what was launched."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ugro_tasks.errors import RecordError
from ugro_tasks.files import Folder
from ugro_tasks.jobs.record import Code
from ugro_tasks.jobs.snapshot import pack, snapshot


@pytest.fixture
def launched(tmp_path: Path) -> tuple[Folder, Code]:
    """Return the copy of three scripts, and its record."""
    scripts = tmp_path / "scripts"
    (scripts / "deep").mkdir(parents=True)
    (scripts / "train.py").write_text("print('train')\n")
    (scripts / "run.sh").write_text("#!/bin/sh\n")
    (scripts / "run.sh").chmod(0o755)
    (scripts / "deep" / "a.py").write_text("a = 1\n")
    folder = Folder(tmp_path, "code")
    return folder, snapshot(scripts, folder)


def test_the_archive_has_the_scripts_as_they_were_launched(
    launched: tuple[Folder, Code],
) -> None:
    packed = pack(*launched)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        found = {member.name: member for member in archive}
        script = archive.extractfile("deep/a.py")
        assert script
        assert script.read() == b"a = 1\n"
    assert sorted(found) == ["deep/a.py", "run.sh", "train.py"]
    assert found["run.sh"].mode & 0o111


def test_what_python_leaves_beside_the_scripts_is_not_sent(
    launched: tuple[Folder, Code],
) -> None:
    cache = launched[0].path / "__pycache__"
    cache.mkdir()
    (cache / "train.cpython-311.pyc").write_bytes(b"forged")
    with tarfile.open(fileobj=io.BytesIO(pack(*launched))) as archive:
        assert "forged" not in "".join(archive.getnames())


def changed_byte(code: Path) -> None:
    (code / "train.py").write_text("print('pwned')\n")


def another_script(code: Path) -> None:
    (code / "sitecustomize.py").write_text("print('pwned')\n")


def missing_script(code: Path) -> None:
    (code / "deep" / "a.py").unlink()


def link_in_place_of_a_script(code: Path) -> None:
    (code.parent / "same.py").write_text("print('train')\n")
    (code / "train.py").unlink()
    (code / "train.py").symlink_to("../same.py")


def link_in_place_of_a_folder(code: Path) -> None:
    (code / "deep").rename(code.parent / "deep")
    (code / "deep").symlink_to("../deep")


def link_in_place_of_all(code: Path) -> None:
    code.rename(code.parent / "elsewhere")
    code.symlink_to("elsewhere")


def renamed_script(code: Path) -> None:
    (code / "train.py").rename(code / "train2.py")


@pytest.mark.parametrize(
    "change",
    [
        changed_byte,
        another_script,
        missing_script,
        link_in_place_of_a_script,
        link_in_place_of_a_folder,
        link_in_place_of_all,
        renamed_script,
    ],
)
def test_scripts_that_are_not_as_launched_are_sent_to_no_node(
    launched: tuple[Folder, Code], change: Callable[[Path], None]
) -> None:
    change(launched[0].path)
    with pytest.raises(RecordError, match=r"as they were launched|not followed"):
        pack(*launched)
