"""A job's folder on a node that keeps changing its shape while each command looks: nothing at home is changed by it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import Lab, LabHost
from lab.tools import wait_until
from lab.ugro import Ugro

PROGRAM = Path(__file__).with_name("shapeshifter.py")
LINKS = {
    "checkpoints": "outputs/0/checkpoints",
    "artifacts": "outputs/0/artifacts",
    "tensorboard": "outputs/0/tensorboard",
}
OWN = {
    "config.json", ".config.json.copy", "state.json", ".state.json.copy", "events.jsonl", "metrics.jsonl",
    "gpu.jsonl", "stop", "code", "logs", "manifests", "outputs", *LINKS,
}  # fmt: skip
LAUNCH = ("launch", "--script", "honest.py", "--name")
LOOKS = (
    "status hostile --live",
    "logs hostile",
    "results hostile",
    "gather hostile",
    "health",
)
HONEST = """
import contextlib, hashlib, json, os, sys, time
from pathlib import Path

rank, output = int(os.environ["RANK"]), Path(os.environ["UGRO_OUTPUT_DIR"])
checkpoints = output / "checkpoints"

def write(path, content, flags=os.O_TRUNC):
    # A pipe that has taken the file's place would be waited for without end.
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK
    with open(os.open(path, flags, 0o644), "wb") as file:
        file.write(content)

begun = time.monotonic()
while time.monotonic() - begun < float(sys.argv[sys.argv.index("--seconds") + 1]):
    print("rank", rank, "goes on", flush=True)
    with contextlib.suppress(OSError):
        (output / "artifacts").mkdir(parents=True, exist_ok=True)
        write(output / "artifacts" / "model.bin", b"a model")
        write(output / "metrics.jsonl", b'{"step": 1, "loss": 2.0}\\n', os.O_APPEND)
        (checkpoints / "step").mkdir(parents=True, exist_ok=True)
        content = b"weights of rank %d" % rank
        write(checkpoints / "step" / "rank", content)
        part = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = {"checkpoint": "step", "step": 1, "rank": rank, "ranks": [0, 1], "files": {"step/rank": part}}
        write(checkpoints / "half", json.dumps(manifest).encode())
        (checkpoints / "half").rename(checkpoints / "step.manifest.json")
    time.sleep(0.1)
"""


@pytest.fixture
def ugro(lab: Lab, hosts: list[LabHost], tmp_path: Path) -> Iterator[Ugro]:
    """UGRO on two hosts, with an honest script."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "honest.py").write_text(HONEST)
    made = Ugro(lab, tmp_path, scripts, hosts=2)
    yield made
    made.close()
    for host in hosts:
        host.remove("lures")


@contextmanager
def shifting(hosts: list[LabHost], job: str, counts: list[int]) -> Iterator[None]:
    """Make a context in which the job's folders on these hosts change their shape; it counts them."""
    shifters = [
        subprocess.Popen(
            host.entered("--mount", "--uts", "--ipc", "--pid", "--net", "--wd", "python3", "-c",
                         PROGRAM.read_text(), job, "1"),
            env=host.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for host in hosts
    ]  # fmt: skip
    try:
        yield
    finally:
        for shifter in shifters:
            said, _ = shifter.communicate(timeout=60)
            counts.append(int(said or -1))


def below(folder: Path) -> dict[str, str]:
    """Return {path: what is there} of all below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


def test_nothing_at_home_follows_what_changes_under_its_eyes(
    ugro: Ugro, tmp_path: Path
) -> None:
    bystander = ugro.launch("bystander", "--seconds 0.1", "--script", "honest.py")
    assert bystander.returncode == 0, bystander.stderr
    other = ugro.job("bystander")
    before = {
        place: below(place)
        for place in (other.folder, tmp_path / "scripts", ugro.lab.home)
    }
    counts: list[int] = []
    ended: dict[str, object] = {}

    def run(*words: str) -> None:
        ended[" ".join(words)] = ugro.run(*words).returncode

    run(*LAUNCH, "hostile", "--args", "--seconds 10", "--detach")
    job = ugro.job("hostile")
    whole = [job.folder / f"manifests/{rank}/step.json" for rank in range(2)]
    wait_until(lambda: all(path.exists() for path in whole), "a whole checkpoint")
    with shifting(ugro.hosts, "", counts):
        for words in LOOKS:
            run(*words.split())
        ended["hostile"] = job.wait_for("succeeded", "failed", seconds=100)["state"]
        for words in LOOKS:
            run(*words.split())
        run(*LAUNCH, "resumed", "--args", "--seconds 1", "--resume", "hostile")
        run("gather", "hostile", "--verify")
        run("clean", "hostile")
    assert all(count > 500 for count in counts)
    for place, was in before.items():
        assert below(place) == was
    for path in (Path("/root/lures"), Path(os.environ["HOME"]) / "lures"):
        assert not path.exists()
    for one in (job, ugro.job("resumed")):
        assert {path.name for path in one.folder.iterdir()} <= OWN
        inside = below(one.folder)
        links = {name: what for name, what in inside.items() if what.startswith("->")}
        assert {name: what[3:] for name, what in links.items()} == {
            name: LINKS[name] for name in links
        }
        assert "special" not in inside.values()
        assert below(one.folder / "code") == below(tmp_path / "scripts")
        # What a node sends as its log is a stream of its own words; nothing else is.
        for name in ("config.json", "state.json", "manifests"):
            for path in (one.folder / name, *(one.folder / name).rglob("*")):
                assert not path.is_file() or b"SECRET" not in path.read_bytes()
