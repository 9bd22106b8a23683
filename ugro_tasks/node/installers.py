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

from .files import Json, read_text
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
# A line of requirements about the place to fetch from.
INDEX_OPTION = re.compile(
    r"\s*--?(i|f|index-url|extra-index-url|find-links|no-index|trusted-host)\b"
)


def own_variables() -> Dict[str, str]:
    """Return this process's environment without variables of another Python environment."""
    return {key: value for key, value in os.environ.items() if key not in FOREIGN}


def venv_steps(python: str, target: str) -> Tuple[List[List[str]], List[str]]:
    """Return (the commands to make an environment, the pip to install into it).

    A Python's own pip is preferred, else ensurepip is used: Debian packages both separately, and
    one is enough. Returns no commands if the Python has neither.
    """
    own_pip = [python, "-I", "-m", "pip"]
    venv = [python, "-I", "-m", "venv"]
    inside = os.path.join(target, "bin", "python")
    if pip_version(own_pip) >= PIP_FOR_OTHERS:
        return [[*venv, "--without-pip", target]], [*own_pip, "--python", inside]
    answer = run_later([python, "-Ic", CAN_MAKE_VENV])()
    if answer["code"] == 0:
        return [[*venv, target]], [inside, "-I", "-m", "pip"]
    return [], []


def has_hashes(files: str) -> bool:
    """Tell whether the constraints have hashes of files, and the requirements none."""
    requirements = read_text(os.path.join(files, "requirements.txt"))
    constraints = read_text(os.path.join(files, "constraints.txt"))
    return "--hash=" in constraints and "--hash=" not in requirements


def newer_pip(pip: List[str]) -> List[List[str]]:
    """Return the command to install a pip able to report its choice; [] if this one can."""
    if pip_version(pip) >= PIP_WITH_REPORTS:
        return []
    return [[*pip, *PIP_OPTIONS, "pip>=%d.%d" % PIP_WITH_REPORTS]]


def pip_version(pip: List[str]) -> Tuple[int, int]:
    """Return (major, minor) of pip; (0, 0) if it does not tell."""
    answer = run_later([*pip, "--version"])()
    found = re.match(r"pip (\d+)\.(\d+)", answer["stdout"])
    if not found:
        return (0, 0)
    return (int(found[1]), int(found[2]))


def wanted(files: str) -> List[str]:
    """Return pip's options for the recipe's files, with hashes removed from the constraints."""
    constraints = os.path.join(files, "constraints.txt")
    words = ["-r", os.path.join(files, "requirements.txt")]
    if not os.path.exists(constraints):
        return words
    if has_hashes(files):
        versions = HASH.sub("", read_text(constraints))
        constraints = os.path.join(files, "versions.txt")
        with open(constraints, "w") as file:
            file.write(versions)
    return [*words, "-c", constraints]


def choice(files: str) -> List[str]:
    """Return pip's options to report its choice, for `pinned`, without installing it."""
    report = os.path.join(files, "report.json")
    return ["--dry-run", "--report", report, *wanted(files)]


def pinned(files: str) -> List[str]:
    """Return pip's options to install exactly its reported choice, with hashes.

    Raises ValueError if a chosen file has no matching hash in the constraints.
    """
    allowed = hashes_of(read_text(os.path.join(files, "constraints.txt")))
    requirements = read_text(os.path.join(files, "requirements.txt"))
    report = json.loads(read_text(os.path.join(files, "report.json")))
    lines = [line for line in requirements.splitlines() if INDEX_OPTION.match(line)]
    for item in report["install"]:
        name = item["metadata"]["name"]
        version = item["metadata"]["version"]
        digest = reported_hash(item)
        hashes = allowed.get(normalised(name))
        if hashes is None:
            raise ValueError("%s %s is not in constraints.txt" % (name, version))
        if digest not in hashes:
            words = (name, version, digest or "unknown")
            raise ValueError("%s %s with sha256 %s" % words)
        lines.append("%s==%s --hash=sha256:%s" % (name, version, digest))
    exact = os.path.join(files, "exact.txt")
    with open(exact, "w") as file:
        file.write("\n".join(lines) + "\n")
    return ["--no-deps", "--require-hashes", "-r", exact]


def reported_hash(item: Json) -> str:
    """Return the SHA-256 of a file in pip's report, "" if it has none."""
    info = item["download_info"].get("archive_info", {})
    hashes: Dict[str, str] = info.get("hashes", {})
    # The older spelling: "sha256=<digest>".
    older: str = info.get("hash", "")
    return hashes.get("sha256") or older.partition("sha256=")[2]


def hashes_of(constraints: str) -> Dict[str, Set[str]]:
    """Return {package: the allowed hashes of its files}."""
    found: Dict[str, Set[str]] = {}
    without_comments = re.sub(r"(?m)^\s*#.*\n?", "", constraints)
    # A package's block begins with its name at the start of a line.
    for block in re.split(r"\n(?=[A-Za-z0-9])", "\n" + without_comments):
        name = re.match(r"\s*([A-Za-z0-9._-]+)", block)
        if name:
            hashes = found.setdefault(normalised(name[1]), set())
            hashes.update(HASH.findall(block))
    return found


def normalised(name: str) -> str:
    """Return a package's name normalised as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def uv_sync(name: str) -> List[str]:
    """Return the arguments of `uv` for a dependency group, or for the project itself."""
    words = ["sync", "--locked", "--no-install-project", "--no-progress"]
    if name == "default":
        return [*words, "--no-dev"]
    return [*words, "--only-group", name]
