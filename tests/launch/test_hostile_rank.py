"""A rank that has turned against its controller: nothing of its outputs becomes a record, or code that is run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from lab import LabHost
from lab.ugro import SCRIPTS, Ugro

LINKS = {
    "checkpoints": "outputs/0/checkpoints",
    "artifacts": "outputs/0/artifacts",
    "tensorboard": "outputs/0/tensorboard",
}


def sums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("*.py")
    }


@pytest.mark.parametrize(
    ("link", "file"),
    [
        ("code", "turncoat.py"),
        (".", "config.json"),
        ("..", "state.json"),
        ("../..", "config.json"),
        ("logs", "training_rank0.log"),
    ],
)
def test_what_rank_0_plants_stays_among_its_outputs(
    ugro: Ugro, hosts: list[LabHost], link: str, file: str
) -> None:
    home = Path(os.environ["HOME"])
    done = ugro.launch(
        "exp1",
        f"--link {link} --file {file} --experiments {ugro.experiments}",
        "--script",
        "turncoat.py",
        "--max-restarts",
        "2",
    )
    # Folders of UGRO's own do not come, and the job is not called gathered without them.
    leads_out = link.startswith("..")
    assert done.returncode == (14 if leads_out else 0), done.stdout + done.stderr
    assert "PWNED" not in done.stdout
    for host in ugro.hosts:
        assert not host.path("PWNED").exists()
    assert not (home / "PWNED").exists()
    job = ugro.job("exp1")
    assert sums(job.folder / "code") == sums(SCRIPTS)
    for words in (
        ("status", "exp1", "--live"),
        ("gather", "exp1", *(["--leave-links"] if leads_out else [])),
        ("results", "exp1"),
    ):
        looked = ugro.run(*words)
        assert looked.returncode == 0, looked.stderr
    assert not (home / "PWNED").exists()
    # Beside its own records there are only links that UGRO made.
    for path in job.folder.iterdir():
        if path.is_symlink():
            assert str(path.readlink()) == LINKS[path.name]
    forged = job.folder / "outputs/0/checkpoints" / file
    assert forged.is_file()
    assert len(job.state()["attempts"]) == 3
