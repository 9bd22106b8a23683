"""Installing the needs of tests: the lab's packages, the training environment, a group's extras."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dev.groups import Group
from lab.tools import missing_packages, which
from ugro_tasks.cli.show.format import note
from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.environments.sync import ensure_local
from ugro_tasks.errors import ToolMissing

CHECKOUT = Path(__file__).resolve().parents[1]


def set_up(groups: Sequence[Group]) -> None:
    """Install everything missing for the groups; raises ToolMissing or EnvironmentFault."""
    _install_packages(sorted({*missing_packages(), *packages_of(groups)}))
    for name in requirements_of(groups):
        _install_requirements(name)
    ensure_local(load_cluster("local", cwd=CHECKOUT))


def packages_of(groups: Sequence[Group]) -> list[str]:
    """Return the Debian packages for programs of the groups missing on this machine."""
    missing: set[str] = set()
    for group in groups:
        for name, packages in group.programs.items():
            if which(name) is None:
                missing.update(packages.split())
    return sorted(missing)


def requirements_of(groups: Sequence[Group]) -> list[str]:
    """Return the files in requirements/ needed by the groups beyond dev.txt."""
    return sorted({group.requirements for group in groups if group.requirements})


def _install_packages(packages: Sequence[str]) -> None:
    """Install Debian packages if root may; without them the tests name what they left out."""
    if not packages or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    note(f"installing for the tests: {' '.join(packages)}")
    for step in (
        ["update"],
        ["install", "--yes", "--no-install-recommends", *packages],
    ):
        # No check: an incomplete update is often enough, and the lab names missing programs.
        subprocess.run(
            ["apt-get", "-o", "DPkg::Lock::Timeout=120", *step],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            check=False,
        )


def _install_requirements(name: str) -> None:
    """Install a file of requirements into `.venv`; raises ToolMissing."""
    file = CHECKOUT / "requirements" / name
    pip = [sys.executable, "-I", "-m", "pip", "install"]
    options = ["--no-user", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, *options, "-r", str(file)],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode != 0:
        raise ToolMissing(
            f"{file} could not be installed into {sys.prefix}, see above; then again"
        )
