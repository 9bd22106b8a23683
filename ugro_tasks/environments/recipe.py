"""The recipe of an environment: the project's files for it, a digest, and the place on a node.

| manager | files | an environment other than `default` is |
| --- | --- | --- |
| `venv` | `requirements.txt`, perhaps `constraints.txt`, in the scripts folder | |
| `uv` | `pyproject.toml`, `uv.lock`, perhaps `.python-version`, in the root | a dependency group |
| `pixi` | `pixi.toml` or `pyproject.toml`, `pixi.lock`, in the root | a pixi environment |
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..cluster.locks import LOCKS
from ..cluster.model import Cluster, Environment, Node
from ..errors import EnvironmentFault
from ..hosts.answers import Built

# The parts of a manifest with an effect on packages; others, a linter's settings say, may change freely.
MANIFEST_PARTS = {
    "uv": (("project",), ("dependency-groups",), ("tool", "uv")),
    "pixi": (("project",), ("dependency-groups",), ("tool", "pixi")),
}
DESCRIPTIVE = {
    "description",
    "readme",
    "authors",
    "classifiers",
    "keywords",
    "urls",
    "scripts",
    "license",
}


class Recipe(Struct, frozen=True, kw_only=True):
    """The inputs of an environment."""

    manager: str
    name: str
    digest: str  # sha256, hex, of everything with an effect on the contents
    files: dict[str, bytes]
    # The interpreter or its version; None: any that the node has.
    python: str | None = None

    @property
    def lock_name(self) -> str:
        """Return the name of the file with the pinned packages, for messages."""
        return LOCKS.get(self.manager, "requirements.txt")


def recipe_of(cluster: Cluster, node: Node) -> Recipe | None:
    """Read the recipe for the node's environment; None for the manager `existing`.

    Raises EnvironmentFault if a file is missing or unreadable.
    """
    environment = node.environment
    if environment.manager == "existing":
        return None
    root = cluster.root
    if environment.manager == "venv":
        files = _read(cluster.scripts, ["requirements.txt"], ["constraints.txt"])
        facts: dict[str, Any] = {name: _pins(text) for name, text in files.items()}
    elif environment.manager == "uv":
        files = _read(root, ["pyproject.toml", "uv.lock"], [".python-version"])
        facts = _texts(files)
        facts["pyproject.toml"] = _manifest(root, files["pyproject.toml"], "uv")
    elif place_of(node)["manager"] == "existing":
        raise EnvironmentFault(
            f"{node.name}: pixi makes {environment.name} in <project>/.pixi/envs/{environment.name}, "
            f"not in {environment.path}; leave environment.path out, or take manager `existing`"
        )
    else:
        manifest = "pixi.toml" if (root / "pixi.toml").is_file() else "pyproject.toml"
        files = _read(root, [manifest, "pixi.lock"], [])
        facts = _texts(files)
        facts[manifest] = _manifest(root, files[manifest], "pixi")
    python = _python_of(environment)
    name = "" if environment.manager == "venv" else environment.name
    decisive = [environment.manager, name, python, facts]
    text = json.dumps(decisive, sort_keys=True, default=str)
    return Recipe(
        manager=environment.manager,
        name=name,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        files=files,
        python=python,
    )


def missing_lock(cluster: Cluster, node: Node) -> Path | None:
    """Return the path of the node's lock file if it does not exist yet, else None."""
    name = LOCKS.get(node.environment.manager)
    if name is None:
        return None
    lock = cluster.root / name
    return None if lock.exists() else lock


def place_of(node: Node) -> dict[str, str]:
    """Return the place of the node's environment for the program on the node.

    ~/ is the home of the node's user. A pixi environment outside pixi's own folder counts as
    `existing`.
    """
    environment = node.environment
    folder = environment.folder(node.project).rstrip("/")
    place = {"manager": environment.manager, "name": environment.name, "folder": folder}
    if environment.manager in {"venv", "uv"}:
        return {**place, "work": f"{folder}.sync"}
    workspace = folder.removesuffix(f"/.pixi/envs/{environment.name}")
    if environment.manager == "existing" or workspace == folder:
        return {"manager": "existing"}
    work = f"{workspace}/.pixi/ugro-{environment.name}"
    return {**place, "work": work, "workspace": workspace}


def activation_of(node: Node, built: Built | None) -> tuple[str, ...]:
    """Return a command that prints the environment's variables as pixi's JSON; () without pixi.

    A PATH is not enough for conda packages, because they have activation scripts.
    """
    if node.environment.manager != "pixi" or built is None:
        return ()
    if built.activate:  # made from a pack, perhaps without pixi on the node
        python = node.environment.interpreter(node.project)
        command = '. "$0" >&2 && exec "$1" -c "$2"'
        return ("bash", "-c", command, built.activate, python, TELL_ENVIRONMENT)
    if not built.program or not built.manifest:
        return ()
    # It must neither solve nor install anything now.
    options = ["--json", "--frozen", "--no-install"]
    options += ["--environment", node.environment.name]
    options += ["--manifest-path", built.manifest]
    return (built.program, "shell-hook", *options)


TELL_ENVIRONMENT = (
    "import json, os; print(json.dumps({'environment_variables': dict(os.environ)}))"
)


def minor_of(version: str | None) -> str | None:
    """Cut a Python version to major and minor; patch releases count as equal."""
    if not version:
        return version
    return ".".join(version.split(".")[:2])


def _python_of(environment: Environment) -> str | None:
    return environment.python or environment.python_version


def _read(
    folder: Path, needed: Iterable[str], others: Iterable[str]
) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name in [*needed, *others]:
        try:
            files[name] = (folder / name).read_bytes()
        except FileNotFoundError as error:
            if name in needed:
                is_lock = name in LOCKS.values()
                advice = "make it: inv sync-envs" if is_lock else "write it"
                raise EnvironmentFault(
                    f"{folder / name} is missing: the environment is to be made from it; {advice}, or name "
                    "another manager as environment.manager in the cluster file"
                ) from error
        except OSError as error:
            raise EnvironmentFault(
                f"{error.filename} cannot be read: {error.strerror}"
            ) from error
    return files


def _texts(files: Mapping[str, bytes]) -> dict[str, Any]:
    return {name: content.decode("utf-8", "replace") for name, content in files.items()}


def _pins(content: bytes) -> list[str]:
    """Return the lines without comments and blanks."""
    lines = (line.strip() for line in content.decode("utf-8", "replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _manifest(root: Path, content: bytes, manager: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EnvironmentFault(
            f"the manifest for {manager} in {root} cannot be read: {error}"
        ) from error
    if "workspace" in document:
        return document  # a pixi.toml, which is all about the environment
    parts: dict[str, Any] = {}
    for path in MANIFEST_PARTS[manager]:
        value: Any = document
        for key in path:
            value = value.get(key, {}) if isinstance(value, dict) else {}
        parts[".".join(path)] = value
    if manager == "pixi" and not parts["tool.pixi"]:
        raise EnvironmentFault(
            f"{root} has neither a pixi.toml nor [tool.pixi] in its pyproject.toml; say there what pixi shall install, "
            "or name another manager as environment.manager in the cluster file"
        )
    project = parts["project"]
    if isinstance(project, dict):
        parts["project"] = {
            key: value for key, value in project.items() if key not in DESCRIPTIVE
        }
    return parts
