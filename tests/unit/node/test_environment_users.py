"""The users of a training environment, each a process of its own, as on machines that share its folder."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ugro_tasks.node import environment_users
from ugro_tasks.node.environment_users import user_of_environment, using
from ugro_tasks.node.files import write_json
from ugro_tasks.node.protocol import Refusal

HOLDER = {"token": "exp1_20260120_120000.c0ffee00:gpu0:node", "job": "exp1", "node": "gpu0"}  # fmt: skip
USE = """
import json, sys
from ugro_tasks.node.environment_users import using
with using(sys.argv[1], json.loads(sys.argv[2])):
    print("using", flush=True)
    sys.stdin.read()
"""
Begin = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The work folder of an environment that UGRO has made."""
    (tmp_path / "lock").touch()
    return tmp_path


@pytest.fixture
def begin(work: Path) -> Iterator[Begin]:
    """Begins to use the environment in a process that ends with its input."""
    begun = []

    def begin(holder: str) -> subprocess.Popen[str]:
        user = subprocess.Popen(
            [sys.executable, "-c", USE, str(work), holder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        begun.append(user)
        assert user.stdout
        assert user.stdout.readline() == "using\n"
        return user

    yield begin
    for user in begun:
        user.kill()
        user.communicate()


def words(name: str) -> str:
    return f'{{"token": "{name}", "job": "{name}"}}'


def test_each_user_counts_for_as_long_as_it_lives(work: Path, begin: Begin) -> None:
    first, second = begin(words("exp1")), begin(words("exp2"))
    assert user_of_environment(str(work)) == {"token": "exp1", "job": "exp1"}
    first.communicate()
    assert user_of_environment(str(work)) == {"token": "exp2", "job": "exp2"}
    second.kill()
    second.wait()
    assert user_of_environment(str(work)) is None
    assert list((work / "users").iterdir()) == []


def test_nobody_begins_while_it_is_made(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_users, "PATIENCE_SECONDS", 0.1)
    write_json(str(work / "builder.json"), {"job": "sync-envs"})
    with open(work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Refusal) as refused, using(str(work), HOLDER):
            pytest.fail("it began")
    assert refused.value.answer["holder"] == {"job": "sync-envs"}
    with using(str(work), HOLDER):
        assert (work / "users" / HOLDER["token"]).exists()
    assert list((work / "users").iterdir()) == []


def without_locks(*_: object) -> None:
    raise OSError(37, os.strerror(37))


@pytest.mark.parametrize("make", [None, "nothing there", "no folder can be made", "no locks"])  # fmt: skip
def test_where_nothing_can_be_kept_a_job_begins_all_the_same(
    work: Path, monkeypatch: pytest.MonkeyPatch, make: str | None
) -> None:
    place: str | None = str(work)
    if make is None:
        place = None
    elif make == "nothing there":
        (work / "lock").unlink()
    elif make == "no folder can be made":
        (work / "users").touch()
    else:
        monkeypatch.setattr(fcntl, "flock", without_locks)
    began = []
    with using(place, HOLDER):
        began.append(True)
    assert began
