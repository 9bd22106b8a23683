"""Projects with small environments: a stand-in torch in a folder of wheels, real pip and uv."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import Lab, LabHost
from tests.hosts.conftest import home
from tests.hosts.helpers import Done, ugro

__all__ = ["home"]

UV = Path(sys.prefix) / "bin" / "uv"
ROOT = Path(__file__).parents[2]


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """A wheel for any Python."""
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(
        f"{file},,\n" for file in (*files, f"{info}/RECORD")
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


def torch_wheel(folder: Path, version: str, ballast: int = 0) -> Path:
    """A stand-in torch: all that UGRO looks at, and as many bytes more."""
    facts = f"__version__ = '{version}+stand.in'\ncuda = '12.8'\n"
    files = {
        "torch/__init__.py": "",
        "torch/version.py": facts,
        "torch/ballast": "x" * ballast,
    }
    return wheel(folder, "torch", version, files)


def sha256(path: Path) -> str:
    """As pip wants to see it."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


class Project:
    """A project on the controller, and the task on its cluster, run in this process."""

    def __init__(self, root: Path, document: dict[str, Any]) -> None:
        self.root, self.document = root, document
        self.always: tuple[str, ...] = ()  # said with each sync
        self.wheels = root / "wheels"
        (root / "scripts").mkdir(parents=True)
        document["paths"] = {
            name: str(root / name) for name in ("scripts", "experiments", "logs")
        }
        self.cluster_file = root / "cluster.yaml"
        for version in ("1.0", "2.0"):
            torch_wheel(self.wheels, version)

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes of the cluster file, to be changed."""
        return [self.document["cluster"]["master"], *self.document.get("workers", [])]

    def manage(self, manager: str, **more: object) -> None:
        """Let this manager make the environments."""
        self.document["environment"] = {"manager": manager, **more}
        self.cluster_file.write_text(yaml.safe_dump(self.document, sort_keys=False))

    def pin_for_uv(
        self, version: str, *, lock: bool = True, source: str | None = None
    ) -> None:
        """What uv makes environments from."""
        links = source or str(self.wheels)
        (self.root / "pyproject.toml").write_text(
            '[project]\nname = "tiny"\nversion = "0"\nrequires-python = ">=3.8"\n'
            f'[dependency-groups]\nmain = ["torch=={version}"]\n'
            f'[tool.uv]\nno-index = true\nfind-links = ["{links}"]\n'
        )
        if lock:
            (self.root / "uv.lock").unlink(missing_ok=True)

    def pin_for_pip(self, version: str, constraints: str | None = None) -> None:
        """What pip makes environments from."""
        options = f"--no-index\n--find-links {self.wheels}\n"
        (self.root / "scripts" / "requirements.txt").write_text(
            f"{options}torch=={version}\n"
        )
        if constraints is not None:
            (self.root / "scripts" / "constraints.txt").write_text(constraints)

    def pin_for_pixi(self, version: str, platforms: str = '["linux-64"]') -> None:
        """What the stand-in pixi makes environments from."""
        (self.root / "pyproject.toml").write_text(
            f'[tool.pixi.workspace]\nname = "tiny"\nchannels = ["conda-forge"]\nplatforms = {platforms}\n'
            f'[tool.pixi.feature.train.dependencies]\npytorch = "{version}"\n'
            '[tool.pixi.environments]\nmain = {features = ["train"], no-default-feature = true}\n'
        )

    def sync(self, *words: str) -> Done:
        """`inv sync-envs`."""
        return ugro("sync-envs", *self.always, *words, cluster=self.cluster_file)

    def synced(self, *words: str) -> dict[str, dict[str, Any]]:
        """{node: what `inv sync-envs --json` says of it}, which must have gone well."""
        done = self.sync("--json", *words)
        assert done.returncode == 0, done.stderr
        nodes: dict[str, dict[str, Any]] = json.loads(done.stdout)["nodes"]
        return nodes


@pytest.fixture
def project(
    home: Lab, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Project]:
    """A project for the lab's hosts, where each of them has uv and, for itself, an empty project folder."""
    made = Project(
        tmp_path / "project", yaml.safe_load(home.cluster_file.read_text("utf-8"))
    )
    for node in made.nodes():
        # A Python that can make environments whatever Debian packages this machine has.
        node |= {
            "paths": {"project": f"~/ugro/{request.node.name}"},
            "python": sys.executable,
        }
    for host in home.hosts:
        give_uv(host)
    yield made
    for host in home.hosts:
        for path in (f"ugro/{request.node.name}", ".pixi"):
            host.remove(path)


def give_uv(host: LabHost) -> None:
    """uv where its own installer puts it."""
    bin_ = host.path(".local/bin")
    bin_.mkdir(parents=True, exist_ok=True)
    (bin_ / "uv").unlink(missing_ok=True)
    (bin_ / "uv").symlink_to(UV)


def give_pixi(home: Path, version: str = "0.77.0", *names: str) -> None:
    """The stand-in where pixi's installer puts it, below a home folder."""
    bin_ = home / ".pixi" / "bin"
    bin_.mkdir(parents=True, exist_ok=True)
    (bin_ / "pixi.version").write_text(version)
    program = f"#!{os.path.realpath(sys.executable)} -I\n{(ROOT / 'lab' / 'pixi.py').read_text('utf-8')}"
    for name in names or ("pixi",):
        (bin_ / name).write_text(program, "utf-8")
        (bin_ / name).chmod(0o755)
