"""The built-in cluster `local`, and the paths of files shipped with UGRO: scripts and config/."""

import sys
from pathlib import Path

from .model import PACKAGE, Cluster, Environment, Node, TrainingDefaults

TRAINING_SCHEMA = "config/training_schema.yaml"


def shipped(name: str) -> Path:
    """Return the path of a shipped file or folder: in the installed package, or beside it in a checkout."""
    installed = PACKAGE / name
    if installed.exists():
        return installed
    return PACKAGE.parent / name


def shipped_scripts() -> Path:
    """Return the folder of shipped scripts."""
    return shipped("scripts")


def scripts_or_shipped(scripts: Path) -> Path:
    """Return `scripts` if it is a folder, else the shipped scripts."""
    return scripts if scripts.is_dir() else shipped_scripts()


def local_cluster(root: Path) -> Cluster:
    """Make the built-in cluster: three nodes on this machine's CPU, in `root`/.ugro."""
    environment = Environment(manager="venv", path=str(root / ".ugro" / "env"))
    nodes = []
    for rank, name in enumerate(("local0", "local1", "local2")):
        node = Node(
            name=name,
            rank=rank,
            transport="local",
            address="127.0.0.1",
            python=sys.executable,
            project=str(root / ".ugro" / "nodes" / name),
            slot=name,
            environment=environment,
        )
        nodes.append(node)
    training = TrainingDefaults(
        script="train_single_test.py",
        settings={
            "model": {"name": "char-transformer"},
            "dataset": {"name": "shakespeare"},
            "training": {"num_epochs": 3, "learning_rate": 3e-3},
        },
    )
    return Cluster(
        name="local",
        description="three ranks on this machine's CPU",
        nodes=tuple(nodes),
        environment=environment,
        training=training,
        root=root,
        experiments=root / "experiments",
        scripts=scripts_or_shipped(root / "scripts"),
        logs=root / "logs",
        source="local",
    )
