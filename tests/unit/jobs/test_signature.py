"""What is signed by this user, and what only lies in a folder."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ugro_tasks.errors import RecordError
from ugro_tasks.jobs.signature import is_signed, sign

DOCUMENT = {"job_id": "exp1", "nodes": ["a", "b"], "rate": 2e-4, "ü": {"x": None}}


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "ugro" / "signing.key"


def test_a_signature_holds_through_a_file_whatever_the_order(key: Path) -> None:
    signed = json.loads(json.dumps(sign(DOCUMENT, "job"), indent=3))
    assert is_signed(signed, "job")
    assert is_signed(dict(reversed(signed.items())), "job")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another value": lambda d: d.update(rate=2.1e-4),
    "another item": lambda d: d.update(nodes=["b", "a"]),
    "another field": lambda d: d.update(more=1),
    "a missing field": lambda d: d.pop("rate"),
    "a deep change": lambda d: d["ü"].update(x=0),
    "no signature": lambda d: d.pop("signature"),
    "an empty one": lambda d: d.update(signature={}),
    "one that is no text": lambda d: d.update(signature={"mac": 7}),
    "one that is no ASCII": lambda d: d.update(signature={"mac": "ü"}),
    "one that is no object": lambda d: d.update(signature=d["signature"]["mac"]),
    "a shorter one": lambda d: d["signature"].update(mac=d["signature"]["mac"][:-1]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_is_changed_the_signature_holds_no_more(
    key: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    signed = json.loads(json.dumps(sign(DOCUMENT, "job")))
    change(signed)
    assert not is_signed(signed, "job")


def test_a_signature_is_for_one_purpose(key: Path) -> None:
    assert not is_signed(sign(DOCUMENT, "stop"), "job")


def test_another_user_has_another_secret(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = sign(DOCUMENT, "job")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert not is_signed(signed, "job")
    # Looking makes no secret.
    assert not (tmp_path / "other").exists()
    sign(DOCUMENT, "job")
    assert not is_signed(signed, "job")


def test_two_first_launches_at_once_make_one_secret(key: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        signed = list(threads.map(lambda _: sign(DOCUMENT, "job"), range(40)))
    assert all(is_signed(document, "job") for document in signed)
    assert [path.name for path in key.parent.iterdir()] == ["signing.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_secret_that_others_can_read_is_none(key: Path, mode: int) -> None:
    signed = sign(DOCUMENT, "job")
    key.chmod(mode)
    for act in (
        lambda: is_signed(signed, "job"),
        lambda: sign(DOCUMENT, "job"),
    ):
        with pytest.raises(RecordError, match="chmod 600"):
            act()


def test_a_link_in_place_of_the_secret_is_not_followed(
    key: Path, tmp_path: Path
) -> None:
    (tmp_path / "known").write_bytes(b"x" * 32)
    (tmp_path / "known").chmod(0o600)
    key.parent.mkdir(parents=True)
    key.symlink_to(tmp_path / "known")
    with pytest.raises(RecordError, match="not followed"):
        sign(DOCUMENT, "job")


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_damaged_secret_is_an_error(key: Path, content: bytes) -> None:
    sign(DOCUMENT, "job")
    key.write_bytes(content)
    with pytest.raises(RecordError, match="damaged"):
        sign(DOCUMENT, "job")


def test_without_a_place_for_the_secret_nothing_is_signed(
    key: Path, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(RecordError, match="XDG_STATE_HOME"):
        sign(DOCUMENT, "job")


def test_a_relative_state_home_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So says the XDG base directory specification."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    sign(DOCUMENT, "job")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
