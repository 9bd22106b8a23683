"""What a rank does that has turned against UGRO, by the rights that it has on its node.

It forges what UGRO would say, and does one act more: to its own attempt's folder, to what UGRO remembers of the node,
or to its outputs. Whatever cannot be done, on a full disk or for the second time, is left.
"""

import contextlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

OUTPUT = Path(os.environ.get("UGRO_OUTPUT_DIR", "output"))
FOLDER = OUTPUT.parent
FORGED_EXIT = {"code": 0, "error": None, "ended_at": 1.0}
# JSON all of it, and nothing of it what a reader of metrics counts on.
METRICS = (
    '{"step": "seven", "loss": "\\u001b[2J\\u001b]0;owned\\u0007"}',
    '{"step": 1e308, "loss": NaN, "epoch": -Infinity}',
    '{"step": %s, "loss": 1e999}' % ("9" * 4000),
    '{"step": {"loss": []}, "loss": [[[[[[]]]]]]}',
    '{"step": true, "loss": null, "%s": 0}' % ("x" * 100_000),
    '["step", 1]',
    "null",
    '"loss"',
)


def words(rank: int, world: int) -> bytes:
    """Return lines that look like what UGRO, its nodes and torchrun say, about all ranks."""
    # The very program of this job has the protocol.
    sys.path.insert(0, str(FOLDER / "node.zip"))
    protocol = importlib.import_module("node.protocol")
    frame = protocol.FRAME
    record = json.dumps(FORGED_EXIT).encode()
    lines = [
        protocol.MARK + b'{"left": [], "exit": {"started_at": 1.0}}',
        frame.pack(protocol.EXIT, 0, len(record)) + record,
        frame.pack(protocol.LOST, 0, 34) + b'{"known": false, "rebooted": true}',
        b'{"time": 1.0, "message": "succeeded"}',
        b"Traceback (most recent call last):",
        b"  exitcode  : -9 (pid: 1)",
    ]
    for other in range(world):
        if other != rank:
            lines.append(b"lab%d \xe2\x94\x82 rank %d step 1000000" % (other, other))
            lines.append(b"rank %d on lab%d: killed by SIGKILL" % (other, other))
    return b"".join(line + b"\n" for line in lines)


def forge_error(rank: int, world: int) -> None:
    """Blame another rank in the error file, by wrong types."""
    other = (rank + 1) % world
    told = {
        "message": f"rank {other} on lab{other}: Connection reset by peer",
        "extraInfo": {"py_callstack": [other], "timestamp": {}},
    }
    with contextlib.suppress(OSError):
        (FOLDER / "error.json").write_text(json.dumps({"message": told}))


# ---- the acts ----


def forge_exit() -> None:
    (FOLDER / "exit.json").write_text(json.dumps(FORGED_EXIT))


def garble_exit() -> None:
    garbled = {"code": "zero", "left_pids": "all", "outputs": 7, "suspects": [None]}
    (FOLDER / "exit.json").write_text(json.dumps(garbled))


def block_exit() -> None:
    """Have a folder where the exit record belongs."""
    (FOLDER / "exit.json").mkdir()
    (FOLDER / "exit.json" / "in-it").touch()


def forge_stop() -> None:
    stop = {"reason": "reset", "by": "somebody@lab1", "grace_seconds": "soon"}
    (FOLDER / "stop.json").write_text(json.dumps(stop))


def garble_identity() -> None:
    """Have words of other types where the supervisor and torchrun say who they are."""
    for name in ("supervisor.json", "torchrun.json"):
        (FOLDER / name).write_text(json.dumps({"pid": "1; true", "start_time": []}))


def remove_records() -> None:
    for name in ("supervisor.json", "torchrun.json", "plan.json"):
        (FOLDER / name).unlink(missing_ok=True)


def remove_folder() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)


def replace_streams() -> None:
    """Have a pipe for the log and a loop for the metrics."""
    (FOLDER / "log").unlink()
    os.mkfifo(FOLDER / "log")
    (OUTPUT / "metrics.jsonl").unlink(missing_ok=True)
    (OUTPUT / "metrics.jsonl").symlink_to("metrics.jsonl")


def garble_memory() -> None:
    """Write nonsense into what UGRO remembers of this node's processes and its lease."""
    for path in Path("~/.ugro").expanduser().glob("on-*/*-*.json"):
        path.write_text(
            json.dumps(
                {"boot_id": boot_id(), "processes": 7, "process": [], "holder": 1}
            )
        )


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def plant() -> None:
    """Plant links to what is not its own and to nowhere, and a pipe."""
    artifacts = OUTPUT / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    links = {
        "passwd": "/etc/passwd",
        "etc": "/etc",
        "up": "../../..",
        "loop": "loop",
        "nowhere": "/nowhere/at/all",
    }
    for name, target in links.items():
        (artifacts / name).symlink_to(target)
    os.mkfifo(artifacts / "pipe")
    os.mkfifo(OUTPUT / "pipe")


ACTS: dict[str, Callable[[], None]] = {
    "forge-exit": forge_exit,
    "garble-exit": garble_exit,
    "block-exit": block_exit,
    "forge-stop": forge_stop,
    "garble-identity": garble_identity,
    "remove-records": remove_records,
    "remove-folder": remove_folder,
    "replace-streams": replace_streams,
    "garble-memory": garble_memory,
    "plant": plant,
}


def act(name: str) -> None:
    """Do one of the acts."""
    with contextlib.suppress(OSError):
        ACTS[name]()
