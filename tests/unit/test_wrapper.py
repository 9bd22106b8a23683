"""bin/ugro on a checkout of its own: real environments, real pip, but a small project and pins that lie beside it."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.pins import (
    PYPROJECT,
    pins_of,
    too_new_for_the_oldest_python,
    without_hash,
)

ROOT = Path(__file__).resolve().parents[2]
# A set-up takes five seconds, and on a machine with other work a minute.
DEADLINE_SECONDS = 150
pytestmark = pytest.mark.timeout(600)

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "ugro"
version = "1.0"
"""

# Builds itself without any other package, and not while there is a gate.
BACKEND = '''
import time
import zipfile
from pathlib import Path

PROGRAM = """
import importlib.metadata as installed, json, os, sys

def main():
    versions = {d.name: d.version for d in installed.distributions() if d.name in ("pin", "devpin")}
    program = os.path.basename(sys.argv[0])
    print(json.dumps({"program": program, "arguments": sys.argv[1:], "folder": os.getcwd(), **versions}))
"""

def wheel(folder, name, version, files):
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\\n" for file in (*files, f"{info}/RECORD"))
    path = Path(folder, f"{name}-{version}-py3-none-any.whl")
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path.name

def build_editable(folder, config_settings=None, metadata_directory=None):
    while Path("gate").exists():
        Path("at-the-gate").touch()
        time.sleep(0.01)
    entry = "[console_scripts]\\nugro = ugro_program:main\\ninv = ugro_program:main\\n"
    return wheel(folder, "ugro", "1.0", {"ugro_program.py": PROGRAM, "ugro-1.0.dist-info/entry_points.txt": entry})
'''


class Checkout:
    """A folder with the real bin/ugro and a small project."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("bin", "requirements", "wheels"):
            (root / folder).mkdir(parents=True)
        shutil.copy(ROOT / "bin" / "ugro", root / "bin")
        shutil.copy(ROOT / "requirements" / "pip.txt", root / "requirements")
        # Where programs put what they need for a moment, if nobody tells them otherwise.
        self.temporary = root.parent / "temporary"
        self.temporary.mkdir(exist_ok=True)
        (root / "pyproject.toml").write_text(PROJECT)
        (root / "backend.py").write_text(BACKEND)
        self.versions = 0
        self.pin("control", "pin")
        self.pin("dev", "devpin")

    @property
    def program(self) -> Path:
        return self.root / "bin" / "ugro"

    def pin(self, file: str, name: str) -> str:
        """Pin a new version of a package in requirements/<file>.txt; gives the version."""
        self.versions += 1
        version = f"{self.versions}.0"
        made = runpy.run_path(str(self.root / "backend.py"))["wheel"](
            self.root / "wheels", name, version, {}
        )
        line = f"{name} @ {(self.root / 'wheels' / made).as_uri()}\n"
        (self.root / "requirements" / f"{file}.txt").write_text(line)
        return version

    def run(
        self, *arguments: str, program: Path | None = None, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        argv = [str(program or self.program), *arguments]
        environ = how.pop("env", os.environ) | {"TMPDIR": str(self.temporary)}
        return subprocess.run(
            argv,
            env=environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
            **how,
        )

    def told(self, *arguments: str) -> dict[str, Any]:
        """What the program itself says of its arguments, folder and packages."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The program with its output in the file <first argument>.stderr, in a session of its own."""
        with (self.root / f"{arguments[0]}.stderr").open("w") as stderr:
            return subprocess.Popen(
                [self.program, *arguments],
                env=os.environ | {"TMPDIR": str(self.temporary)},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    def stderr_of(self, argument: str) -> str:
        return (self.root / f"{argument}.stderr").read_text()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose .venv is whole."""
    checkout = Checkout(tmp_path_factory.mktemp("wrapper") / "a checkout")
    checkout.told()
    return checkout


@pytest.fixture
def in_set_up(checkout: Checkout) -> Iterator[subprocess.Popen[bytes]]:
    """A bin/ugro that is in the middle of a set-up, and stays there until the file `gate` is gone."""
    gate, at_the_gate = checkout.root / "gate", checkout.root / "at-the-gate"
    gate.touch()
    at_the_gate.unlink(missing_ok=True)
    checkout.pin("control", "pin")
    process = checkout.start("first")
    try:
        wait_until(at_the_gate.exists)
        yield process
    finally:
        gate.unlink(missing_ok=True)
        process.wait(timeout=DEADLINE_SECONDS)


def wait_until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_arguments_and_the_users_folder_reach_the_program(
    checkout: Checkout, tmp_path: Path
) -> None:
    arguments = ["launch", "--args", "a  b 'c' $HOME *", ""]
    answer = json.loads(checkout.run(*arguments, cwd=tmp_path).stdout)
    assert (answer["arguments"], answer["folder"]) == (arguments, str(tmp_path))


@pytest.mark.parametrize(
    "words",
    [
        ["test", "--", "-k", "a b"],
        ["check"],
        ["chaos"],
        ["simulate"],
        ["--help", "test"],
    ],
)
def test_the_developers_tasks_are_those_of_the_checkout(
    checkout: Checkout, words: list[str], tmp_path: Path
) -> None:
    answer = json.loads(checkout.run(*words, cwd=tmp_path).stdout)
    assert answer["program"] == "inv"
    assert answer["arguments"] == ["--search-root", str(checkout.root), *words]
    assert answer["folder"] == str(tmp_path)


def test_all_others_are_those_of_the_program(checkout: Checkout) -> None:
    assert checkout.told("launch", "test")["program"] == "ugro"
    assert checkout.told("--help", "launch")["program"] == "ugro"


def test_a_link_finds_its_checkout(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "first").symlink_to(checkout.program)
    (tmp_path / "ugro").symlink_to("first")
    assert checkout.run(program=tmp_path / "ugro").stdout


def test_a_whole_environment_is_left_as_it_is(checkout: Checkout) -> None:
    def changed_at() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in checkout.root.rglob("*")}

    checkout.told()
    before = changed_at()
    assert checkout.run().stderr == ""
    assert changed_at() == before


def test_changed_pins_are_installed_by_the_next_call(checkout: Checkout) -> None:
    version = checkout.pin("control", "pin")
    assert checkout.told()["pin"] == version


def test_only_test_and_check_get_the_development_packages(checkout: Checkout) -> None:
    version = checkout.pin("dev", "devpin")
    assert checkout.told("launch", "test").get("devpin") != version
    assert checkout.told("test")["devpin"] == version
    assert checkout.run("launch").stderr == ""  # what test needs is enough for it


def test_of_two_at_once_the_second_waits(
    checkout: Checkout, in_set_up: subprocess.Popen[bytes]
) -> None:
    second = checkout.start("second")
    wait_until(lambda: "waiting for it" in checkout.stderr_of("second"))
    (checkout.root / "gate").unlink()
    assert [
        process.wait(timeout=DEADLINE_SECONDS) for process in (in_set_up, second)
    ] == [0, 0]
    assert "installing" not in checkout.stderr_of("second")


def test_a_set_up_that_was_killed_is_made_anew(
    checkout: Checkout, in_set_up: subprocess.Popen[bytes]
) -> None:
    os.killpg(in_set_up.pid, signal.SIGKILL)
    half_written = checkout.root / ".venv" / "half-written"
    half_written.touch()
    (checkout.root / "gate").unlink()
    assert any((checkout.root / ".ugro" / "set-up").iterdir())
    assert checkout.told()
    assert not half_written.exists()
    assert not (checkout.root / ".ugro" / "set-up").exists()
    assert not any(checkout.temporary.iterdir())


def test_a_checkout_that_was_moved_gets_another_environment(checkout: Checkout) -> None:
    checkout.told()
    place = checkout.root
    whole = shutil.copytree(place, place.with_name("whole"), symlinks=True)
    checkout.root = place.rename(place.with_name("moved"))
    process = checkout.start("moved")
    try:
        wait_until(
            lambda: f"making {checkout.root}/.venv" in checkout.stderr_of("moved")
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=DEADLINE_SECONDS)
        checkout.root = whole.rename(place)


# What bin/ugro calls before there is any Python.
TOOLS = ("bash", "head", "mkdir", "readlink", "rm")


@pytest.mark.parametrize(
    ("python", "code", "words"),
    [
        (
            None,
            11,
            "no Python 3.11 or newer on PATH; as root: apt-get install python3 python3-venv",
        ),
        # What the question for its version is answered with.
        (
            "exit 1",
            11,
            "no Python 3.11 or newer",
        ),
        (
            'case "$*" in *"import venv"*) exit 1; esac',
            11,
            "python3 lacks its venv module; as root: apt-get inst",
        ),
        (
            'case "$*" in *"-m venv"*) echo disk full; exit 1; esac',
            10,
            "disk full\nugro: {venv} could not be set up",
        ),
    ],
    ids=["no python", "old python", "no venv module", "set-up fails"],
)
def test_what_cannot_be_set_up_is_told(
    tmp_path: Path, python: str | None, code: int, words: str
) -> None:
    path = tmp_path / "path"
    path.mkdir()
    for tool in TOOLS:
        (path / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool}"))
    if python:
        (path / "python3").write_text(f"#!{path}/bash\n{python}\n")
        (path / "python3").chmod(0o755)
    checkout = Checkout(tmp_path / "checkout")
    done = checkout.run(env={"PATH": str(path)})
    assert (done.returncode, done.stdout) == (code, "")
    assert words.format(venv=checkout.root / ".venv") in done.stderr


@pytest.mark.parametrize("file", ["control", "dev", "docs"])
def test_every_dependency_is_pinned_within_its_range(file: str) -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = {
        "control": PYPROJECT["project"]["dependencies"]
        + PYPROJECT["build-system"]["requires"],
        "dev": extras["dev"],
        "docs": extras["docs"],
    }[file]
    pins = pins_of(file)
    for requirement in map(Requirement, wanted):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("file", ["control", "dev", "docs", "pip"])
def test_nothing_is_installed_but_what_its_hash_names(file: str) -> None:
    assert pins_of(file)
    assert without_hash(file) == []


def test_files_that_are_installed_into_one_environment_agree() -> None:
    docs, others = pins_of("docs"), pins_of("control") | pins_of("dev")
    assert {
        name for name in docs.keys() & others.keys() if docs[name] != others[name]
    } == set()


@pytest.mark.parametrize("file", ["control", "dev"])
def test_what_is_pinned_takes_the_oldest_python_that_ugro_takes(file: str) -> None:
    assert too_new_for_the_oldest_python(file) == {}


@pytest.mark.parametrize(
    ("ci", "code", "last"),
    [("", 0, "no such tool"), ("true", 1, "with CI set nothing may be")],
)
def test_what_the_tests_left_out_is_said_last_and_fails_in_ci(
    tmp_path: Path, ci: str, code: int, last: str
) -> None:
    file = tmp_path / "test_two.py"
    file.write_text(
        "import pytest\ndef test_one(): pytest.skip('no such tool')\ndef test_two(): pass\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.left_out",
            "--noconftest",
            "-c",
            os.devnull,
            str(file),
        ],
        cwd=ROOT,
        env=os.environ | {"CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, last in done.stdout.splitlines()[-1]) == (code, True), (
        done.stdout
    )
