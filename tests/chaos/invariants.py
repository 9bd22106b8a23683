"""What must be so after each round, whatever was done in it."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab import Lab, LabHost
from tests.chaos import nodes, truth
from tests.chaos.home import Home
from tests.chaos.nodes import Attempt
from tests.chaos.rounds import TRACEBACK, Played

# For what is on its way out, and for outputs that are still gathered.
SETTLE_SECONDS = 20.0
# The end of a connection may be the packet that was lost: TCP says it again after ever longer pauses.
LINK_SETTLE_SECONDS = 90.0
NODE_FAULT = 25
OF_A_JOB = {
    "plan.json", "node.zip", "supervisor.json", "torchrun.json", "stop.json", "exit.json", "error.json", "log",
    "gpu.jsonl", "supervisor.log", "code", "output", "torchrun", "resume",
}  # fmt: skip
OF_A_HOME = {
    "config.json", "state.json", "events.jsonl", "metrics.jsonl", "gpu.jsonl", "code", "logs", "stop",
    ".config.json.copy", ".state.json.copy", "outputs", "manifests", "checkpoints", "artifacts",
}  # fmt: skip
LINE = re.compile(rb"^(rank \d+ (?:begins|step|ends) .*)$", re.M)
OF_A_NODE = re.compile(
    r"on-[^/]+/(?:(?:lease|processes)-node|torch|cuda_available)\.json"
)
OF_THE_FOLDER = {
    "job_history.jsonl",
    "cluster_state.json",
    ".agent.lock",
    ".agent.stderr",
}


def violations(played: Played) -> Iterator[str]:
    """Each promise that was broken, in words."""
    stage, lab = played.stage, played.stage.lab
    yield from played.faults
    if any(job.state.get("exit_code") == 9 for job in played.jobs):
        # It was said that this node could not be told to stop, and what to do: that is done here.
        stage.home.run("reset")
    links = played.kinds & {"link-down", "link-slow"}
    patience = LINK_SETTLE_SECONDS if links else SETTLE_SECONDS
    yield from _settled(
        lambda: list(_left_running(lab, [stage.home, stage.other])), patience
    )
    for job in played.jobs:
        yield from _of_job(job)
    yield from truth.lies_of_second(played)
    if stage.second_name and (second := stage.other.job_folder(stage.second_name)):
        yield from _records(stage.other, second.name, second)
    # The next launch removes what one that was killed while it made its job has left: that round looks again.
    killed = played.kinds & {"launch-killed", "terminal-closed"}
    excused = ".making-" if killed else None
    for home in (stage.home, stage.other):
        yield from _settled(lambda home=home: list(_left_at_home(home, excused)))  # type: ignore[misc]
    for host in lab.hosts:
        yield from _left_on_disk(lab, host)


def _of_job(played: Played) -> Iterator[str]:
    """What is promised of each job."""
    stage = played.stage
    found = (
        {
            host.name: nodes.attempts(stage.lab, host, played.job_id)
            for host in stage.hosts
        }
        if played.job_id
        else {}
    )
    yield from truth.lies(played, found)
    folder = stage.home.job_folder(stage.name)
    if not folder:
        return
    yield from _streams(played, folder, found)
    yield from _records(stage.home, played.job_id, folder)
    yield from _outputs(played, folder, found)
    yield from _checkpoints(folder)
    yield from _shown(played, folder)
    if "hostile-rank" in played.plan.habits:
        yield from _can_be_looked_at(stage.home, played.job_id)


def _settled(
    look: Callable[[], list[str]], seconds: float = SETTLE_SECONDS
) -> list[str]:
    """What is still so after a while."""
    deadline = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.15)
    return found


# ---- streams ----


def _streams(
    played: Played, folder: Path, found: dict[str, list[Attempt]]
) -> Iterator[str]:
    """Not a byte of a log, of the metrics or of a sample is lost, or there twice."""
    attempts = {attempt["number"]: attempt for attempt in played.state["attempts"]}
    still_away = {
        rank["node"] for rank in played.state["ranks"] if not rank["proven_gone"]
    }
    ranks: dict[int, list[tuple[str, Attempt]]] = {}
    for node, there in found.items():
        for attempt in there:
            if attempt.number not in attempts:
                yield f"{node} has a folder of attempt {attempt.number}, of which the record knows nothing"
                continue
            rank = attempts[attempt.number]["nodes"].index(node)
            ranks.setdefault(rank, []).append((node, attempt))
    for rank, parts in ranks.items():
        if played.plan.removes_streams and rank == played.plan.loud_rank:
            continue
        parts.sort(key=lambda part: part[1].number)
        kinds = {f"logs/training_rank{rank}.log": "log"} | (
            {"metrics.jsonl": "output/metrics.jsonl"} if rank == 0 else {}
        )
        for name, source in kinds.items():
            here = (folder / name).read_bytes() if (folder / name).exists() else b""
            base = f"log {rank}" if source == "log" else "metrics"
            yield from _parts(name, here, source, base, parts, attempts, still_away)
    yield from _json_lines(folder / "metrics.jsonl")
    yield from _json_lines(folder / "events.jsonl")
    gpu = (
        (folder / "gpu.jsonl").read_bytes() if (folder / "gpu.jsonl").exists() else b""
    )
    for node, there in found.items():
        here = b"".join(
            line
            for line in gpu.splitlines(keepends=True)
            if f'"node": "{node}"'.encode() in line
        )
        sent = b"".join(attempt.stream("gpu.jsonl") for attempt in there)
        is_gone = played.plan.removes_streams and node == played.plan.harmed
        if here != sent and not is_gone:
            yield f"gpu.jsonl: {len(here)} bytes of {node} at home, {len(sent)} there"


def _parts(
    name: str,
    here: bytes,
    source: str,
    base: str,
    parts: list[tuple[str, Attempt]],
    attempts: dict[int, dict[str, Any]],
    still_away: set[str],
) -> Iterator[str]:
    """A file at home is what the attempts wrote, one after the other."""
    whole = b"".join(
        attempt.log if source == "log" else attempt.stream(source)
        for _, attempt in parts
    )
    if hashlib.sha256(here).digest() == hashlib.sha256(whole).digest():
        return
    begins = [
        attempts[attempt.number]["bases"].get(base, 0) for _, attempt in parts
    ] + [len(here)]
    for (node, attempt), begin, end in zip(parts, begins, begins[1:], strict=False):
        there = attempt.log if source == "log" else attempt.stream(source)
        given_up = node in attempts[attempt.number]["left_behind"] or node in still_away
        if here[begin:end] != there and not (
            given_up and there.startswith(here[begin:end])
        ):
            same = next(
                (
                    i
                    for i, (a, b) in enumerate(
                        zip(here[begin:end], there, strict=False)
                    )
                    if a != b
                ),
                None,
            )
            yield (
                f"{name}: of attempt {attempt.number} on {node} there are {len(there)} bytes, at home {end - begin}; "
                f"they differ from byte {same}"
            )


def _json_lines(path: Path) -> Iterator[str]:
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        yield f"{path.name}: its last line has no end"
    for number, line in enumerate(content.splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            yield f"{path.name}: line {number} is no JSON: {line[:100]!r}"


# ---- records and outputs ----


def _records(home: Home, job_id: str, folder: Path) -> Iterator[str]:
    history = home.experiments / "job_history.jsonl"
    lines = history.read_text().splitlines() if history.exists() else []
    count = sum(json.loads(line)["job_id"] == job_id for line in lines)
    if count != 1:
        yield f"{count} lines about {job_id} in the history"
    json.loads((folder / "config.json").read_text())
    agent_log = home.logs / "agent.log"
    for line in (
        agent_log.read_text("utf-8", "replace").splitlines()
        if agent_log.exists()
        else ()
    ):
        if job_id in line and ("a bug in UGRO" in line or "Traceback" in line):
            yield f"agent.log: {line}"
    stderr = home.experiments / ".agent.stderr"
    if stderr.exists() and (said := stderr.read_text("utf-8", "replace").strip()):
        yield f".agent.stderr: {said[-2000:]}"
        stderr.write_text("")


def _outputs(
    played: Played, folder: Path, found: dict[str, list[Attempt]]
) -> Iterator[str]:
    """What the ranks of the last attempt wrote is here, if need be after one `inv gather`, as UGRO says."""
    if played.state["state"] != "succeeded":
        return
    if withheld := list(_withheld(found)):
        yield from _not_gathered(played, folder, withheld)
        yield from _not_home(played, folder, found)
        return
    missing = _settled(lambda: list(_not_home(played, folder, found)))
    if missing and "not gathered" in (folder / "events.jsonl").read_text():
        played.stage.home.run("gather", played.job_id)
        missing = list(_not_home(played, folder, found))
    yield from missing


def _not_home(
    played: Played, folder: Path, found: dict[str, list[Attempt]]
) -> Iterator[str]:
    last = played.state["attempts"][-1]
    for rank, node in enumerate(last["nodes"]):
        for attempt in found[node]:
            if attempt.number != last["number"]:
                continue
            source = attempt.folder / "output" / "artifacts"
            here = folder / "outputs" / str(rank) / "artifacts"
            for path in source.rglob("*"):
                name = path.relative_to(source)
                if path.is_symlink() or not path.is_file():
                    continue
                if not (here / name).exists():
                    yield f"{name} of rank {rank} has not come home"
                elif (here / name).read_bytes() != path.read_bytes():
                    yield f"{name} of rank {rank} is not what it is on {node}"


def _withheld(found: dict[str, list[Attempt]]) -> Iterator[Path]:
    """The outputs on the nodes that cannot come home as they are."""
    for attempt in itertools.chain(*found.values()):
        artifacts = attempt.folder / "output" / "artifacts"
        for path in artifacts.iterdir() if artifacts.is_dir() else ():
            if _leads_out(path) or not path.lstat().st_mode & stat.S_IRUSR:
                yield path


def _leads_out(path: Path) -> bool:
    """Whether a path is a link that leads out of its folder, by its text."""
    return path.is_symlink() and str(path.readlink()).startswith(("/", ".."))


def _not_gathered(played: Played, folder: Path, withheld: list[Path]) -> Iterator[str]:
    """It is said what is not home; it comes once it may be read, and links are left by their user's wish alone."""
    home, job_id = played.stage.home, played.job_id
    if played.state["gathered_at"]:
        yield f"it counts as gathered without {[path.name for path in withheld]}"
    done = home.run("gather", job_id)
    if done.process.returncode != NODE_FAULT:
        yield f"gather ended with {done.process.returncode}: {done.said[-500:]}"
    told = (folder / "events.jsonl").read_text()
    for path in withheld:
        if path.name not in done.said:
            yield f"gather does not name {path.name}: {done.said[-500:]}"
        if f"artifacts/{path.name}" not in told:
            yield f"no event names {path.name}"
    for path in withheld:
        if not path.is_symlink():
            path.chmod(0o700)
    done = home.run("gather", job_id, "--leave-links")
    if done.process.returncode or not home.state(played.stage.name)["gathered_at"]:
        yield f"gather --leave-links ended with {done.process.returncode}: {done.said[-500:]}"
    for path in folder.rglob("*"):
        if path.parent.name == "artifacts" and _leads_out(path):
            yield f"a link came home: {path} leads to {path.readlink()}"


def _can_be_looked_at(home: Home, job_id: str) -> Iterator[str]:
    """Whatever a rank has written, its job is shown."""
    for words in (("status", job_id), ("results", job_id), ("logs", job_id)):
        done = home.run(*words)
        if done.process.returncode or TRACEBACK.search(done.said):
            code = done.process.returncode
            yield f"{' '.join(words)} ended with {code}: {done.said[-2000:]}"


def _checkpoints(folder: Path) -> Iterator[str]:
    """A manifest at home says that a rank's part is whole: so it is."""
    outputs = folder / "outputs"
    for stored in folder.glob("manifests/*/*.json"):
        manifest = json.loads(stored.read_text())
        for name, part in manifest["files"].items():
            # What is the same on all ranks came from rank 0 alone.
            ranks = (stored.parent.name, "0")
            places = [outputs / rank / "checkpoints" / name for rank in ranks]
            found = [
                hashlib.sha256(path.read_bytes()).hexdigest()
                for path in places
                if path.exists()
            ]
            if part["sha256"] not in found:
                yield f"{stored.relative_to(folder)} says that {name} is whole: it is not"


def _shown(played: Played, folder: Path) -> Iterator[str]:
    """Who followed the job to its end has seen each line of the script once, in its order."""
    if (
        played.launch_code is None
        or played.plan.way != "follow"
        or not played.state["attempts"]
    ):
        return
    if played.launch_code != played.state["exit_code"]:
        return  # it left before the end, and said so
    for path in (folder / "logs").glob("training_rank*.log"):
        lines = [line.decode() for line in LINE.findall(path.read_bytes())]
        rank = path.stem.removeprefix("training_rank")
        shown = re.findall(
            rf"^lab\d *│ (rank {rank} (?:begins|step|ends) .*)$",
            played.launch_said,
            re.M,
        )
        if shown != lines:
            yield f"of rank {rank} {len(lines)} lines came home, {len(shown)} were shown"


# ---- what is left ----


def _left_running(lab: Lab, homes: list[Home]) -> Iterator[str]:
    for host in lab.hosts:
        for pid, argv in host.processes():
            yield f"{host.name}: process {pid} is left: {' '.join(argv)[:200]}"
        for port in nodes.listening(host):
            yield f"{host.name}: something listens on port {port}"
        for lease in nodes.leases_held(host):
            yield f"{host.name}: {lease} is held"
    for home in homes:
        agent = home.agent_pid()
        for pid, command in home.processes().items():
            if pid != agent:
                yield f"controller {home.name}: process {pid} is left: {command[:200]}"


def _left_at_home(home: Home, excused: str | None) -> Iterator[str]:
    for path in home.temporary.iterdir():
        yield f"controller {home.name}: {path.name} is left in the temporary folder"
    for path in home.experiments.iterdir():
        if excused and path.name.startswith(excused):
            continue
        if path.name not in OF_THE_FOLDER and not re.fullmatch(
            r"c\d+[bx]?_\d{8}_\d{6}", path.name
        ):
            yield f"controller {home.name}: {path.name} is left in the experiments folder"
        for inside in path.iterdir() if path.is_dir() else ():
            if inside.name not in OF_A_HOME:
                yield f"controller {home.name}: {path.name}/{inside.name} is left"
        for partial in path.rglob(".ugro-partial"):
            yield f"controller {home.name}: {partial.relative_to(home.experiments)} is left"


def _left_on_disk(lab: Lab, host: LabHost) -> Iterator[str]:
    own = host.path(".ugro")
    for path in own.rglob("*"):
        name = str(path.relative_to(own))
        if not path.is_dir() and not OF_A_NODE.fullmatch(name):
            yield f"{host.name}: ~/.ugro/{name} is left"
    jobs = host.path(f"{nodes.project_of(lab)}/jobs")
    for job in jobs.iterdir() if jobs.exists() else ():
        for path in job.iterdir():
            if path.name not in OF_A_JOB:
                yield f"{host.name}: {job.name}/{path.name} is left"
    root = Path(f"/proc/{host.pid}/root")
    for folder in ("tmp", "dev/shm"):
        for path in (root / folder).iterdir():
            if path.is_file() or path.name.startswith(("torchelastic", "ugro")):
                yield f"{host.name}: /{folder}/{path.name} is left"
