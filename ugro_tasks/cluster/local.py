"""The built-in cluster `local`, and the scripts that came with UGRO."""

import sys
from pathlib import Path

from .model import PACKAGE, Cluster, Environment, Node, TrainingDefaults


def shipped_scripts() -> Path:
    """Return the scripts that came with UGRO: in the installed package, or beside it in a checkout."""
    installed = PACKAGE / "scripts"
    return installed if installed.is_dir() else PACKAGE.parent / "scripts"


def shipped_or(scripts: Path) -> Path:
    """Return `scripts` where it exists, else the shipped ones."""
    return scripts if scripts.is_dir() else shipped_scripts()


def local_cluster(root: Path) -> Cluster:
    """Make the built-in cluster: three nodes on this machine that train on the CPU, in `root`/.ugro."""
    environment = Environment(manager="venv", path=str(root / ".ugro" / "env"))
    nodes = tuple(
        Node(
            name=name,
            rank=rank,
            transport="local",
            address="127.0.0.1",
            python=sys.executable,
            project=str(root / ".ugro" / "nodes" / name),
            slot=name,
            environment=environment,
        )
        for rank, name in enumerate(("local0", "local1", "local2"))
    )
    return Cluster(
        name="local",
        description="three ranks on this machine's CPU",
        nodes=nodes,
        environment=environment,
        training=TrainingDefaults.given(
            script="train_single_test.py",
            model="char-transformer",
            dataset="shakespeare",
            epochs=3,
            learning_rate=3e-3,
        ),
        root=root,
        experiments=root / "experiments",
        scripts=shipped_or(root / "scripts"),
        logs=root / "logs",
        source="local",
    )
