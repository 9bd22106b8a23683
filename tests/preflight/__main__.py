"""The table of misfortunes, and what becomes of each: python -m tests.preflight [--bare] [KEY ...].

UGRO's part: what `inv health` names, or, where nothing is to be named, whether a launch works. With `--bare` also what
three hand-typed torchruns do, each case for a minute at most: half an hour in all.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import Lab
from tests.hosts.helpers import faults, health, lab_user
from tests.preflight.bare import by_hand
from tests.preflight.stage import Misfortune, Stage
from tests.preflight.table import MISFORTUNES, PARTS

LIMIT_SECONDS = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.preflight", description=__doc__
    )
    parser.add_argument("keys", nargs="*", metavar="KEY", help="only these")
    parser.add_argument("--bare", action="store_true", help="torchrun by hand, too")
    options = parser.parse_args()
    if unknown := set(options.keys) - {m.key for m in MISFORTUNES}:
        parser.error(f"no such misfortune: {', '.join(sorted(unknown))}")
    trials = {
        "UGRO": _with_ugro,
        **({"torchrun by hand": _bare} if options.bare else {}),
    }
    print(
        f"| | misfortune | {' | '.join(trials)} |\n| --- | ---{' | ---' * len(trials)} |",
        flush=True,
    )
    good = True
    with (
        tempfile.TemporaryDirectory(prefix="ugro-preflight-") as name,
        Lab.up(share=[Path(name)], owned=True) as lab,
    ):
        for part, misfortunes in PARTS.items():
            for misfortune in misfortunes:
                if options.keys and misfortune.key not in options.keys:
                    continue
                outcomes = [
                    _tried(lab, Path(name), misfortune, trial)
                    for trial in trials.values()
                ]
                good &= not outcomes[0].startswith("FAILS")
                cells = " | ".join(outcome.replace("|", "¦") for outcome in outcomes)
                print(f"| {part} | {misfortune.words} | {cells} |", flush=True)
    return 0 if good else 1


def _tried(
    lab: Lab,
    folder: Path,
    misfortune: Misfortune,
    trial: Callable[[Stage, Misfortune], str],
) -> str:
    if misfortune.needs and not shutil.which(misfortune.needs):
        return f"not tried: no {misfortune.needs} here"
    for host in lab.hosts:
        host.reset()
    lab.trust()
    with pytest.MonkeyPatch.context() as patch, lab_user(lab, patch):
        patch.setattr("ugro_tasks.health.probe.PORT_SECONDS", 2.0)
        stage = Stage(lab, Path(tempfile.mkdtemp(dir=folder)))
        try:
            with stage.names(), misfortune.make(stage):
                return trial(stage, misfortune)
        finally:
            stage.ugro.close()


def _with_ugro(stage: Stage, misfortune: Misfortune) -> str:
    begun = time.monotonic()
    cluster = stage.cluster_file()
    if not misfortune.named:
        done = stage.ugro.run("launch", "--name", "despite", timeout=150)
        seconds = time.monotonic() - begun
        return (
            f"works, in {seconds:.0f} s"
            if done.returncode == 0
            else f"FAILS: {done.stderr.strip()}"
        )
    code, answer = health(cluster=cluster)
    node, check, cause, remedy = misfortune.named
    said = faults(answer).get((node, check), "")
    if code != 5 or cause not in said or remedy not in said:
        return f"FAILS: {faults(answer) or 'fit'}"
    value, _, fix = said.partition("\n")
    return f"`{check}` of {'the cluster' if node == 'cluster' else node}: {value}. **→** {fix}"


def _bare(stage: Stage, misfortune: Misfortune) -> str:
    return (
        f"not tried: {misfortune.not_bare}"
        if misfortune.not_bare
        else by_hand(stage, LIMIT_SECONDS)
    )


if __name__ == "__main__":
    sys.exit(main())
