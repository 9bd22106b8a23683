"""The groups of tests: their files, needs and time limits.

A new group is a new entry of GROUPS. A test file belongs to the group with the longest path above
it, so a group may take one file out of another's folder. Nothing here runs anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import PurePosixPath

from ugro_tasks.errors import UsageError


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Tests run in one pytest, with one line in the table of results.

    Every group has `.venv` with requirements/dev.txt, the packages of the lab, and the training
    environment.
    """

    name: str
    about: str
    paths: tuple[str, ...]
    """Test files, and folders of them, from the checkout's root."""
    minutes: float
    """The limit on two idle cores: for all of it, or for the part run by `--all`."""
    by_default: bool = False
    """Whether `bin/ugro test` runs it. A change may lengthen these only by as much as it saves."""
    drawn: int | None = None
    """The number of tests run by `--all`, drawn by the commit, if all would take too long."""
    arguments: tuple[str, ...] = ()
    """For pytest."""
    programs: Mapping[str, str] = field(default_factory=dict)
    """Programs needed beyond the lab's: {program: its Debian packages}."""
    requirements: str = ""
    """The file in requirements/ with packages needed beyond dev.txt."""


DEFAULT_MINUTES = 8.0
ALL_MINUTES = 40.0

# These tests do not depend on each other. Their report begins with the seed of the order;
# `bin/ugro test --group unit -- --randomly-seed=SEED` runs them in the same order again.
IN_RANDOM_ORDER = ("-p", "randomly", "--randomly-dont-reset-seed")
COMPILER = {"cc": "gcc libc6-dev"}

GROUPS = (
    Group(
        name="unit",
        about="the parts by themselves, with real processes and files, on this machine alone",
        paths=("tests/unit", "tests/chaos/test_plans.py"),
        minutes=3,
        arguments=IN_RANDOM_ORDER,
        by_default=True,
    ),
    Group(
        name="hosts",
        about="three hosts over real SSH: logins, health, environments, and nodes that lie",
        paths=("tests/lab", "tests/hosts", "tests/environments", "tests/hostile"),
        minutes=2,
        by_default=True,
    ),
    Group(
        name="openssh",
        about="UGRO reaches what ssh reaches; hosts and files once more, by OpenSSH's own program",
        paths=("tests/openssh",),
        minutes=2.5,
        drawn=90,
    ),
    Group(
        name="launch",
        about="jobs from launch to gather on three hosts, with real torchrun",
        paths=("tests/launch",),
        minutes=3,
        by_default=True,
    ),
    Group(
        name="schedules",
        about="what holds of a job in every state, in twenty thousand schedules of faults and kills",
        paths=("tests/simulation",),
        minutes=2,
        # In one process, which starts others itself.
        arguments=("-n", "0"),
    ),
    Group(
        name="power",
        about="whatever a power cut leaves of a job's folder, the next agent goes on from it",
        paths=("tests/unit/agent/test_power_cut.py",),
        minutes=2,
    ),
    Group(
        name="hostile",
        about="ranks and nodes that turn against their controller, and folders that are shared or cannot be locked",
        paths=(
            "tests/launch/test_hostile_rank.py",
            "tests/launch/test_shapeshifter.py",
            "tests/launch/test_shared_folder.py",
            "tests/launch/test_shared_home.py",
            "tests/launch/test_without_locks.py",
        ),
        minutes=3,
        programs=COMPILER,
    ),
    Group(
        name="logind",
        about="logouts, lingering and scopes, on a machine with a real systemd",
        paths=("tests/logind",),
        minutes=1.5,
        programs={
            "systemd-run": "systemd libpam-systemd dbus polkitd",
            "setcap": "libcap2-bin",
            "sudo": "sudo",
        },
    ),
    Group(
        name="fresh",
        about="the README's first command in a fresh checkout, with next to nothing on PATH",
        paths=("tests/fresh",),
        minutes=3,
    ),
    Group(
        name="site",
        about="the documents make a site in which every link leads somewhere",
        paths=("tests/site",),
        minutes=0.5,
        requirements="docs.txt",
    ),
    Group(
        name="misfortunes",
        about="jobs whose hosts, links or agent fail, and their restarts",
        paths=(
            "tests/launch/test_misfortunes.py",
            "tests/launch/test_restart.py",
            "tests/launch/test_culprit.py",
        ),
        minutes=4,
    ),
    Group(
        name="records",
        about="a job's record is taken away in mid-run: moved, unmounted, deleted, or its disk is full",
        paths=("tests/launch/test_record_away.py",),
        minutes=2.5,
    ),
    Group(
        name="preflight",
        about="misconfigured machines are named before a launch, or do no harm",
        paths=("tests/preflight",),
        minutes=2,
    ),
    Group(
        name="training",
        about="the programs in scripts/ train small models, stop, and go on to the last digit",
        paths=("tests/training",),
        minutes=3,
    ),
    Group(
        name="chaos",
        about="rounds of chaos with the faults that matter most",
        paths=("tests/chaos",),
        minutes=2,
        programs=COMPILER,
    ),
    Group(
        name="rounds",
        about="two hundred rounds of chaos, with all that is drawn from their seeds",
        paths=("tests/chaos/test_rounds.py",),
        minutes=3.5,
        drawn=24,
        programs=COMPILER,
    ),
)


def group_of(file: str, groups: Sequence[Group] = GROUPS) -> Group | None:
    """Find the group of a test file, given by its path from the checkout's root."""
    path = PurePosixPath(file)
    nearest = None
    deepest = -1
    for group in groups:
        for folder in group.paths:
            depth = len(PurePosixPath(folder).parts)
            if path.is_relative_to(folder) and depth > deepest:
                nearest = group
                deepest = depth
    return nearest


def files_of(
    group: Group, files: Iterable[str], groups: Sequence[Group] = GROUPS
) -> list[str]:
    """Return the files of a group, sorted by name."""
    return sorted(file for file in files if group_of(file, groups) is group)


def choose(
    names: Sequence[str], everything: bool, groups: Sequence[Group] = GROUPS
) -> list[Group]:
    """Choose the groups of `--group a,b --group c` or `--all`, by default the usual ones.

    Raises UsageError for unknown names, or for both flags.
    """
    wanted: list[Group] = []
    for words in names:
        wanted += [_named(name.strip(), groups) for name in words.split(",")]
    if wanted and everything:
        raise UsageError("--all runs every group. Leave out --all or --group")
    if everything:
        return list(groups)
    if wanted:
        return list(dict.fromkeys(wanted))
    return [group for group in groups if group.by_default]


def draw(tests: Sequence[str], commit: str, count: int) -> set[str]:
    """Draw `count` of the tests by the hash of a commit, the same ones each time."""

    def place(test: str) -> bytes:
        return hashlib.sha256(f"{commit} {test}".encode()).digest()

    return set(sorted(tests, key=place)[:count])


def _named(name: str, groups: Sequence[Group]) -> Group:
    for group in groups:
        if group.name == name:
            return group
    names = [group.name for group in groups]
    near = get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"--group {name}: there is no such group. {hint}There are: {', '.join(names)}"
    )
