"""The command lines of Python, pip and uv to make an environment.

The controller uses the same ones to fill its store for nodes without a network.

Only from 26.1 on does pip accept hashes in a constraints file for all packages, and then it prefers
files with a hash known beforehand: a node's own wheels (find-links) would never be used. So any pip
first resolves by versions alone; its choice is compared with the hashes here, and then pip installs
exactly that, checking each file.
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
# The first version able to install into another environment.
PIP_FOR_OTHERS = (22, 3)
CAN_MAKE_VENV = "import venv, ensurepip; ensurepip.version()"
# Variables of another environment.
FOREIGN = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
HASH = re.compile(r"\s*\\?\s*--hash=sha256:([0-9a-f]{64})")


def own_variables() -> Dict[str, str]:
    """Return this process's environment without variables of another Python environment."""
    return {key: value for key, value in os.environ.items() if key not in FOREIGN}


def venv_steps(python: str, target: str) -> Tuple[List[List[str]], List[str]]:
    """Return (the commands to make an environment, the pip to install into it).

    A Python's own pip is preferred, else ensurepip is used: Debian packages both separately, and
    one is enough. Returns no commands if the Python has neither.
    """
    own, make = [python, "-I", "-m", "pip"], [python, "-I", "-m", "venv"]
    inside = os.path.join(target, "bin", "python")
    if pip_version(own) >= PIP_FOR_OTHERS:
        return [[*make, "--without-pip", target]], [*own, "--python", inside]
    if run_later([python, "-Ic", CAN_MAKE_VENV])()["code"] == 0:
        return [[*make, target]], [inside, "-I", "-m", "pip"]
    return [], []


def has_hashes(files: str) -> bool:
    """Tell whether the constraints have hashes of files, and the requirements none."""
    requirements = read_text(os.path.join(files, "requirements.txt"))
    return (
        "--hash=" in read_text(os.path.join(files, "constraints.txt"))
        and "--hash=" not in requirements
    )


def newer_pip(pip: List[str]) -> List[List[str]]:
    """Return the command to install a pip able to report its choice; [] if this one can."""
    return (
        []
        if pip_version(pip) >= PIP_WITH_REPORTS
        else [[*pip, *PIP_OPTIONS, "pip>=%d.%d" % PIP_WITH_REPORTS]]
    )


def pip_version(pip: List[str]) -> Tuple[int, int]:
    """Return (major, minor) of pip; (0, 0) if it does not tell."""
    found = re.match(r"pip (\d+)\.(\d+)", run_later([*pip, "--version"])()["stdout"])
    return (int(found[1]), int(found[2])) if found else (0, 0)


def wanted(files: str) -> List[str]:
    """Return pip's options for the recipe's files, with hashes removed from the constraints."""
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
    """Return pip's options to report its choice, for `pinned`, without installing it."""
    return ["--dry-run", "--report", os.path.join(files, "report.json"), *wanted(files)]


def pinned(files: str) -> List[str]:
    """Return pip's options to install exactly its reported choice, with hashes.

    Raises ValueError if a chosen file has no matching hash in the constraints.
    """
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
    """Return {package: the allowed hashes of its files}."""
    found: Dict[str, Set[str]] = {}
    for block in re.split(
        r"\n(?=[A-Za-z0-9])", "\n" + re.sub(r"(?m)^\s*#.*\n?", "", constraints)
    ):
        name = re.match(r"\s*([A-Za-z0-9._-]+)", block)
        if name:
            found.setdefault(plain(name[1]), set()).update(HASH.findall(block))
    return found


def plain(name: str) -> str:
    """Return a package's name normalised as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def uv_sync(name: str) -> List[str]:
    """Return the arguments of `uv` for a dependency group, or for the project itself."""
    group = ["--no-dev"] if name == "default" else ["--only-group", name]
    return ["sync", "--locked", "--no-install-project", "--no-progress", *group]
