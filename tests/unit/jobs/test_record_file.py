"""Records: torn ones are read from their copies, and fields of other versions are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.ended import EndedJob
from tests.unit.factories import damage
from ugro_tasks.errors import NotSigned, RecordError
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.phase import RULES, Phase
from ugro_tasks.jobs.record_file import with_unknown_fields
from ugro_tasks.jobs.signature import sign

RECORDS = ["config.json", "state.json"]
# What a power cut, a full disk or a hand may leave of a file.
TORN = [None, b"", b"\0" * 4096, b"{", b'{"state": "run', b"\xff", b"[]", b"null"]


@pytest.fixture
def job(tmp_path: Path) -> Experiment:
    return EndedJob(tmp_path).home


def document(job: Experiment, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.folder / name).read_text())
    return found


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("torn", TORN)
def test_a_torn_record_is_read_from_its_copy_and_mended(
    job: Experiment, name: str, torn: bytes | None
) -> None:
    record = job.signed_record()
    state = job.state()
    path = job.folder / name
    path.unlink()
    if torn is not None:
        path.write_bytes(torn)
    for _ in range(2):
        assert (job.signed_record(), job.state()) == (record, state)
    assert job.mend_torn_records() == [name]
    assert job.mend_torn_records() == []
    (job.folder / f".{name}.copy").unlink()
    assert (job.signed_record(), job.state()) == (record, state)


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("torn", TORN)
def test_a_torn_copy_is_no_harm(job: Experiment, name: str, torn: bytes | None) -> None:
    record = job.signed_record()
    state = job.state()
    path = job.folder / f".{name}.copy"
    path.unlink()
    if torn is not None:
        path.write_bytes(torn)
    assert (job.signed_record(), job.state()) == (record, state)


def test_a_copy_is_signed_like_the_record(job: Experiment) -> None:
    """Else the copy of a record would be the way around its signature."""
    copy = job.folder / ".config.json.copy"
    forged = {**json.loads(copy.read_text()), "script": "pwn.py"}
    copy.write_text(json.dumps(forged))
    (job.folder / "config.json").write_bytes(b"")
    with pytest.raises(NotSigned):
        job.signed_record()


@pytest.mark.parametrize("name", RECORDS)
def test_with_both_torn_it_is_a_record_error(job: Experiment, name: str) -> None:
    damage(job, name, b"")
    reader = job.record if name == "config.json" else job.state
    with pytest.raises(RecordError, match=name):
        reader()


def test_fields_of_another_version_are_kept_wherever_they_are(job: Experiment) -> None:
    told = document(job, "state.json")
    told["priority"] = 7
    told["ranks"][1]["card"] = "GPU-1"
    told["attempts"][0]["leases"] = [{"card": 0}]
    (job.folder / "state.json").write_text(json.dumps(told))
    ranks = [
        msgspec.structs.replace(rank, exit_code=0)
        for rank in reversed(job.state().ranks)
    ]
    job.save_state(msgspec.structs.replace(job.state(), ranks=tuple(ranks)))
    after = document(job, "state.json")
    assert after["priority"] == 7
    assert after["attempts"][0]["leases"] == [{"card": 0}]
    assert {rank["rank"]: rank.get("card") for rank in after["ranks"]} == {
        0: None,
        1: "GPU-1",
        2: None,
    }
    assert {rank["exit_code"] for rank in after["ranks"]} == {0}


def test_a_field_of_another_version_is_signed_again_with_the_record(
    job: Experiment,
) -> None:
    told = {**document(job, "config.json"), "cards": [0, 1]}
    told["plan"]["nodes"][0]["cards"] = [1]
    (job.folder / "config.json").write_text(json.dumps(sign(told, "job")))
    job.save_record(msgspec.structs.replace(job.signed_record(), epochs=9))
    after = document(job, "config.json")
    assert (after["cards"], after["plan"]["nodes"][0]["cards"]) == ([0, 1], [1])
    assert job.signed_record().epochs == 9


def test_what_is_no_field_of_another_version_is_not_kept() -> None:
    """A plain mapping says with its keys what it holds."""

    class Held(msgspec.Struct):
        sizes: dict[str, int]
        names: list[str]

    held = with_unknown_fields(
        Held({"a": 1}, ["x"]), {"sizes": {"b": 2}, "names": ["y", "z"], "more": 3}
    )
    assert held == {"sizes": {"a": 1}, "names": ["x"], "more": 3}


def test_a_record_of_the_first_format_is_read(job: Experiment) -> None:
    told = document(job, "config.json")
    for name in ("format", "kind", "signature"):
        del told[name]
    del told["plan"]["backend"]
    (job.folder / "config.json").write_text(json.dumps(told))
    record = job.record()
    assert (record.format, record.name, record.kind) == (1, "exp1", "training")
    with pytest.raises(NotSigned, match=r"inv agent\.adopt"):
        job.signed_record()
    with pytest.raises(NotSigned):
        job.save_record(record)
    job.adopt(record)
    assert job.signed_record().format == 2


def test_an_unknown_state_is_kept_and_shown(job: Experiment) -> None:
    told = {**document(job, "state.json"), "state": "hibernating", "reason": "moon"}
    (job.folder / "state.json").write_text(json.dumps(told))
    state = job.state()
    assert (str(state.phase), state.phase.known) == ("hibernating", False)
    assert not state.phase.finished
    job.save_state(msgspec.structs.replace(state, exit_code=1))
    after = document(job, "state.json")
    assert (after["state"], after["reason"]) == ("hibernating", "moon")


# ---- the states ----


def test_every_state_has_its_rule_and_leads_to_an_end() -> None:
    assert set(RULES) == set(Phase)
    for phase in Phase:
        reached = {phase}
        while True:
            more = {after for one in reached for after in RULES[one].follows} - reached
            if not more:
                break
            reached |= more
        assert any(one.finished for one in reached)


def test_only_ends_have_an_exit_code_and_only_success_is_0() -> None:
    codes = {phase: rule.exit_code for phase, rule in RULES.items()}
    assert {phase for phase, code in codes.items() if code is not None} == {
        phase for phase in Phase if phase.finished
    }
    assert {phase for phase, code in codes.items() if code == 0} == {
        Phase.SUCCEEDED,
        Phase.PRUNED,
    }


@pytest.mark.parametrize(
    ("before", "after", "may"),
    [
        (Phase.QUEUED, Phase.RUNNING, False),
        (Phase.QUEUED, Phase.SUCCEEDED, False),
        (Phase.RUNNING, Phase.QUEUED, True),
        (Phase.RUNNING, Phase.REFUSED, False),
        (Phase.STOPPING, Phase.SUCCEEDED, True),
        (Phase.STOPPING, Phase.REFUSED, False),
        (Phase.SUCCEEDED, Phase.FAILED, False),
        (Phase.FAILED, Phase.FAILED, True),
        (Phase("hibernating"), Phase.FAILED, False),
    ],
)
def test_what_may_follow(before: Phase, after: Phase, may: bool) -> None:
    assert before.may_become(after) is may
