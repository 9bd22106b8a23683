"""Files of the experiments folder damaged at any byte: no traceback, other jobs untouched, nothing deleted."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.nodes import PROBE
from tests.hostile.profiles import examples
from tests.hostile.running import Done, tree, ugro
from tests.hostile.strategies import Damage, changed, damages, dumped, json_values
from tests.hostile.test_words import CLUSTER
from tests.unit.ended import EndedJob, store
from ugro_tasks.backends.ssh.plan import make_plan
from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.codec import convert
from ugro_tasks.errors import JobFailed, NotSigned, RecordError, UgroError
from ugro_tasks.hosts.answers import ProbeAnswer
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.signature import sign
from ugro_tasks.jobs.state import Cause, Event, JobState
from ugro_tasks.launch import submit
from ugro_tasks.launch.spec import draft, spec_from
from ugro_tasks.training.settings import resolve

SAMPLE = {
    "node": "gpu0",
    "index": "0",
    "name": "RTX 4070",
    "utilization.gpu": "57",
    "memory.used": "5000",
    "memory.total": "8188",
    "power.draw": "180.5",
    "temperature.gpu": "71",
    "time": 1.0,
}
METRICS = [
    {
        "step": n,
        "total_steps": 3,
        "epoch": n / 3,
        "loss": 3.0 / n,
        "tokens_per_second": 100.0,
    }
    for n in (1, 2, 3)
]
METRICS += [{"step": 3, "eval_loss": 1.5}]
CHECKPOINT = "manifests/0/checkpoint-2.json"
OTHERS_CHECKPOINT = "manifests/1/checkpoint-2.json"
# The files of one job, and whether they are JSON as a whole, lines of JSON, or text.
JOB_FILES = {
    "config.json": "json",
    "state.json": "json",
    "events.jsonl": "lines",
    "metrics.jsonl": "lines",
    "gpu.jsonl": "lines",
    "logs/training_rank0.log": "text",
    CHECKPOINT: "json",
    OTHERS_CHECKPOINT: "json",
}
SHARED_FILES = {
    "../job_history.jsonl": "lines",
    "../cluster_state.json": "json",
    "../.agent.lock": "text",
}
# What a job with a record that says something else may end a command with: damaged, not found, it did not succeed.
ENDS = {0, 1, 2, 4, RecordError.exit_code, NotSigned.exit_code}


class World:
    """Two jobs that ended: one to be damaged, and another one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.other = self._job("other", "20260120_120000").home
        self.job = self._job("exp1", "20260121_120000")
        self.home = self.job.home
        self.pristine = {
            name: (self.home.folder / name).read_bytes() for name in JOB_FILES
        }
        experiments = self.home.folder.parent
        Experiments(experiments).add_to_history(
            self.home, self.home.record(), self.home.state()
        )
        (experiments / "cluster_state.json").write_text("{}")
        (experiments / ".agent.lock").touch()
        self.pristine |= {
            name: (self.home.folder / name).read_bytes() for name in SHARED_FILES
        }
        self.mend()
        (root / "cluster.yaml").write_text(
            CLUSTER % {"root": root, "python": sys.executable}
        )

    def _job(self, name: str, stamp: str) -> EndedJob:
        made = EndedJob(self.root, name, stamp=stamp)
        home = made.home
        home.save_record(
            msgspec.structs.replace(home.record(), settings=resolve(made.cluster))
        )
        made.end(
            Phase.FAILED,
            exit_code=JobFailed.exit_code,
            cause=Cause(message="rank 0: it", last_lines=("one", "two")),
        )
        home.add_event(Event(time=1.0, message="checking 3 nodes"))
        home.add_event(Event(time=2.0, message="rank 0 runs", node="gpu0"))
        home.metrics.path.write_text(
            "".join(json.dumps(line) + "\n" for line in METRICS)
        )
        home.gpu.path.write_text(
            "".join(json.dumps(SAMPLE | {"node": f"gpu{n}"}) + "\n" for n in range(3))
        )
        home.log(0).path.write_bytes(b"one\ntwo \x1b[31mred\n\xff\n" * 3)
        for rank in (0, 1):
            store(home, "checkpoint-2", 2, rank, (0, 1), **{f"rank{rank}": b"weights"})
        return made

    def ugro(self, *words: str) -> Done:
        done = ugro(*words, folder=self.root)
        # A command that is not understood tries nothing.
        assert "No idea what" not in done.err, done
        return done

    def mend(self) -> None:
        """All files of the job as they were."""
        for name, content in self.pristine.items():
            path = self.home.folder / name
            if path.is_dir():
                path.rmdir()
            path.write_bytes(content)
        # Else each damage to a record would be made good from its copy.
        for copy in self.home.folder.glob(".*.copy"):
            copy.unlink()

    def looked_at(self, *commands: list[str]) -> None:
        """Each command has a right end, says nothing raw, changes nothing; and the other job is as it was."""
        before = tree(self.root)
        for words in commands:
            done = self.ugro(*words)
            assert done.code in ENDS | {JobFailed.exit_code}, done
            assert len(done.err) < 10_000, done
        listed = self.ugro("status")
        if not (self.home.folder.parent / "job_history.jsonl").is_file():
            assert listed.code in {0, RecordError.exit_code}
            return
        assert listed.code == 0
        assert "other_20260120_120000" in listed.out
        assert "exp1_20260121_120000" in listed.out
        after = tree(self.root)
        assert {name for name in before if name not in after} == set()
        assert {name for name in before if after[name] != before[name]} == set()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("UGRO_CLUSTER", raising=False)
        # A state that says "running" would otherwise begin an agent, and with it a job.
        for module in ("agent_process", "watch"):
            patch.setattr(
                f"ugro_tasks.jobs.{module}.ensure_agent", lambda _experiments: None
            )
        yield World(tmp_path_factory.mktemp("damaged"))


def is_over(experiment: Experiment) -> bool:
    """Whether nobody would wait for the job."""
    try:
        return experiment.state().phase.finished
    except RecordError:
        return True


READS = [
    ["status", "--json"],
    ["status", "--name=exp1"],
    ["status", "--name=exp1", "--json"],
    ["logs", "--name=exp1"],
    ["results", "--name=exp1"],
    ["results", "--name=exp1", "--json"],
]


def look(world: World, name: str, content: bytes) -> None:
    (world.home.folder / name).write_bytes(content)
    try:
        follows = [
            ["attach", "--name=exp1"],
            ["attach", "--name=exp1", "--json"],
            ["stop", "--name=exp1"],
        ]
        world.looked_at(*READS, *(follows if is_over(world.home) else []))
    finally:
        world.mend()


FILES = {**JOB_FILES, **SHARED_FILES}


@examples(6)
@given(name=st.sampled_from(sorted(FILES)), damage=damages())
def test_a_file_damaged_at_any_byte_is_read_or_shown_as_damaged(
    world: World, name: str, damage: Damage
) -> None:
    look(world, name, damage(world.pristine[name]))


@st.composite
def forged(draw: st.DrawFn, content: bytes, kind: str) -> bytes:
    """The same file with other values: still JSON, and what it says may make no sense."""
    if kind == "json":
        return draw(changed(json.loads(content)).map(dumped))
    if kind == "lines":
        lines = [json.loads(line) for line in content.splitlines()]
        return b"".join(dumped(draw(changed(line))) + b"\n" for line in lines)
    return draw(json_values.map(dumped))


@examples(8)
@given(name=st.sampled_from(sorted(JOB_FILES)), data=st.data())
def test_a_file_with_other_values_is_read_or_shown_as_damaged(
    world: World, name: str, data: st.DataObject
) -> None:
    look(world, name, data.draw(forged(world.pristine[name], JOB_FILES[name])))


NUMBERS: list[Any] = [1e308, -1e308, 10**18, -(10**18), 10**4000, 0, -1, 1e-320, 2**63]


@examples(6)
@given(
    name=st.sampled_from(
        ["config.json", "state.json", "events.jsonl", "metrics.jsonl", CHECKPOINT]
    ),
    data=st.data(),
)
def test_every_number_can_be_any_number(
    world: World, name: str, data: st.DataObject
) -> None:
    content = world.pristine[name]
    values = [
        json.loads(line)
        for line in (content.splitlines() if b"\n{" in content else [content])
    ]
    key = data.draw(
        st.sampled_from(
            sorted({key for value in values for key in numeric_keys(value)})
        )
    )
    number = data.draw(st.sampled_from(NUMBERS))
    look(
        world,
        name,
        b"".join(
            json.dumps(replaced(value, key, number)).encode() + b"\n"
            for value in values
        ),
    )


def numeric_keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if (
                isinstance(inner, int | float) and not isinstance(inner, bool)
            ) or inner is None:
                yield key
            yield from numeric_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numeric_keys(inner)


def replaced(value: Any, key: str, number: Any) -> Any:
    if isinstance(value, dict):
        odd = (int, float, type(None))
        return {
            k: number
            if k == key and isinstance(inner, odd) and not isinstance(inner, bool)
            else replaced(inner, key, number)
            for k, inner in value.items()
        }
    return (
        [replaced(inner, key, number) for inner in value]
        if isinstance(value, list)
        else value
    )


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("kind", ["missing", "folder", "dangling", "loop"])
def test_a_file_that_is_none_is_read_as_damaged(
    world: World, name: str, kind: str
) -> None:
    path = world.home.folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind in {"dangling", "loop"}:
        path.symlink_to("nowhere" if kind == "dangling" else path.name)
    try:
        world.looked_at(
            ["status", "--name=exp1"],
            ["logs", "--name=exp1"],
            ["results", "--name=exp1", "--json"],
        )
    finally:
        if path.is_symlink():
            path.unlink()
        world.mend()


# ---- commands that speak with nodes; these are the real node code in processes of this machine ----

ASKS = [
    ["status", "--name=exp1", "--live"],
    ["clean", "--dry-run", "--at-home"],
    ["clean", "--dry-run", "--name=exp1", "--json"],
    ["launch", "--resume=exp1", "--dry-run"],
]


@examples(15)
@given(data=st.data())
def test_a_job_that_goes_on_from_a_damaged_one_is_refused_or_drafted(
    world: World, data: st.DataObject
) -> None:
    cluster = load_cluster(str(world.root / "cluster.yaml"))
    record = json.loads(world.pristine["config.json"])
    section = data.draw(st.sampled_from(sorted(record["settings"])))
    record["settings"][section] = data.draw(changed(record["settings"][section]))
    signed = sign(record, "job") if data.draw(st.booleans()) else record
    (world.home.folder / "config.json").write_bytes(dumped(signed))
    try:
        spec = spec_from(cluster, resume="exp1")
        drafted = draft(spec, cluster)
        probe = convert(ProbeAnswer, PROBE)
        plan = make_plan(drafted, cluster, {node.name: probe for node in cluster.nodes})
        assert [node.node for node in plan.nodes] == [n.name for n in cluster.nodes]
    except UgroError as error:
        assert error.exit_code in {2, 8, 12, 13}
    finally:
        world.mend()


@examples(3)
@given(
    name=st.sampled_from(["config.json", "state.json", CHECKPOINT, OTHERS_CHECKPOINT]),
    data=st.data(),
)
def test_what_speaks_with_nodes_survives_damage(
    world: World, name: str, data: st.DataObject
) -> None:
    content = world.pristine[name]
    content = (
        data.draw(damages())(content)
        if data.draw(st.booleans())
        else data.draw(forged(content, JOB_FILES[name]))
    )
    (world.home.folder / name).write_bytes(content)
    try:
        before = tree(world.root)
        for words in ASKS if is_over(world.home) else ASKS[:3]:
            done = world.ugro(*words)
            assert done.code in ENDS | {5, 20, 21, 25}, done
        after = tree(world.root)
        assert [name for name in before if after.get(name) != before[name]] == []
    finally:
        world.mend()


@examples(2)
@given(
    damage=damages(), name=st.sampled_from(["config.json", "state.json", CHECKPOINT])
)
def test_cleaning_and_gathering_beside_a_damaged_job_lose_nothing_of_it(
    world: World, damage: Damage, name: str
) -> None:
    (world.home.folder / name).write_bytes(damage(world.pristine[name]))
    before = {key: value for key, value in tree(world.root).items() if "exp1" in key}
    try:
        for words in (
            ["clean", "--at-home", "--name=other"],
            ["gather", "--name=other"],
            ["gather", "--name=exp1"],
        ):
            done = world.ugro(*words)
            assert done.code in ENDS | {25}, done
        after = tree(world.root)
        lost = [
            key
            for key, value in before.items()
            if after.get(key) != value and "/outputs/" not in key
        ]
        assert [key for key in lost if not key.endswith("state.json")] == []
    finally:
        world.mend()


# ---- launching, and being an agent, beside damaged jobs ----


@examples(15)
@given(data=st.data())
def test_a_launch_beside_a_job_whose_record_is_damaged_is_refused_or_taken(
    world: World, data: st.DataObject
) -> None:
    cluster = load_cluster(str(world.root / "cluster.yaml"))
    state = msgspec.structs.replace(world.home.state(), phase=Phase.RUNNING)
    world.home.save_state(state)
    (world.home.folder / "config.json").write_bytes(
        data.draw(forged(world.pristine["config.json"], "json"))
    )
    (world.home.folder.parent / "job_history.jsonl").write_bytes(b"")
    try:
        submit._refuse_if_taken(Experiments(world.home.folder.parent), cluster)
    except UgroError as error:
        assert error.exit_code == 6
    finally:
        world.mend()


def test_an_agent_leaves_a_job_alone_that_it_cannot_read(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    from ugro_tasks.agent.main import Agent

    experiments = Experiments(world.home.folder.parent)
    agent = Agent(experiments)
    for content in (b"{}", b"[" * 10_000, b"null", dumped({"plan": 1})):
        world.home.save_state(JobState(phase=Phase.RUNNING))
        (world.home.folder / "config.json").write_bytes(content)
        try:
            agent._begin_new_jobs()
            agent._supervise(world.home)
            assert agent._jobs == {}
            assert world.home.state().phase is Phase.RUNNING
            assert world.home.job_id in capsys.readouterr().err
        finally:
            world.mend()


def test_names_of_files_that_are_no_text_are_shown(world: World) -> None:
    made = [
        os.fsencode(world.home.outputs.checkpoints(0).path) + name
        for name in (b"/\xff\xfe", b"/\x1b[31mred", b"/a\nb")
    ]
    for path in made:
        os.mkdir(path)
    try:
        world.looked_at(
            ["results", "--name=exp1"],
            ["results", "--name=exp1", "--json"],
            ["clean", "--at-home", "--dry-run"],
        )
    finally:
        for path in made:
            os.rmdir(path)
