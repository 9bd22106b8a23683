"""What an environment is made from: the project's files on this machine, one digest over them, and its place on a node.

| manager | files | an environment other than `default` is |
| --- | --- | --- |
| `venv` | `requirements.txt`, `constraints.txt` if there is one, in the scripts folder | |
| `uv` | `pyproject.toml`, `uv.lock`, `.python-version` if there is one, in the project's root | a dependency group |
| `pixi` | `pixi.toml` or `pyproject.toml`, `pixi.lock`, in the project's root | a pixi environment |
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

# What of a manifest the packages depend on. The rest, a linter's settings say, may change without a new environment.
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
    """What an environment is made from."""

    manager: str
    name: str
    digest: str  # sha256, hex, of everything that decides what is in it
    files: dict[str, bytes]
    # The interpreter, or its version, to make it from; None: whatever the node has.
    python: str | None = None

    @property
    def lock_name(self) -> str:
        """The file that pins the packages, as a message names it."""
        return LOCKS.get(self.manager, "requirements.txt")


def recipe_of(cluster: Cluster, node: Node) -> Recipe | None:
    """What the node's environment is to be made from; None where nobody makes it (`existing`).

    Raises EnvironmentFault where a file is missing or cannot be read.
    """
    environment = node.environment
    if environment.manager == "existing":
        return None
    root = cluster.root
    if environment.manager == "venv":
        files = _read(cluster.scripts, ["requirements.txt"], ["constraints.txt"])
        facts: Any = {name: _pins(text) for name, text in files.items()}
    elif environment.manager == "uv":
        files = _read(root, ["pyproject.toml", "uv.lock"], [".python-version"])
        facts = {
            **_texts(files),
            "pyproject.toml": _manifest(root, files["pyproject.toml"], "uv"),
        }
    elif place_of(node)["manager"] == "existing":
        raise EnvironmentFault(
            f"{node.name}: pixi makes {environment.name} in <project>/.pixi/envs/{environment.name}, "
            f"not in {environment.path}; leave environment.path away, or take manager `existing`"
        )
    else:
        manifest = "pixi.toml" if (root / "pixi.toml").is_file() else "pyproject.toml"
        files = _read(root, [manifest, "pixi.lock"], [])
        facts = {**_texts(files), manifest: _manifest(root, files[manifest], "pixi")}
    python = _python_of(environment)
    name = "" if environment.manager == "venv" else environment.name
    decisive = [environment.manager, name, python, facts]
    digest = hashlib.sha256(
        json.dumps(decisive, sort_keys=True, default=str).encode()
    ).hexdigest()
    return Recipe(
        manager=environment.manager,
        name=name,
        digest=digest,
        files=files,
        python=python,
    )


def missing_lock(cluster: Cluster, node: Node) -> Path | None:
    """The lock that has still to be made for the node's environment."""
    lock = cluster.root / LOCKS.get(node.environment.manager, ".")
    return None if lock.exists() else lock


def place_of(node: Node) -> dict[str, str]:
    """Where the node's environment and what belongs to it lies, for the node's own program; ~/ is its user's home.

    A pixi environment in a place where pixi does not make any counts as one that nobody makes.
    """
    environment = node.environment
    folder = environment.folder(node.project).rstrip("/")
    place = {"manager": environment.manager, "name": environment.name, "folder": folder}
    if environment.manager in {"venv", "uv"}:
        return {**place, "work": f"{folder}.sync"}
    workspace = folder.removesuffix(f"/.pixi/envs/{environment.name}")
    if environment.manager == "existing" or workspace == folder:
        return {"manager": "existing"}
    return {
        **place,
        "work": f"{workspace}/.pixi/ugro-{environment.name}",
        "workspace": workspace,
    }


def activation_of(node: Node, built: Built | None) -> tuple[str, ...]:
    """The command that tells, as pixi's JSON, what the environment's activation sets; () where there is none.

    A PATH is not enough for packages from conda: they bring activation scripts.
    """
    if node.environment.manager != "pixi" or built is None:
        return ()
    if built.activate:  # made from a pack: pixi itself need not be there
        python = node.environment.interpreter(node.project)
        return (
            "bash",
            "-c",
            '. "$0" >&2 && exec "$1" -c "$2"',
            built.activate,
            python,
            TELL_ENVIRONMENT,
        )
    if not built.program or not built.manifest:
        return ()
    # It must neither solve nor install anything now.
    options = [
        "--json",
        "--frozen",
        "--no-install",
        "--environment",
        node.environment.name,
    ]
    return (built.program, "shell-hook", *options, "--manifest-path", built.manifest)


TELL_ENVIRONMENT = (
    "import json, os; print(json.dumps({'environment_variables': dict(os.environ)}))"
)


def minor_of(version: str | None) -> str | None:
    """Cut a Python's version to what must be equal: another patch is no other environment."""
    return ".".join(version.split(".")[:2]) if version else version


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
                advice = (
                    "make it: inv sync-envs" if name in LOCKS.values() else "write it"
                )
                raise EnvironmentFault(
                    f"{folder / name} is missing: the environment is to be made from it; {advice}, or name "
                    "another manager as environment.manager in the cluster file"
                ) from error
        except OSError as error:
            raise EnvironmentFault(
                f"{error.filename} cannot be read: {error.strerror}"
            ) from error
    return files


def _texts(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: content.decode("utf-8", "replace") for name, content in files.items()}


def _pins(content: bytes) -> list[str]:
    """The lines that count."""
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
        return document  # a pixi.toml: all of it is about the environment
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
