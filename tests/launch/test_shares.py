"""Unequal cards on three hosts, from the probe to the plan; nvidia-smi is a stand-in that replays recorded output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, LabHost
from lab.ugro import Ugro

SCRIPTS = Path(__file__).parents[2] / "scripts"
PRODUCTION = ["--script", "train_production.py", "--model", "org/tiny-llama", "--set"]
TINY_LLAMA: dict[str, Any] = {
    "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "intermediate_size": 5632, "vocab_size": 32000, "max_position_embeddings": 2048, "dtype": "bfloat16",
}  # fmt: skip
CACHED = ".cache/huggingface/hub/models--org--tiny-llama"


@pytest.fixture
def unequal(lab: Lab, hosts: list[LabHost], tmp_path: Path) -> Iterator[Ugro]:
    """Cards of 12, 8 and 8 GB, and no model."""
    for host, card in zip(hosts, ("rtx5070ti", "rtx4070", "rtx3070ti"), strict=True):
        host.nvidia_smi(card)
    ugro = Ugro(lab, tmp_path, SCRIPTS)
    yield ugro
    ugro.close()
    for host in hosts:
        host.remove(CACHED)


def put_model(host: LabHost, **changes: Any) -> None:
    config = host.path(CACHED) / "snapshots/0123/config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({**TINY_LLAMA, **changes}))


def test_a_dry_run_shows_the_shares_and_what_each_card_will_hold(unequal: Ugro) -> None:
    auto = [*PRODUCTION, "training.batch_size_per_gpu=auto", "--dry-run"]
    rehearsed = unequal.launch("exp1", "", *auto)
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert "UGRO_BATCH_SIZES=3,2,2" in rehearsed.stdout
    assert "(3 + 2 + 2) x 8 accumulated = 56 sequences a step" in rehearsed.stdout
    assert rehearsed.stdout.count("it is not on this node yet") == 3

    put_model(unequal.lab.hosts[1])
    plan = json.loads(unequal.launch("exp1", "", *auto, "--json").stdout)["plan"]
    assert [(node["batch_size"], node["memory"]["fit"]) for node in plan["nodes"]] == [
        (2, "fits"), (1, "fits"), (1, "fits"),
    ]  # fmt: skip
    assert [node["memory"]["card_mib"] for node in plan["nodes"]] == [12227, 8188, 8192]
    assert plan["effective_batch"] == 32
    settings = json.loads(plan["nodes"][2]["env"]["UGRO_SETTINGS"])
    assert settings["model"]["name"] == "org/tiny-llama"


def test_a_launch_that_cannot_fit_is_refused_with_the_numbers(unequal: Ugro) -> None:
    put_model(
        unequal.lab.hosts[0],
        num_hidden_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
    )
    one = [*PRODUCTION, "training.batch_size_per_gpu=1"]
    shown = unequal.launch("exp1", "", *one, "--dry-run")
    assert shown.stdout.count("too large") == 3
    assert (
        "a launch would be refused: lab1: memory: a batch of 1 needs about"
        in shown.stderr
    )
    refused = unequal.launch("exp1", "", *one)
    assert refused.returncode == 5
    assert "lab2: memory: a batch of 1 needs about" in refused.stderr
    assert "GiB are free of the card's 8.0" in refused.stderr
    assert unequal.job("exp1").state()["state"] == "refused"
