"""Nodes that answer anything: a clear error comes of it, or a check that fails; never a crash, nor anything raw."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.hostile.nodes import (
    BUILD,
    BUSY,
    FAILED,
    PROBE,
    PROGRESS,
    REFUSED,
    REQUESTS,
    WHOLE,
    HostileHost,
    answered,
)
from tests.hostile.profiles import examples
from tests.hostile.running import Done, tree, ugro
from tests.hostile.strategies import changed, json_values, text
from tests.unit.ended import EndedJob
from tests.unit.factories import make_node, make_scripts
from ugro_tasks.cluster.local import local_cluster
from ugro_tasks.codec import convert
from ugro_tasks.errors import HostError, NodesBusy
from ugro_tasks.hosts.answers import BuildProgress, ProbeAnswer
from ugro_tasks.hosts.fleet import connect
from ugro_tasks.hosts.host import ANSWER_LIMIT_BYTES
from ugro_tasks.hosts.requests import (
    BOOTSTRAP,
    Conversation,
    ask,
    ask_with_progress,
    node_zip,
)
from ugro_tasks.node.protocol import MARK

CLUSTER = """
cluster: {name: three, master: {name: gpu0, ip: 10.0.0.1, hardware: {gpu_model: RTX 4070, vram_gb: 8}}}
workers: [{name: gpu1, ip: 10.0.0.2}, {name: gpu2, ip: 10.0.0.3, environment: {manager: existing}}]
environment: {manager: venv, python_version: "3.11"}
training: {default_script: train_production.py, default_model: tiny, default_dataset: text, batch_size_per_gpu: auto}
timeouts: {connect_seconds: 0.1}
"""
ENDS = {0, 1, 2, 5, 6, 8, 9, 10, 20, 21, 25}

# What may come back to a request: a whole answer that was changed, a refusal, progress, and any bytes.
bodies = st.sampled_from([FAILED, PROGRESS, BUSY, REFUSED, {}, {"error": None}])


@st.composite
def answers_to(draw: st.DrawFn, operation: str) -> bytes:
    kind = draw(st.sampled_from(["changed"] * 4 + ["other", "value", "bytes", "cut"]))
    if kind == "bytes":
        return draw(st.sampled_from([MARK, b""])) + draw(st.binary(max_size=30)) + b"\n"
    if kind == "value":
        return answered(draw(json_values))
    body = WHOLE[operation] if kind != "other" else draw(bodies)
    said = answered(draw(changed(body, times=3)))
    return said[: draw(st.integers(0, len(said)))] if kind == "cut" else said


# ---- the wire ----


@examples(80)
@given(operation=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_an_answer_has_its_shape_or_is_a_fault(
    operation: str, data: st.DataObject
) -> None:
    said = data.draw(answers_to(operation))
    request = REQUESTS[operation]
    ways: list[Callable[[HostileHost], Any]] = [
        lambda host: ask(host, request),
        lambda host: Conversation(host).ask(request),
    ]
    for way in ways:
        try:
            answer = way(HostileHost(make_node(), lambda *_: said))
        except (HostError, NodesBusy) as error:
            assert len(error.text) < 10_000
            assert not isinstance(error, NodesBusy) or request.may_be_busy
        else:
            assert isinstance(answer, request.answer)
            # It is within all bounds.
            assert convert(request.answer, msgspec.to_builtins(answer)) == answer


@examples(30)
@given(data=st.data())
def test_a_build_that_tells_anything_ends(data: st.DataObject) -> None:
    said = b"".join(
        data.draw(st.lists(answers_to("build_environment"), min_size=1, max_size=4))
    )
    said += answered(data.draw(st.sampled_from([FAILED, PROGRESS]).flatmap(changed)))
    told: list[BuildProgress] = []
    try:
        ask_with_progress(HostileHost(make_node(), lambda *_: said), BUILD, told.append)
    except (HostError, NodesBusy) as error:
        assert len(error.text) < 10_000
    for progress in told:
        assert convert(BuildProgress, msgspec.to_builtins(progress)) == progress


@pytest.mark.parametrize("operation", sorted(WHOLE))
def test_the_shapes_fit_what_nodes_really_say(operation: str) -> None:
    kind = REQUESTS[operation].answer
    assert isinstance(convert(kind, WHOLE[operation]), kind)


def test_every_fact_of_a_real_probe_is_checked(tmp_path: Path) -> None:
    node = local_cluster(tmp_path).nodes[0]
    request = msgspec.structs.replace(
        REQUESTS["probe"],
        interpreter=sys.executable,
        project=str(tmp_path),
        slot="hostile",
        role="alone",
        address="127.0.0.1",
        master="127.0.0.1",
        port=1,
        model={"name": "none", "env": {}},
    )
    packed = node_zip()
    line = json.dumps(msgspec.to_builtins(request)).encode() + b"\n"
    argv = [sys.executable, "-ES", "-c", BOOTSTRAP, str(len(packed))]
    told = json.loads(connect(node, 5.0).run(argv, packed + line).rpartition(MARK)[2])
    fields = {field.name for field in msgspec.structs.fields(ProbeAnswer)}
    assert set(told) - fields == set(), (
        "name new facts in answers.py, with what they may be"
    )
    assert isinstance(ask(connect(node, 5.0), request), ProbeAnswer)


class _Dripping(HostileHost):
    """Says a byte now and then, and never all."""

    def stream(self, argv: Any, stdin: bytes | None = b"") -> Any:
        return self

    def write(self, data: bytes) -> None:
        pass

    def read(self, silence_seconds: float) -> bytes:
        time.sleep(0.005)
        return b"x"


def test_an_answer_that_drips_does_not_hold_the_controller_up() -> None:
    begun = time.monotonic()
    with pytest.raises(HostError):
        Conversation(_Dripping(make_node(), lambda *_: b"")).ask(
            REQUESTS["state"], timeout_seconds=0.2
        )
    assert time.monotonic() - begun < 5


class _Endless(_Dripping):
    def read(self, silence_seconds: float) -> bytes:
        return b"x" * (1 << 20)


def test_an_answer_without_an_end_is_not_kept() -> None:
    host = _Endless(make_node(), lambda *_: b"x" * (ANSWER_LIMIT_BYTES + 1))
    with pytest.raises(HostError):
        Conversation(host).ask(REQUESTS["state"])
    with pytest.raises(HostError):
        ask_with_progress(host, BUILD, lambda _: None)


# ---- every command that speaks with nodes ----


class Place:
    """A project with three nodes, which answer as a test wants, and a job that ended."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.saying: Callable[[str, dict[str, Any]], bytes] = lambda _op, _request: b""
        self.job = EndedJob(root, "exp1", stamp="20260120_120000")
        make_scripts(root / "scripts", train_production="")
        (root / "scripts" / "requirements.txt").write_text("torch\n")
        (root / "cluster.yaml").write_text(CLUSTER)

    def ugro(self, *words: str) -> Done:
        """The command; it changes nothing but what is told of the last probe, and UGRO's own logs."""

        def others() -> dict[str, Any]:
            own = (
                "cluster_state.json",
                "logs/",
                "state.json",
                "events.jsonl",
                ".cache",
            )
            files = {
                name: content
                for name, content in tree(self.root).items()
                if content is not None
            }
            return {
                name: content
                for name, content in files.items()
                if not any(word in name for word in own)
            }

        before = others()
        done = ugro(*words, folder=self.root)
        assert done.code in ENDS, done
        assert len(done.out) + len(done.err) < 3_000_000
        assert others() == before
        return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("forged"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("UGRO_CLUSTER", raising=False)
        patch.setenv("HOME", str(made.root))

        def forged(node: Any, _seconds: float) -> HostileHost:
            return HostileHost(node, lambda op, request: made.saying(op, request))

        patch.setattr("ugro_tasks.hosts.fleet.connect", forged)
        # Of a host key nobody asks here: these nodes are reached without.
        patch.setattr("ugro_tasks.hosts.trust.new_key_of", lambda *_: None)
        yield made


COMMANDS = {
    "health": (["health", "--verbose"], "probe"),
    "health --json": (["health", "--json"], "probe"),
    "init": (["init"], "probe"),
    "dry-run": (["launch", "--name=n", "--dry-run"], "probe"),
    "dry-run --json": (["launch", "--name=n", "--dry-run", "--json"], "probe"),
    "reset": (["reset"], "reset"),
    "reset --json": (["reset", "--json"], "reset"),
    "status --live": (["status", "--name=exp1", "--live"], "state"),
    "clean": (["clean"], "clean"),
    "clean --json": (["clean", "--json", "--dry-run"], "clean"),
    "sync-envs": (["sync-envs"], "environment"),
    "sync-envs --check": (["sync-envs", "--dry-run"], "environment"),
    "gather": (["gather", "--name=exp1"], "manifests"),
}


@examples(25)
@given(command=st.sampled_from(sorted(COMMANDS)), data=st.data())
def test_a_command_survives_nodes_that_say_anything(
    place: Place, command: str, data: st.DataObject
) -> None:
    words, operation = COMMANDS[command]
    forged = {
        op: data.draw(answers_to(op))
        for op in {operation, *(["build_environment"] if "sync" in command else [])}
    }
    # Without rsync, files are asked for, too: such a node answers that with nothing that can be read.
    place.saying = lambda op, _request: forged.get(op) or answered(WHOLE.get(op, {}))
    place.ugro(*words)


# Facts that are of the right kind, and yet odd.
ODD: dict[str, Any] = {
    "numbers that are none": {
        "gpus": {"code": 0, "stderr": "", "stdout": "²,RTX 4070,u,1,²,²,²,²,²\n"}
    },
    "numbers of many digits": {
        "gpus": {
            "code": 0,
            "stderr": "",
            "stdout": f"0,RTX 4070,u,1,{'9' * 400},{'9' * 5000},1,1,1\n",
        }
    },
    "a card called a command": {
        "gpus": {
            "code": 0,
            "stderr": "",
            "stdout": "0; rm -rf ~,RTX 4070,u,1,8188,1,1,1,1\n",
        }
    },
    "ecc": {
        "gpus": {"code": 0, "stderr": "", "stdout": "0,RTX 4070,u,1,8188,1,1,1,1,²\n"}
    },
    "processes that are none": {
        "apps": {
            "code": 0,
            "stderr": "",
            "stdout": "²,²,x\n" + "9" * 5000 + ",1,y\n7,99999,z\n",
        }
    },
    "a model without heads": {
        "model": {
            "config": {"hidden_size": 1, "layers": 1, "heads": 0, "vocabulary": 1}
        }
    },
    "a model without end": {
        "model": {
            "config": dict.fromkeys(
                ("hidden_size", "layers", "heads", "vocabulary"), 10**300
            )
        }
    },
    "a model of no layers": {
        "model": {
            "config": {"hidden_size": -1, "layers": -1, "heads": 1, "vocabulary": 0}
        }
    },
    "a version of many digits": {
        "environment": PROBE["environment"] | {"version": "9" * 90}
    },
    "no cuda": {"torch": PROBE["torch"] | {"cuda_available": False, "cuda": None}},
    "hidden cards": {
        "torch": PROBE["torch"] | {"cuda_available": False},
        "visible_cards": "$(touch /tmp/owned)\x1b[2J",
    },
    "an interface called a command": {
        "interfaces": {"eth0; reboot": {"addresses": ["10.0.0.1"], "mtu": 1}}
    },
    "an address that is a command": {
        "interfaces": {"eth0": {"addresses": ["10.0.0.1", "$(reboot)"], "mtu": 1}}
    },
    "no interface": {"interfaces": {}},
    "a port that is none": {"free_port": 10**9},
    "no port": {"free_port": None, "port": "taken"},
    "a clock from another age": {"started": -1e9, "ended": 1e10},
    "a job without a name": {
        "lease": {"job": "\x1b[2Jowned\n[red]", "pid": 7, "controller": "x" * 4000}
    },
    "a talkative shell": {
        "torch": {"code": 1, "stdout": "", "stderr": "\x1b]0;owned\x07" + "x" * 19_000}
    },
}


@pytest.mark.parametrize("facts", ODD.values(), ids=ODD)
def test_odd_facts_fail_a_check_and_nothing_else(
    place: Place, facts: dict[str, Any]
) -> None:
    place.saying = lambda op, _request: answered(
        WHOLE[op] | (facts if op == "probe" else {})
    )
    for command in ("health", "health --json", "dry-run"):
        done = place.ugro(*COMMANDS[command][0])
        assert "--gpu-reset -i 0;" not in done.out + done.err


@pytest.mark.parametrize(
    "facts",
    [
        {"machine": "x/../../../../../tmp"},
        {"machine": "x86_64\n"},
        {"base": {"path": "/usr/bin/python3", "version": "/tmp/evil"}},
        {"base": {"path": "/usr/bin/python3", "version": "--index-url=http://x"}},
        {"base": {"path": "/usr/bin/python3", "version": "3.11\n"}},
    ],
    ids=str,
)
def test_a_node_does_not_say_where_or_with_what_this_machine_fetches_packages(
    place: Place, facts: dict[str, Any]
) -> None:
    behind = {"environment": {"there": False, "stamp": None}}
    place.saying = lambda op, _request: answered(WHOLE[op] | behind | facts)
    done = place.ugro("sync-envs", "--offline", "--nodes=gpu0")
    assert done.code == 25, done
    assert "none of a node of UGRO" in done.err


@examples(6)
@given(words=text)
@example(words="\x1b[2J\udcff\u202e[red]\n")
def test_words_of_a_node_are_never_shown_raw(place: Place, words: str) -> None:
    short = words[:80]
    process = WHOLE["reset"]["ended"][0] | {"command": short, "job": short}
    saying = {
        "probe": WHOLE["probe"]
        | {
            "hostname": short,
            "preface": short,
            "jobs": [process],
            "torch": {"code": 1, "stdout": short, "stderr": short},
            "gpus": {"code": 9, "stdout": short, "stderr": short},
        },
        "reset": {"ended": [process], "left": []},
        "state": {"error": "x", "message": short},
        "clean": {"folders": {}, "others": [short]},
        "environment": WHOLE["environment"]
        | {"torch": {"code": 1, "stdout": "", "stderr": short}},
        "build_environment": FAILED
        | {"tail": f"error: {short}", "log": short, "message": short},
    }
    place.saying = lambda op, _request: answered(saying.get(op, WHOLE[op]))
    for command in (
        "health",
        "health --json",
        "dry-run",
        "reset",
        "status --live",
        "clean",
        "sync-envs",
    ):
        place.ugro(*COMMANDS[command][0])  # which asserts it


def test_what_is_stored_of_a_probe_is_bounded(place: Place) -> None:
    place.saying = lambda op, _request: answered(
        WHOLE[op] | {"hostname": "x" * (8 << 20), "more": "y" * (8 << 20)}
    )
    assert place.ugro("health").code == 5
    stored = place.root / "experiments" / "cluster_state.json"
    assert stored.stat().st_size < 1 << 20
    json.loads(stored.read_bytes())
