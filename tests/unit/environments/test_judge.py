"""Environments, judged: which are behind, in what they differ, and what a failed build means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import convert

from tests.unit.factories import make_cluster, make_node, make_probe
from ugro_tasks.cluster.model import Environment
from ugro_tasks.environments.judge import (
    Fingerprint,
    behind,
    build_fault,
    difference,
    fingerprint_of,
    lock_is_stale,
    odd_versions,
    uneven,
)
from ugro_tasks.environments.recipe import Recipe
from ugro_tasks.environments.sync import Synced, fault_of
from ugro_tasks.errors import EnvironmentFault, HostUnreachable, NodesBusy
from ugro_tasks.health.cluster_checks import judge_all
from ugro_tasks.hosts.answers import BuildFailed, ProbeAnswer

OTHER = "b" * 64
RECIPE = Recipe(manager="uv", name="main", digest="a" * 64, files={})
STAMP = {
    "manager": "uv", "digest": RECIPE.digest, "made_at": 1.0, "python": "3.11.7", "torch": "2.13.0", "cuda": "12.8",
}  # fmt: skip
TORCH = {"code": 0, "stderr": "", "python": "3.11.7", "torch": "2.13.0", "cuda": "12.8"}
EVEN = Fingerprint(digest="a" * 64, python="3.11.7", torch="2.13.0", cuda="12.8")


def facts(
    stamp: dict[str, Any] | None = STAMP, there: bool = True, **torch: Any
) -> ProbeAnswer:
    return make_probe(environment={"there": there, "stamp": stamp}, torch=TORCH | torch)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (facts(), None),
        (make_probe(torch=TORCH), None),
        (make_probe(environment={}, torch=TORCH), None),
        (facts(None, there=False, code=None, torch=None), "not made yet"),
        (facts(None), "made by somebody else"),
        (
            facts(STAMP | {"digest": OTHER}),
            "made from another uv.lock (bbbbbbb, here aaaaaaa)",
        ),
        (facts(STAMP | {"manager": "venv"}), "made by venv, not by uv"),
        (facts(code=1, torch=None), "its Python does not run any more"),
        (facts(torch="2.12.0"), "torch 2.13.0 is now 2.12.0"),
        (
            facts(torch=None, cuda=None),
            "torch 2.13.0 is now gone, CUDA 12.8 is now gone",
        ),
        (facts(python="3.12.1"), "Python 3.11.7 is now 3.12.1"),
        (facts(python="3.11.9"), None),
    ],
)
def test_a_node_is_behind_for_a_reason(told: ProbeAnswer, why: str | None) -> None:
    found = difference(RECIPE, told)
    assert (found is None) == (why is None)
    assert (why or "") in (found or "")


def test_only_nodes_of_which_something_is_known_are_behind(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "requirements.txt").write_text("torch==2.13.0\n")
    # Of uv there is nothing here to make it from.
    environments = ("venv", "venv", "existing", "uv")
    nodes = tuple(
        make_node(rank, environment=convert({"manager": manager}, Environment))
        for rank, manager in enumerate(environments)
    )
    told = {f"gpu{rank}": facts() for rank in (1, 2, 3)}
    assert behind(make_cluster(tmp_path, nodes), told) == {
        "gpu1": "made by uv, not by venv"
    }


def test_a_fingerprint_in_words() -> None:
    assert (
        str(fingerprint_of(facts()))
        == "aaaaaaa, Python 3.11.7, torch 2.13.0 (CUDA 12.8)"
    )
    assert (
        str(fingerprint_of(facts(None, torch=None, cuda=None)))
        == "-, Python 3.11.7, no torch"
    )
    assert str(Fingerprint(digest=None, python=None, torch=None, cuda=None)) == "none"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"python": "3.11.2"}, None),
        ({"python": "3.12.1"}, "Python: gpu0 3.11, gpu1 3.12"),
        (
            {"torch": "2.13.0+cpu", "cuda": None},
            "torch: gpu0 2.13.0, gpu1 2.13.0+cpu\nCUDA: gpu0 12.8, gpu1 none",
        ),
        ({"digest": None}, "lock: gpu0 aaaaaaaaaaaaaaaaaaaa, gpu1 none"),
    ],
)
def test_what_differs_is_told_node_by_node(
    change: dict[str, Any], words: str | None
) -> None:
    assert (
        uneven({"gpu0": EVEN, "gpu1": msgspec.structs.replace(EVEN, **change)}) == words
    )


@pytest.mark.parametrize(
    ("versions", "own", "odd"),
    [
        ({"a": "0.77.0", "b": "0.77.0"}, None, {}),
        ({"a": "0.77.0", "b": "0.8.1"}, None, {"b": ("0.8.1", "0.77.0")}),
        ({"a": "0.77.0", "b": None}, None, {}),
        ({"a": "0.77.0"}, "0.76.1", {"a": ("0.77.0", "0.76.1")}),
        ({}, "0.77.0", {}),
    ],
)
def test_a_pixi_unlike_the_others(
    versions: dict[str, str | None], own: str | None, odd: dict[str, tuple[str, str]]
) -> None:
    assert odd_versions(versions, own) == odd


def test_health_compares_the_pixis(tmp_path: Path) -> None:
    told = {
        f"gpu{rank}": make_probe(
            torch=TORCH,
            environment={
                "there": True,
                "stamp": None,
                "version": version,
                "manifest": "/p/pixi.toml",
            },
        )
        for rank, version in enumerate(("0.77.0", "0.60.0"))
    }
    checks = {
        check.name: check
        for check in judge_all(
            make_cluster(tmp_path, 2), told, {"gpu0": 0.0, "gpu1": 0.0}
        )
    }
    assert (checks["same pixi"].ok, checks["same pixi"].fix) == (
        False,
        "on those that are behind: pixi self-update",
    )
    assert "gpu1 0.60.0" in checks["same pixi"].value


# What the programs really said, cut short.
UV_STALE = "error: The lockfile at `uv.lock` needs to be updated, but `--locked` was provided.\n"
UV_STALE_CHECK = UV_STALE.replace("--locked", "--check")
UV_OFFLINE = (
    "error: Request failed after 3 retries in 7.1s\n  cause: client error (Connect)\n  cause: dns error\n"
    "  cause: failed to lookup address information: Temporary failure in name resolution\n"
)
UV_NO_PYTHON = "error: No interpreter found for Python 3.14 in managed installations or search path\n"
PIP_NONE = (
    "ERROR: Could not find a version that satisfies the requirement torch==9\n"
    "ERROR: No matching distribution found for torch==9\n"
)
PIP_OFFLINE = (
    "WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken "
    "by 'NewConnectionError(...: Failed to establish a new connection: [Errno -3] Temporary failure in name "
    f"resolution')': /simple/torch/\n{PIP_NONE}"
)
PIP_HASH = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated\n"
PIXI_STALE = "Error:   \u00d7 lock-file not up-to-date with the workspace\n"
PIXI_CUDA = (
    "Error:   \u00d7 Cannot install environment 'default'\n"
    "  \u2570\u2500\u25b6 Virtual package '__cuda' does not match any of the available virtual packages on "
    "your machine: [__glibc=2.28=0]\n"
    "  help:  You can mock the virtual package by overriding the environment variable, e.g.: "
    "'`CONDA_OVERRIDE_CUDA=12.0`'\n"
)
FULL = "error: Failed to install: torch-2.13.0\n  cause: No space left on device (os error 28)\n"


def failure(
    phase: str = "installing", tail: str = "", message: str = "ended with exit code 1"
) -> BuildFailed:
    return BuildFailed(
        phase=phase,
        tail=tail,
        message=message,
        free_bytes=3 << 29,
        log="/home/ada/.venv.sync/log",
    )


@pytest.mark.parametrize(
    ("manager", "told", "what", "fix"),
    [
        (
            "uv",
            failure(tail=UV_OFFLINE),
            "uv reaches no packages from there (dns error)",
            "--offline",
        ),
        (
            "venv",
            failure(tail=PIP_OFFLINE),
            "pip reaches no packages from there",
            "--offline",
        ),
        (
            "uv",
            failure(tail=UV_NO_PYTHON),
            "there is no Python 3.12 on it",
            "python3.12-venv",
        ),
        (
            "venv",
            failure("no python"),
            "there is no Python 3.12 on it",
            "environment.python of gpu0",
        ),
        (
            "venv",
            failure("no ensurepip", message="/usr/bin/python3 cannot"),
            "lacks ensurepip",
            "python3.12-venv",
        ),
        (
            "uv",
            failure(tail=FULL),
            "its disk is full (1.5 GiB free)",
            "free some space on gpu0",
        ),
        (
            "uv",
            failure("writing", message="/x: No space left on device"),
            "its disk is full",
            "free some space",
        ),
        (
            "pixi",
            failure(tail=PIXI_CUDA),
            "pixi finds no CUDA driver there",
            "CONDA_OVERRIDE_CUDA",
        ),
        ("pixi", failure("no pixi"), "pixi was not found", "own documentation"),
        (
            "pixi",
            failure("no pixi-unpack"),
            "pixi-unpack was not found",
            "pixi global install pixi-unpack",
        ),
        ("uv", failure("no uv"), "uv was not found", "pip install --user uv"),
        (
            "venv",
            failure(tail=PIP_HASH),
            "a package that is not the pinned one",
            "requirements.txt",
        ),
        (
            "venv",
            failure("not pinned", message="torch 2 with sha256 c"),
            "another file than constraints.txt",
            "rebuilt",
        ),
        (
            "venv",
            failure(tail=PIP_NONE),
            "No matching distribution found for torch==9",
            "/home/ada/.venv.sync/log",
        ),
        (
            "uv",
            failure("theirs", message="/x/.venv is UGRO's own environment"),
            "UGRO's own",
            "environment.path",
        ),
        (
            "uv",
            failure("broken", message="libpython: cannot open"),
            "libpython: cannot open",
            "Python",
        ),
        ("uv", failure(tail=""), "ended with exit code 1", "log"),
    ],
)
def test_a_failed_build_is_explained(
    manager: str, told: BuildFailed, what: str, fix: str
) -> None:
    recipe = Recipe(
        manager=manager, name="main", digest="a" * 64, files={}, python="3.12"
    )
    first, _, rest = build_fault(make_node(), recipe, told).text.partition("\n")
    assert first.startswith("gpu0: ")
    assert what in first
    assert fix in rest
    assert "\n" not in rest


@pytest.mark.parametrize("tail", [UV_STALE, UV_STALE_CHECK, PIXI_STALE])
def test_a_stale_lock_is_known(tail: str) -> None:
    assert lock_is_stale(tail)
    assert (
        "does not fit the manifest"
        in build_fault(make_node(), RECIPE, failure(tail=tail)).text
    )


# ---- the verdict on all nodes ----


def even(node: str, after: Fingerprint = EVEN) -> Synced:
    return Synced(node=node, before=EVEN, after=after)


def test_nodes_that_are_even_are_no_fault() -> None:
    assert fault_of({"gpu0": even("gpu0"), "gpu1": even("gpu1")}) is None


def test_the_nodes_that_are_behind_are_named() -> None:
    lost = HostUnreachable("gpu1", "no answer", "is the machine on?")
    fault = fault_of({"gpu0": even("gpu0"), "gpu1": lost})
    assert fault
    assert (fault.exit_code, fault.text.splitlines()[0]) == (21, "gpu1: no answer")
    assert (
        "behind, or not known: gpu1; what was in use there stays in use. Up to date: gpu0"
        in fault.text
    )


def test_faults_of_several_kinds_are_one_of_the_environment() -> None:
    lost, busy = (
        HostUnreachable("gpu0", "no answer"),
        NodesBusy("gpu1: held by job exp1"),
    )
    fault = fault_of({"gpu0": lost, "gpu1": busy})
    assert fault
    assert fault.exit_code == EnvironmentFault.exit_code


def test_what_all_say_is_said_once() -> None:
    stale = {
        name: EnvironmentFault("uv.lock does not fit") for name in ("gpu0", "gpu1")
    }
    fault = fault_of(stale)
    assert fault
    assert fault.text.count("uv.lock does not fit") == 1


def test_environments_that_differ_after_all_are_a_fault() -> None:
    cpu = Fingerprint(digest="a" * 64, python="3.11.7", torch="2.13.0+cpu", cuda=None)
    fault = fault_of({"gpu0": even("gpu0"), "gpu1": even("gpu1", cpu)})
    assert fault
    assert "CUDA: gpu0 12.8, gpu1 none" in fault.text
