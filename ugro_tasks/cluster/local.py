"""The built-in cluster `local`, and where that is which came with UGRO: scripts, and the files of config/."""

import sys
from pathlib import Path

from .model import PACKAGE, Cluster, Environment, Node, TrainingDefaults

TRAINING_SCHEMA = "config/training_schema.yaml"


def shipped(name: str) -> Path:
    """Return where a file or folder came with UGRO: in the installed package, or beside it in a checkout."""
    installed = PACKAGE / name
    return installed if installed.exists() else PACKAGE.parent / name


def shipped_scripts() -> Path:
    """Return the scripts that came with UGRO."""
    return shipped("scripts")


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
        training=TrainingDefaults(
            script="train_single_test.py",
            settings={
                "model": {"name": "char-transformer"},
                "dataset": {"name": "shakespeare"},
                "training": {"num_epochs": 3, "learning_rate": 3e-3},
            },
        ),
        root=root,
        experiments=root / "experiments",
        scripts=shipped_or(root / "scripts"),
        logs=root / "logs",
        source="local",
    )
