"""What Python, pip and uv are called with to make an environment.

The controller fills its store for nodes without a network with the same words.

pip takes hashes in a constraints file for all packages only from 26.1 on, and prefers then whatever file it can tell
the hash of beforehand: a node's own wheels (find-links) would never be taken. So any pip chooses first, by the versions
alone; what it chose is held against the hashes, and pip installs exactly that, checking each file.
"""

from __future__ import annotations

import json
import os
import re
from typing import Dict, List, Set, Tuple

from .files import read_text
from .programs import run_later

PIP_QUIET = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
PIP_OPTIONS = ["install", "--no-user", *PIP_QUIET]
PIP_WITH_REPORTS = (22, 2)
PIP_FOR_OTHERS = (22, 3)  # can install into another environment than its own
CAN_MAKE_VENV = "import venv, ensurepip; ensurepip.version()"
# Of another environment than the one that is made.
FOREIGN = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
HASH = re.compile(r"\s*\\?\s*--hash=sha256:([0-9a-f]{64})")


def own_variables() -> Dict[str, str]:
    """This process's environment without what is another Python environment's."""
    return {key: value for key, value in os.environ.items() if key not in FOREIGN}


def venv_steps(python: str, target: str) -> Tuple[List[List[str]], List[str]]:
    """(the commands that make an environment, the pip that installs into it); nothing where this Python cannot.

    Its own pip does it where there is one: Debian has that and ensurepip in packages of their own, and one is enough.
    """
    own, make = [python, "-I", "-m", "pip"], [python, "-I", "-m", "venv"]
    inside = os.path.join(target, "bin", "python")
    if pip_version(own) >= PIP_FOR_OTHERS:
        return [[*make, "--without-pip", target]], [*own, "--python", inside]
    if run_later([python, "-Ic", CAN_MAKE_VENV])()["code"] == 0:
        return [[*make, target]], [inside, "-I", "-m", "pip"]
    return [], []


def has_hashes(files: str) -> bool:
    """Whether the constraints say what the files of the packages must be, and the requirements do not."""
    requirements = read_text(os.path.join(files, "requirements.txt"))
    return (
        "--hash=" in read_text(os.path.join(files, "constraints.txt"))
        and "--hash=" not in requirements
    )


def newer_pip(pip: List[str]) -> List[List[str]]:
    """The command that brings a pip which can tell what it would install; [] where this one can."""
    return (
        []
        if pip_version(pip) >= PIP_WITH_REPORTS
        else [[*pip, *PIP_OPTIONS, "pip>=%d.%d" % PIP_WITH_REPORTS]]
    )


def pip_version(pip: List[str]) -> Tuple[int, int]:
    """Major and minor; (0, 0) where it does not tell."""
    found = re.match(r"pip (\d+)\.(\d+)", run_later([*pip, "--version"])()["stdout"])
    return (int(found[1]), int(found[2])) if found else (0, 0)


def wanted(files: str) -> List[str]:
    """What pip is told to install, from the recipe's files; hashes of the constraints are left out."""
    constraints = os.path.join(files, "constraints.txt")
    words = ["-r", os.path.join(files, "requirements.txt")]
    if not os.path.exists(constraints):
        return words
    if has_hashes(files):
        text, constraints = read_text(constraints), os.path.join(files, "versions.txt")
        with open(constraints, "w") as file:
            file.write(HASH.sub("", text))
    return [*words, "-c", constraints]


def choice(files: str) -> List[str]:
    """The words that let pip only choose, and tell `pinned` what."""
    return ["--dry-run", "--report", os.path.join(files, "report.json"), *wanted(files)]


def pinned(files: str) -> List[str]:
    """The words that let pip install what it chose, file by file. Raises ValueError where that is not pinned."""
    allowed = hashes_of(read_text(os.path.join(files, "constraints.txt")))
    options = [
        line for line in read_text(os.path.join(files, "requirements.txt")).splitlines()
        if re.match(r"\s*--?(i|f|index-url|extra-index-url|find-links|no-index|trusted-host)\b", line)
    ]  # fmt: skip
    lines = []
    for item in json.loads(read_text(os.path.join(files, "report.json")))["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        info = item["download_info"].get("archive_info", {})
        digest = (
            info.get("hashes", {}).get("sha256")
            or info.get("hash", "").partition("sha256=")[2]
        )
        if plain(name) not in allowed:
            raise ValueError("%s %s is not in constraints.txt" % (name, version))
        if digest not in allowed[plain(name)]:
            raise ValueError(
                "%s %s with sha256 %s" % (name, version, digest or "unknown")
            )
        lines.append("%s==%s --hash=sha256:%s" % (name, version, digest))
    exact = os.path.join(files, "exact.txt")
    with open(exact, "w") as file:
        file.write("\n".join([*options, *lines]) + "\n")
    return ["--no-deps", "--require-hashes", "-r", exact]


def hashes_of(constraints: str) -> Dict[str, Set[str]]:
    """{package: the hashes that its files may have}."""
    found: Dict[str, Set[str]] = {}
    for block in re.split(
        r"\n(?=[A-Za-z0-9])", "\n" + re.sub(r"(?m)^\s*#.*\n?", "", constraints)
    ):
        name = re.match(r"\s*([A-Za-z0-9._-]+)", block)
        if name:
            found.setdefault(plain(name[1]), set()).update(HASH.findall(block))
    return found


def plain(name: str) -> str:
    """A package's name as packages are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def uv_sync(name: str) -> List[str]:
    """The words after `uv` that make the environment of a dependency group, or of the project itself."""
    group = ["--no-dev"] if name == "default" else ["--only-group", name]
    return ["sync", "--locked", "--no-install-project", "--no-progress", *group]
