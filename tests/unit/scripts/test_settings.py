"""The settings of train_production.py: by hand they are what a launch would send; what a launch sends is trusted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.factories import make_cluster
from tests.unit.training.test_settings import BAD, GOOD, own_file
from ugro_tasks.cluster.local import TRAINING_SCHEMA
from ugro_tasks.errors import UsageError
from ugro_tasks.training.settings import FILE, resolve

REPOSITORY = Path(__file__).parents[3]
READ = """
import json, sys
sys.path.insert(0, sys.argv[1])
from training.faults import Fault
from training.settings import read

for line in sys.stdin:
    arguments, environ = json.loads(line)
    try:
        found, _ = read(arguments, environ)
        told = {name: vars(section) for name, section in vars(found).items()}
    except Fault as fault:
        told = str(fault)
    print(json.dumps(told))
"""
FILES = [
    "training: {save_strategy: no, learning_rate: 1e-3}\nquantization: {enabled: no}\n",
    "logging: {log_level: info, tensorboard_dir: ~}\ndataset: {config: 'no', max_texts: 1_000}\n",
    "training:\n  seed: [1\n",
    "training: 5\n",
    "- 1\n",
    "",
    "training:\n  seed: 1\n  seed: 2\n",
    "training:\n  seed:\n",
    "training:\n  lr_scheduler: on\n",
    "optimizer:\n  eps: 1e-8\n  betas: [0, 0.5]\n",
    "optimizer:\n  betas: [0, 1]\n",
    "model: !!python/name:os.system\n",
    "training: {<<: 1}\n",
]


def by_hand(
    runs: list[tuple[list[str], dict[str, str]]], scripts: Path = REPOSITORY / "scripts"
) -> list[Any]:
    """What a script started with these arguments and variables finds: its settings, or the fault as text."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(scripts)],
        input="".join(json.dumps(run) + "\n" for run in runs),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_launch(root: Path, *sets: str) -> Any:
    """What a launch would send to the nodes, or the error as text."""
    try:
        return resolve(make_cluster(root), sets=sets)
    except UsageError as error:
        return error.text


def same(here: Any, there: Any) -> bool:
    """Whether both are the same settings, or both refuse; if both say what may stand there, in the same words."""
    if isinstance(here, str) and isinstance(there, str):
        rules = [said.partition("must be")[2] for said in (here, there)]
        return rules[0] == rules[1] or "" in rules
    return bool(here == there)


# Of the whole set: no node is known by hand, and UGRO's word for two nodes without a number is another one.
PAIRS = [pair for pair, _ in GOOD + BAD]


def test_set_means_the_same_by_hand_and_in_a_launch(tmp_path: Path) -> None:
    found = by_hand([(["--set", pair], {}) for pair in PAIRS])
    differ = [
        (pair, here, there)
        for pair, here in zip(PAIRS, found, strict=True)
        if not same(here, there := by_launch(tmp_path, pair))
    ]
    assert differ == []
    assert [isinstance(here, str) for here in found] == [False] * len(GOOD) + [
        True
    ] * len(BAD)


def test_a_file_means_the_same_by_hand_and_in_a_launch(tmp_path: Path) -> None:
    runs: list[tuple[list[str], dict[str, str]]] = []
    for number, text in enumerate(FILES):
        (tmp_path / str(number)).mkdir()
        own_file(tmp_path / str(number), text)
        runs.append((["--config", str(tmp_path / str(number) / FILE)], {}))
    found = by_hand(runs)
    for number, here in enumerate(found):
        there = by_launch(tmp_path / str(number))
        assert same(here, there), (FILES[number], here, there)
    assert [isinstance(here, str) for here in found].count(True) == 10


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("model_name", "-x"),
        ("model_name", "tiny"),
        ("dataset_name", ""),
        ("num_epochs", "3"),
        ("num_epochs", "0"),
        ("num_epochs", "three"),
        ("learning_rate", "1e-8"),
        ("learning_rate", "1000"),
    ],
)
def test_a_flag_means_the_same_by_hand_and_in_a_launch(
    tmp_path: Path, flag: str, value: str
) -> None:
    of_launch = {
        "model_name": "model",
        "dataset_name": "dataset",
        "num_epochs": "epochs",
        "learning_rate": "learning_rate",
    }
    (here,) = by_hand([([f"--{flag.replace('_', '-')}={value}"], {})])
    try:
        given: dict[str, Any] = {of_launch[flag]: value}
        there: Any = resolve(make_cluster(tmp_path), **given)
    except UsageError as error:
        there = error.text
    assert same(here, there), (here, there)


def test_each_source_counts_over_the_one_before_by_hand(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(
        "training: {num_epochs: 2, learning_rate: 2, warmup_steps: 2, max_steps: 2}\n"
    )
    flags = ["--config", str(config), "--num-epochs", "3", "--learning-rate", "3"]
    (found,) = by_hand([([*flags, "--set", "training.num_epochs=4"], {})])
    keys = ("num_epochs", "learning_rate", "warmup_steps", "seed")
    assert [found["training"][key] for key in keys] == [4, 3.0, 2, 42]


# ---- from UGRO ----


def test_what_ugro_sends_is_taken_as_it_is() -> None:
    """No default comes to it, nothing is checked, and the flags of the contract say nothing new."""
    sent = {"model": {"name": "a"}, "mine": {"depth": 3}}
    environ = {"UGRO_SETTINGS": json.dumps(sent)}
    assert by_hand([(["--model-name", "b", "--num-epochs", "0"], environ)]) == [sent]


def test_a_node_needs_nothing_but_scripts(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    shutil.copytree(REPOSITORY / "scripts", scripts)
    (scripts / "training/by_hand.py").unlink()
    (scripts / "training/rules.py").unlink()
    sent = resolve(make_cluster(tmp_path))
    environ = {"UGRO_SETTINGS": json.dumps(sent)}
    taken, by_itself = by_hand([([], environ), ([], {})], scripts)
    assert taken == sent
    assert "it runs in a checkout of UGRO" in by_itself


@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        ([], "{", "UGRO_SETTINGS is not JSON"),
        ([], "[]", "UGRO_SETTINGS is not a JSON object of sections"),
        ([], '{"model": 5}', "UGRO_SETTINGS is not a JSON object of sections"),
        (["--set", "lora.rank=8"], "{}", "use --set of inv launch"),
        (["--config", "x.yaml"], "{}", "use --set of inv launch"),
    ],
)
def test_what_cannot_be_from_ugro_is_said(
    arguments: list[str], text: str, said: str
) -> None:
    (found,) = by_hand([(arguments, {"UGRO_SETTINGS": text})])
    assert said in found


def test_a_setting_that_was_not_sent_is_named() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, 'scripts')\n"
            "from training.settings import read\n"
            "found, _ = read([], {'UGRO_SETTINGS': '{\"lora\": {}}'})\n"
            "found.lora.rank",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Fault: UGRO_SETTINGS has no 'rank'" in done.stderr


# ---- older projects ----


def test_by_hand_without_a_schema_a_setting_is_of_its_defaults_kind(
    tmp_path: Path,
) -> None:
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts")
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    (tmp_path / TRAINING_SCHEMA).unlink()
    sets = ["training.lr_scheduler=polynomial", "training.seed=many", "trainig.seed=1"]
    taken, refused, unknown = by_hand(
        [(["--set", pair], {}) for pair in sets], tmp_path / "scripts"
    )
    assert taken["training"]["lr_scheduler"] == "polynomial"
    assert refused.endswith("must be a whole number, not 'many'")
    assert "did you mean training.seed?" in unknown
