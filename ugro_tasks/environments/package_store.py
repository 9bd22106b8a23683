"""Packages for nodes without a network: fetched once on this machine, pushed to each node.

A store is a folder below `.ugro/packages` in the project's root, one for each recipe, Python and
kind of machine: wheels for pip, a cache for uv, a pack for pixi. The node's build finds it in its
work folder.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ..cluster.model import Cluster, Node
from ..errors import EnvironmentFault, ToolMissing
from ..hosts.answers import EnvironmentAnswer
from ..hosts.host import Host
from ..hosts.operations import MakeFolder
from ..hosts.requests import ask
from ..hosts.transfer import Transfer
from ..node.environment import find_program
from ..node.installers import (
    PIP_OPTIONS,
    PIP_QUIET,
    choice,
    has_hashes,
    newer_pip,
    own_variables,
    pinned,
    uv_sync,
    venv_steps,
    wanted,
)
from .recipe import Recipe, minor_of

WHOLE = ".whole"  # written last
# The newest first; pip takes the first match.
GLIBCS = ("2_34", "2_28", "2_27", "2_17")
PACK_PLATFORMS = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}
MAKE_FOLDER_SECONDS = 30.0


def program(name: str) -> str | None:
    """Find a program here: beside UGRO's own Python, in its installer's folder, or on PATH."""
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return str(beside)
    return find_program(name)


def fill(
    cluster: Cluster, node: Node, recipe: Recipe, facts: EnvironmentAnswer
) -> Path:
    """Return the store for a node, filled if needed; raises EnvironmentFault or ToolMissing."""
    machine = facts.machine or ""
    version = ""
    if facts.base and facts.base.version:
        version = facts.base.version
    if recipe.manager != "venv" and machine != platform.machine():
        raise EnvironmentFault(
            f"{node.name} is a {machine}, this machine a {platform.machine()}: "
            f"{recipe.manager} cannot fetch its packages here; --offline works between equal machines"
        )
    if recipe.manager != "pixi" and not version:
        raise EnvironmentFault(
            f"{node.name}: there is no Python {recipe.python} on it to make anything from"
        )
    minor = minor_of(version) or ""
    key = f"{recipe.manager}-{recipe.digest[:12]}-{machine}"
    if recipe.manager != "pixi":
        key += f"-{minor}"
    store = cluster.root / ".ugro" / "packages" / key
    if (store / WHOLE).exists():
        return store
    shutil.rmtree(store, ignore_errors=True)
    files = store.with_suffix(".files")
    try:
        for folder in (store, files):
            folder.mkdir(parents=True, exist_ok=True)
        for name, content in recipe.files.items():
            (files / name).write_bytes(content)
        fetch = {"venv": _wheels, "uv": _uv_cache, "pixi": _pack}[recipe.manager]
        fetch(store, files, recipe, minor, machine)
        (store / WHOLE).touch()
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename or store}: {error.strerror}"
        ) from error
    finally:
        shutil.rmtree(files, ignore_errors=True)
    return store


def push(
    store: Path, host: Host, place: Mapping[str, str], progress: Callable[[int], None]
) -> None:
    """Copy the store into the node's work folder, except files already there; raises HostError."""
    ask(host, MakeFolder(project=place["work"]), timeout_seconds=MAKE_FOLDER_SECONDS)
    Transfer(host).push(
        f"{store}/", f"{place['work']}/store/", delete=True, progress=progress
    )


def _wheels(store: Path, files: Path, recipe: Recipe, minor: str, machine: str) -> None:
    steps, pip = venv_steps(sys.executable, str(files / "env"))
    if not steps:
        raise ToolMissing(
            f"{sys.executable} has neither pip nor ensurepip: sudo apt install python3-venv"
        )
    for step in steps:
        _run(step, files, recipe)
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    foreign: list[str] = []
    if (minor, machine) != (own, platform.machine()):
        foreign = ["--python-version", minor]
        for glibc in GLIBCS:
            foreign += ["--platform", f"manylinux_{glibc}_{machine}"]
    options = ["--only-binary", ":all:", *foreign]
    packages = wanted(str(files))
    if has_hashes(str(files)):
        for step in newer_pip(pip):
            _run(step, files, recipe)
        # pip takes another machine's packages only for a --target, not for its own environment.
        elsewhere = ["--target", str(files / "elsewhere")] if foreign else []
        words = [*options, *elsewhere, *choice(str(files))]
        _run([*pip, *PIP_OPTIONS, *words], files, recipe)
        try:
            packages = pinned(str(files))
        except ValueError as error:
            raise EnvironmentFault(
                f"{error}: that is not what constraints.txt pins"
            ) from error
    options += ["--dest", str(store)]
    _run([*pip, "download", *PIP_QUIET, *options, *packages], files, recipe)


def _uv_cache(
    store: Path, files: Path, recipe: Recipe, minor: str, _machine: str
) -> None:
    uv = program("uv")
    if uv is None:
        raise ToolMissing(
            "uv is not on this machine, which is to fetch the packages; python3 -m pip install --user uv"
        )
    # The cache is filled by making the environment once; it is the same on any machine of this kind.
    variables = {
        "UV_CACHE_DIR": str(store),
        "UV_PROJECT_ENVIRONMENT": str(files / "env"),
    }
    _run([uv, *uv_sync(recipe.name), "--python", minor], files, recipe, variables)


def _pack(store: Path, files: Path, recipe: Recipe, _minor: str, machine: str) -> None:
    packer = program("pixi-pack")
    if packer is None:
        raise ToolMissing(
            "pixi-pack is not on this machine, which is to fetch the packages; pixi global install pixi-pack"
        )
    [manifest] = [name for name in recipe.files if name.endswith(".toml")]
    target = PACK_PLATFORMS.get(machine, machine)
    words = ["--environment", recipe.name, "--platform", target]
    words += ["--output-file", str(store / "environment.tar")]
    _run([packer, *words, str(files / manifest)], files, recipe)


def _run(
    argv: list[str],
    folder: Path,
    recipe: Recipe,
    variables: Mapping[str, str] | None = None,
) -> None:
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**own_variables(), **(variables or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        printed = (done.stdout + done.stderr).splitlines()
        said = [line for line in printed if line.strip()]
        errors = [line for line in said if line.lower().startswith("error")]
        words = errors or said or [f"exit code {done.returncode}"]
        last = words[-1].strip()
        raise EnvironmentFault(
            f"the packages of {recipe.lock_name} cannot be fetched by this machine: {last}\n"
            "    it fetches them for nodes without a network; is it online?"
        )
