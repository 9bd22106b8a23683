"""A cluster file that is as it was is not checked again, and whatever may have changed is noticed."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ugro_tasks.cluster import build as cluster_build
from ugro_tasks.cluster import cache
from ugro_tasks.cluster.cache import ENTRIES_KEPT
from ugro_tasks.cluster.file import load_cluster, read_cluster_file
from ugro_tasks.cluster.locks import LOCKS
from ugro_tasks.cluster.model import Cluster
from ugro_tasks.errors import ClusterFileError

TEXT = "cluster: {name: '${LAB}', master: {hostname: m, ip: 10.0.0.1}}\ntraining: {lora: {rank: 4}}\n"


class Reading:
    """A user who reads one cluster file, and how often it was checked in full."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.path, self.checked = folder / "home", folder / "cluster.yaml", 0
        self.home.mkdir()
        self.path.write_text(TEXT)
        build = cluster_build.build

        def counted(
            path: Path, content: bytes, environ: dict[str, str]
        ) -> tuple[Cluster, bytes]:
            self.checked += 1
            return build(path, content, environ)

        monkeypatch.setattr(cluster_build, "build", counted)

    def __call__(self, **environ: str) -> Cluster:
        return read_cluster_file(
            self.path, {"HOME": str(self.home), "LAB": "lab", **environ}
        )

    @property
    def entries(self) -> list[Path]:
        return list((self.home / ".cache" / "ugro" / "clusters").iterdir())


@pytest.fixture
def reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reading:
    return Reading(tmp_path, monkeypatch)


def test_the_second_time_it_is_the_same_unchecked(reading: Reading) -> None:
    first = reading()
    assert reading() == first
    assert first.training.settings == {"lora": {"rank": 4}}
    assert reading.checked == 1


def test_an_entry_is_its_users_own(reading: Reading) -> None:
    reading()
    (entry,) = reading.entries
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE(entry.parent.stat().st_mode) == 0o700


def test_another_text_variable_or_lock_is_noticed(reading: Reading) -> None:
    before = reading()
    assert reading(LAB="other").name == "other"
    (reading.path.parent / "uv.lock").touch()
    assert (before.environment.manager, reading().environment.manager) == (
        "existing",
        "uv",
    )
    (reading.path.parent / "scripts").mkdir()
    assert reading().scripts == reading.path.parent / "scripts"
    reading.path.write_text(TEXT.replace("10.0.0.1", "10.0.0.9"))
    assert reading().master.address == "10.0.0.9"
    reading.path.write_text(TEXT + "nonsense: 1\n")
    with pytest.raises(ClusterFileError, match="unknown key"):
        reading()


@pytest.mark.parametrize("lock", [*LOCKS.values(), "scripts/constraints.txt"])
def test_each_lock_is_noticed(reading: Reading, lock: str) -> None:
    (reading.path.parent / "scripts").mkdir()
    assert reading().environment.manager == "existing"
    (reading.path.parent / lock).touch()
    assert reading().environment.manager != "existing"


def test_each_change_of_the_logging_file_is_noticed(reading: Reading) -> None:
    path = reading.path.parent / "config" / "logging.yaml"
    path.parent.mkdir()
    assert reading().logging.level == "INFO"
    path.write_text("level: ${LEVEL}\n")
    assert reading(LEVEL="DEBUG").logging.level == "DEBUG"
    assert reading(LEVEL="ERROR").logging.level == "ERROR"
    assert reading(LEVEL="ERROR").logging.level == "ERROR"
    assert reading.checked == 3
    path.write_text("levle: INFO\n")
    with pytest.raises(ClusterFileError, match="did you mean level"):
        reading()
    path.unlink()
    assert reading().logging.level == "INFO"


def test_a_logging_file_that_changes_while_it_is_read_is_read_again(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = reading.path.parent / "config" / "logging.yaml"
    path.parent.mkdir()
    path.write_text("level: DEBUG\n")
    keep = cache.CacheEntry.write

    def late(self: cache.CacheEntry, cluster: Cluster, logging_file: bytes) -> None:
        path.write_text("level: ERROR\n")
        keep(self, cluster, logging_file)

    monkeypatch.setattr(cache.CacheEntry, "write", late)
    assert reading().logging.level == "DEBUG"
    assert reading().logging.level == "ERROR"


def test_the_built_in_cluster_is_remembered_with_its_logging_file(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = reading.path.parent
    (folder / "config").mkdir()
    (folder / "config" / "logging.yaml").write_text("level: DEBUG\n")
    environ = {"HOME": str(reading.home)}
    first = load_cluster("local", environ=environ, cwd=folder)
    monkeypatch.delattr(cluster_build, "with_logging_file")
    assert load_cluster("local", environ=environ, cwd=folder) == first
    assert (first.name, first.logging.level) == ("local", "DEBUG")


@pytest.mark.parametrize(
    "module", sorted(path.name for path in cache.HERE.glob("*.py"))
)
def test_other_code_is_noticed_whatever_its_time_stamp_says(
    reading: Reading, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    code = reading.home / "code"
    shutil.copytree(cache.HERE, code)
    monkeypatch.setattr(cache, "HERE", code)
    reading()
    reading()
    assert reading.checked == 1
    old = (code / module).stat()
    content = (code / module).read_bytes()
    (code / module).write_bytes(content[:-1] + b" ")
    os.utime(code / module, ns=(old.st_atime_ns, old.st_mtime_ns))
    reading()
    assert reading.checked == 2


def test_no_code_of_another_folder_says_what_a_file_means() -> None:
    code = "import sys, ugro_tasks.cluster.build; print(*(m for m in sys.modules if m.startswith('ugro_tasks')))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    elsewhere = {
        name
        for name in done.stdout.split()
        if not name.startswith("ugro_tasks.cluster")
    }
    # What words an error, and what decodes a record that was kept.
    assert elsewhere == {
        "ugro_tasks",
        "ugro_tasks.codec",
        "ugro_tasks.errors",
        "ugro_tasks.text",
    }


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"cluster": {}, "seen": {}}', b"\xff", b"[" * 100_000],
)
def test_a_damaged_entry_is_as_none(reading: Reading, damage: bytes) -> None:
    first = reading()
    (entry,) = reading.entries
    entry.write_bytes(damage)
    assert reading() == first
    assert reading.checked == 2


def test_few_are_kept(reading: Reading) -> None:
    for number in range(ENTRIES_KEPT + 3):
        reading(LAB=f"lab{number}")
    assert len(reading.entries) == ENTRIES_KEPT


def test_without_a_place_for_it_nothing_is_kept(reading: Reading) -> None:
    assert reading(XDG_CACHE_HOME="/proc/nowhere") == reading(
        XDG_CACHE_HOME="/proc/nowhere"
    )
    assert reading.checked == 2


def test_without_a_home_no_home_is_made(reading: Reading) -> None:
    reading.home.rmdir()
    reading()
    assert not reading.home.exists()
