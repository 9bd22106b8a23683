"""The benchmarks are not run here, but they must not fall behind what they measure."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import benchmarks
from benchmarks import peers
from benchmarks.common import table
from benchmarks.peers import ALL, DEBIAN, PARALLEL_SSH, PDSH, PINS, PYINFRA

FOLDER = Path(benchmarks.__file__).parent
LISTED = re.findall(r"python -m benchmarks\.(\w+)", benchmarks.__doc__ or "")
# count_memory runs in the training environment, which has torch.
MODULES = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if path.stem not in {"__init__", "count_memory"}
)
SHARED = {"command", "common", "peers"}


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark as a program."""
    argv = [sys.executable, "-m", f"benchmarks.{name}", *words]
    return subprocess.run(
        argv, cwd=FOLDER.parent, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_can_be_loaded(name: str) -> None:
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_all_benchmarks_are_listed() -> None:
    assert set(LISTED) == set(MODULES) - SHARED


@pytest.mark.parametrize("name", LISTED)
def test_what_is_listed_is_documented(name: str) -> None:
    assert (
        f"python -m benchmarks.{name}"
        in (FOLDER.parent / "docs" / "benchmarks.md").read_text()
    )


@pytest.mark.parametrize("name", LISTED)
def test_help_explains_every_flag_and_shows_its_default(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    actions = importlib.import_module(f"benchmarks.{name}").parser()._actions
    own = [action for action in actions if action.dest != "help"]
    assert own
    for action in own:
        (flag,) = action.option_strings
        assert re.search(rf"^  {flag}\b", done.stdout, re.MULTILINE)
        assert action.help
    assert done.stdout.count("(default:") >= len(own)


@pytest.mark.parametrize("name", LISTED)
def test_an_unknown_flag_is_refused_without_a_traceback(name: str) -> None:
    done = run(name, "--frobnicate")
    assert done.returncode == 2
    assert done.stderr.endswith("error: unrecognized arguments: --frobnicate\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("health", ["--rounds", "0"], "argument --rounds: 0 is not 1 or more"),
        ("health", ["--delay", "nan"], "argument --delay: nan is not from 0 to 10000"),
        ("health", ["--delay", "far"], "argument --delay: invalid number value: 'far'"),
        ("health", ["--hosts", "1000"], "argument --hosts: 1000 is not from 1 to 200"),
        (
            "gathering",
            ["--megabytes", "2.5"],
            "argument --megabytes: invalid whole number value: '2.5'",
        ),
        ("capture", ["5", "100"], "unrecognized arguments: 5 100"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_a_line(
    name: str, words: list[str], said: str
) -> None:
    done = run(name, *words)
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: {said}\n")


def test_each_missing_debian_package_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert peers.find(PDSH, PARALLEL_SSH) == {}
    assert capsys.readouterr().err.splitlines() == [
        "pdsh: not installed, and so left out; as root on Debian: apt-get install pdsh",
        "parallel-ssh: not installed, and so left out; as root on Debian: apt-get install pssh",
    ]


def test_what_is_on_the_path_is_found_and_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "pdsh"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert peers.find(PDSH) == {"pdsh": program}
    assert capsys.readouterr().err == ""


def test_a_peer_that_pip_cannot_install_is_left_out_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pins = tmp_path / "bench.txt"
    pins.write_text("pyinfra==0.0.0.dev0\n")
    monkeypatch.setattr(peers, "PINS", pins)
    monkeypatch.setattr(peers, "PEERS", tmp_path / "peers")
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert peers.find(PYINFRA) == {}
    installing, left_out = capsys.readouterr().err.splitlines()
    assert installing.startswith(
        "pyinfra: installing pyinfra==0.0.0.dev0, pinned in requirements/bench.txt"
    )
    assert left_out.startswith(
        "pyinfra: not installed, and so left out; pip cannot install pyinfra==0.0.0.dev0"
    )
    assert left_out.endswith("the next run tries again")


def test_a_table_says_who_is_not_installed_and_who_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table(
        "a title", {"ours": [1.0, 2.0], "pdsh": []}, "ours", not_installed=["ansible"]
    )
    *_, ours, pdsh, ansible = capsys.readouterr().out.splitlines()
    assert ours.split() == ["ours", "1.00", "1.50", "2.00", "s"]
    assert pdsh.split() == ["pdsh", "failed"]
    assert ansible.split() == ["ansible", "not", "installed"]


def test_every_pin_of_the_peers_is_exact() -> None:
    pins = peers.listed(PINS)
    assert pins
    for line in pins.values():
        (specifier,) = Requirement(line).specifier
        assert specifier.operator == "=="
        assert "*" not in specifier.version


def test_every_debian_package_has_a_line_and_says_what_for() -> None:
    lines = [
        line for line in DEBIAN.read_text().splitlines() if not line.startswith("#")
    ]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9][a-z0-9.+-]+ # benchmarks\.\w+: \S.*", line)


def test_the_peers_and_the_lists_name_the_same_packages() -> None:
    debian, pins = peers.listed(DEBIAN), peers.listed(PINS)
    for peer in ALL:
        assert (peer.package in debian) + (peer.package in pins) == 1
    assert set(debian) <= {peer.package for peer in ALL}
    told = (FOLDER.parent / "docs" / "benchmarks.md").read_text()
    assert f"`apt-get install {' '.join(debian)}`" in told


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_ended_benchmark_removes_its_folders(
    tmp_path: Path, how: signal.Signals
) -> None:
    command = "from benchmarks import command; import sys, tempfile, time\n"
    command += "def main():\n with tempfile.TemporaryDirectory():\n  print('there', flush=True); time.sleep(60)\n"
    command += "command.run(command.make_parser('sleep', ''), main)"
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=FOLDER.parent,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(how)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (
        128 + how,
        f"ended by {how.name}; cleaning up\n",
    )
    assert list(tmp_path.iterdir()) == []
