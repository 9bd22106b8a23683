"""How many sequences each card takes, and what is said where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.factories import (
    make_cluster,
    make_node,
    make_probe,
    make_record,
    make_spec,
)
from ugro_tasks.backends.ssh.plan import make_plan
from ugro_tasks.cluster.model import Cluster, TrainingDefaults
from ugro_tasks.errors import UsageError
from ugro_tasks.hosts.answers import Model, ProbeAnswer
from ugro_tasks.jobs.plan import LaunchPlan
from ugro_tasks.launch.spec import draft
from ugro_tasks.training import batch_sizes as shares
from ugro_tasks.training.batch_sizes import batch_sizes, smallest_ratio

TINY_LLAMA = {
    "hidden_size": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "intermediate_size": 5632, "vocabulary": 32000,
}  # fmt: skip
AUTO: dict[str, dict[str, Any]] = {
    "training": {"batch_size_per_gpu": "auto", "gradient_accumulation_steps": 8},
    "model": {"name": "org/tiny-llama", "max_seq_length": 2048},
}
MISSING = {"missing": "it is not on this node yet"}


def owners(root: Path, *cards: float | None, **changes: Any) -> Cluster:
    """A node for each card, with the GB that the file promises."""
    nodes = tuple(
        make_node(rank, gpu_model="RTX", vram_gb=vram_gb, **changes)
        for rank, vram_gb in enumerate(cards)
    )
    return make_cluster(root, nodes)


def seen(
    cluster: Cluster, *cards: str, model: Any = None, **more: Any
) -> dict[str, ProbeAnswer]:
    """Facts of the nodes whose nvidia-smi shows "memory.total,memory.used"."""
    facts = {}
    for node, card in zip(
        cluster.nodes, cards or [""] * len(cluster.nodes), strict=True
    ):
        total, _, used = card.partition(",")
        row = (
            f"0, RTX, GPU-1, 580.1, {total}, {used or 0}, 0, 40, 9.0\n" if card else ""
        )
        facts[node.name] = make_probe(
            gpus={"code": 0, "stdout": row, "stderr": ""},
            interfaces={"eth0": {"addresses": [node.address], "mtu": 1500}},
            free_port=29500,
            model=model,
            **more,
        )
    return facts


def sizes_of(
    cluster: Cluster, facts: dict[str, ProbeAnswer], **training: Any
) -> list[int]:
    settings = {**AUTO, "training": {**AUTO["training"], **training}}
    return list(batch_sizes(cluster, settings, facts).values())


def plan_of(
    cluster: Cluster, facts: dict[str, ProbeAnswer], **record: Any
) -> LaunchPlan:
    given = {"script": "train_production.py", "settings": AUTO}
    return make_plan(make_record(cluster, **{**given, **record}), cluster, facts)


# In the ratio of the cards


@pytest.mark.parametrize(
    ("cards", "sizes"),
    [
        ([12, 8, 8], [3, 2, 2]),
        ([8, 8, 8], [1, 1, 1]),
        ([24, 8], [3, 1]),
        ([16, 12], [4, 3]),
        ([24, 16, 8], [3, 2, 1]),
        ([24, 10], [5, 2]),
        ([80, 8], [10, 1]),
        ([8], [1]),
        ([12, None, 8], [3, 2, 2]),
        ([None, None], [1, 1]),
    ],
)
def test_the_ratio_of_the_cards_in_small_numbers(
    tmp_path: Path, cards: list[float | None], sizes: list[int]
) -> None:
    cluster = owners(tmp_path, *cards)
    assert sizes_of(cluster, seen(cluster)) == sizes


@pytest.mark.parametrize(
    ("cards", "sizes"),
    [
        # As nvidia-smi tells of the cards of 12, 8 and 8 GB.
        (["12227", "8188", "8192"], [3, 2, 2]),
        (["11878", "12288"], [1, 1]),
        (["24564", "8188"], [3, 1]),
        (["143771", "8188"], [18, 1]),
    ],
)
def test_what_is_sold_as_alike_counts_as_alike(
    tmp_path: Path, cards: list[str], sizes: list[int]
) -> None:
    cluster = owners(tmp_path, *[None] * len(cards))
    assert sizes_of(cluster, seen(cluster, *cards)) == sizes


def test_what_the_probe_sees_counts_before_what_the_file_says(tmp_path: Path) -> None:
    cluster = owners(tmp_path, 8, 8)
    assert sizes_of(cluster, seen(cluster, "24564", "8188")) == [3, 1]
    assert sizes_of(cluster, seen(cluster, "24564", "[N/A]")) == [3, 1]


def test_a_card_that_a_rank_will_not_see_counts_for_nothing(tmp_path: Path) -> None:
    shared = (make_node(0, slot="gpu0"), make_node(1, slot="gpu1", gpu_model="RTX"))
    cluster = make_cluster(tmp_path, shared)
    assert [node.hides_card for node in cluster.nodes] == [True, False]
    assert sizes_of(cluster, seen(cluster, "24564", "8188")) == [1, 1]


@pytest.mark.parametrize("seed", range(50))
def test_no_share_is_far_from_what_its_card_is_worth(seed: int) -> None:
    cards = {
        str(index): 4000 + (seed * 7919 + index * 104729) % 76000
        for index in range(1 + seed % 5)
    }
    sizes, smallest = smallest_ratio(cards), min(cards.values())
    least = min(sizes.values())
    assert 1 <= least <= 4
    for name, mib in cards.items():
        assert sizes[name] / least == pytest.approx(mib / smallest, rel=0.13)


def test_fewer_nodes_are_shared_out_anew(tmp_path: Path) -> None:
    cluster = owners(tmp_path, 12, 8, 8)
    facts = seen(cluster)
    assert sizes_of(cluster.select("gpu1,gpu2"), facts) == [1, 1]
    assert sizes_of(cluster.select("gpu0,gpu2"), facts) == [3, 2]


# As asked


def test_a_number_is_for_all_and_a_mapping_for_each(tmp_path: Path) -> None:
    cluster = owners(tmp_path, 12, 8, 8)
    assert sizes_of(cluster, seen(cluster), batch_size_per_gpu=4) == [4, 4, 4]
    assert sizes_of(
        cluster, seen(cluster), batch_size_per_gpu={"gpu2": 1, "gpu0": 3, "gpu1": "2"}
    ) == [
        3,
        2,
        1,
    ]
    fewer = cluster.select("gpu0,gpu2")
    assert sizes_of(
        fewer, seen(cluster), batch_size_per_gpu={"gpu2": 1, "gpu0": 3, "gpu1": 2}
    ) == [3, 1]


def test_without_settings_the_cluster_file_decides(tmp_path: Path) -> None:
    cluster = make_cluster(
        tmp_path,
        3,
        training=TrainingDefaults(settings={"training": {"batch_size_per_gpu": 5}}),
    )
    assert batch_sizes(cluster, {}, seen(cluster)) == {"gpu0": 5, "gpu1": 5, "gpu2": 5}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (0, "must be a whole number, at least 1"),
        ("all", "must be a whole number"),
        (None, "must be a whole number"),
        ({"gpu0": 1, "gpu1": 0, "gpu2": 1}, "gpu1: must be a whole number"),
        ({"gpu0": 1, "gpu1": 1}, "no number for gpu2"),
        (
            {"gpu0": 1, "gpu1": 1, "gup2": 1},
            "no number for gpu2; gup2 is none of the nodes, did you mean gpu2?",
        ),
    ],
)
def test_what_is_no_batch_size_is_refused_before_anything_is_queued(
    tmp_path: Path, asked: object, said: str
) -> None:
    cluster = owners(tmp_path, 12, 8, 8)
    spec = make_spec(settings={"training": {"batch_size_per_gpu": asked}})
    with pytest.raises(UsageError) as refused:
        draft(spec, cluster)
    assert refused.value.text.startswith(f"training.batch_size_per_gpu: {said}")


# As the model allows


def test_auto_takes_no_more_than_fits(tmp_path: Path) -> None:
    cluster = owners(tmp_path, 12, 8, 8)
    facts = seen(cluster, "12227", "8188", "8192", model={"config": TINY_LLAMA})
    assert sizes_of(cluster, facts) == [2, 1, 1]
    short = {**AUTO, "model": {"max_seq_length": 1024}}
    assert list(batch_sizes(cluster, short, facts).values()) == [3, 2, 2]


def test_a_desktop_on_the_card_counts_and_a_job_of_ugros_does_not(
    tmp_path: Path,
) -> None:
    cluster = owners(tmp_path, 12, 8, 8)
    model = {"config": TINY_LLAMA}
    cards = "12227,2600", "8188,900", "8192"
    assert sizes_of(cluster, seen(cluster, *cards, model=model)) == [1, 1, 1]
    assert sizes_of(
        cluster, seen(cluster, *cards, model=model, lease={"job": "other"})
    ) == [2, 1, 1]


def test_where_not_even_one_fits_the_plan_says_so_with_the_numbers(
    tmp_path: Path,
) -> None:
    cluster = owners(tmp_path, 12, 6, 4)
    facts = seen(cluster, "12227", "6144,500", "4096,100", model={"config": TINY_LLAMA})
    plan = plan_of(cluster, facts)
    assert [
        (node.batch_size, node.memory and node.memory.fit) for node in plan.nodes
    ] == [
        (2, "fits"),
        (1, "tight"),
        (1, "too large"),
    ]
    (refusal,) = shares.refusals(plan)
    assert (
        "gpu2: memory: a batch of 1 needs about 5.7 GiB (weights 0.7, trained 0.0, activations 3.9, "
        in refusal
    )
    assert "3.9 GiB are free of the card's 4.0" in refusal
    assert "gradient_checkpointing=true" in refusal
    assert "--force" in refusal


def test_too_much_for_a_card_is_to_be_left_to_auto(tmp_path: Path) -> None:
    cluster = owners(tmp_path, 12)
    training = {**AUTO["training"], "batch_size_per_gpu": 4}
    plan = plan_of(
        cluster,
        seen(cluster, "12227", model={"config": TINY_LLAMA}),
        settings={**AUTO, "training": training},
    )
    assert plan.nodes[0].batch_size == 4
    assert "--set training.batch_size_per_gpu=auto" in shares.refusals(plan)[0]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (MISSING, "it is not on this node yet"),
        (
            {"config": {"hidden_size": 64}},
            "its config.json lacks what an estimate needs",
        ),
        (None, None),
    ],
)
def test_without_the_models_numbers_there_is_no_estimate(
    tmp_path: Path, model: Any, why: str | None
) -> None:
    cluster = owners(tmp_path, 12, 8, 8)
    plan = plan_of(cluster, seen(cluster, model=model))
    assert [node.memory for node in plan.nodes] == [None] * 3
    assert {node.memory_unknown for node in plan.nodes} == {why}
    assert [node.batch_size for node in plan.nodes] == [3, 2, 2]
    assert shares.refusals(plan) == []


def test_one_node_that_has_the_model_is_enough(tmp_path: Path) -> None:
    cluster = owners(tmp_path, 12, 8)
    facts = seen(cluster, "12227", "8188", model=MISSING)
    facts["gpu1"] = msgspec.structs.replace(
        facts["gpu1"], model=Model(config=TINY_LLAMA)
    )
    assert [node.memory is not None for node in plan_of(cluster, facts).nodes] == [
        True,
        True,
    ]


def test_a_rank_on_the_cpu_has_no_card_to_fill(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path, 2)
    plan = plan_of(cluster, seen(cluster, model={"config": TINY_LLAMA}))
    assert {node.memory_unknown for node in plan.nodes} == {"no card is known here"}


# In the plan


def test_the_plan_tells_every_rank_all_sizes_and_the_settings(tmp_path: Path) -> None:
    cluster = owners(tmp_path, 12, 8, 8)
    plan = plan_of(cluster, seen(cluster))
    assert plan.effective_batch == 7 * 8
    assert {node.env["UGRO_BATCH_SIZES"] for node in plan.nodes} == {"3,2,2"}
    (settings,) = {node.env["UGRO_SETTINGS"] for node in plan.nodes}
    assert json.loads(settings) == AUTO
    assert settings == json.dumps(AUTO, sort_keys=True, separators=(",", ":"))
    assert (
        shares.summary(plan)
        == "micro-batches of 3 on gpu0, 2 on gpu1, 2 on gpu2: 56 sequences a step"
    )


def test_a_rank_is_told_the_estimate_that_is_shown(tmp_path: Path) -> None:
    cluster = owners(tmp_path, 12, 8)
    facts = seen(cluster, "12227", "8188", model={"config": TINY_LLAMA})
    plan = plan_of(cluster, facts)
    assert [node.env["UGRO_MEMORY_MIB"] for node in plan.nodes] == [
        str(node.memory.total_mib) for node in plan.nodes if node.memory
    ]
    assert plan.nodes[0].env["UGRO_MEMORY_MIB"] != plan.nodes[1].env["UGRO_MEMORY_MIB"]


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (MISSING, {}),
        ({"config": TINY_LLAMA}, {"force": True}),
        (None, {"script": "train.py"}),
    ],
    ids=["no estimate", "forced", "another script"],
)
def test_a_rank_that_must_not_refuse_is_told_no_estimate(
    tmp_path: Path, model: Any, changes: dict[str, Any]
) -> None:
    cluster = owners(tmp_path, 12, 8)
    facts = seen(cluster, "12227", "8188", model=model)
    for node in plan_of(cluster, facts, **changes).nodes:
        assert "UGRO_MEMORY_MIB" not in node.env


def test_a_script_of_ones_own_is_told_the_sizes_and_promised_nothing(
    tmp_path: Path,
) -> None:
    cluster = owners(tmp_path, 12, 8, 8)
    plan = plan_of(cluster, seen(cluster), script="train.py", settings={})
    assert plan.effective_batch is None
    assert "UGRO_SETTINGS" not in plan.nodes[0].env
    assert plan.nodes[0].env["UGRO_BATCH_SIZES"] == "1,1,1"


def test_a_restart_on_the_same_nodes_keeps_their_shares(tmp_path: Path) -> None:
    cluster = owners(tmp_path, 12, 8, 8)
    model = {"config": TINY_LLAMA}
    first = plan_of(cluster, seen(cluster, "12227", "8188", "8192", model=model))
    later = seen(cluster, "12227,2600", "8188", "8192", model=model)
    assert [node.batch_size for node in plan_of(cluster, later, plan=first).nodes] == [
        2,
        1,
        1,
    ]
    fewer = cluster.select("gpu0,gpu1")
    assert [node.batch_size for node in plan_of(fewer, later, plan=first).nodes] == [
        1,
        1,
    ]


def test_only_the_script_that_follows_the_settings_has_its_model_looked_for(
    tmp_path: Path,
) -> None:
    cluster = make_cluster(tmp_path)
    record = make_record(
        cluster,
        script="lm/train_production.py",
        env={"HF_HOME": "~/hf", "TOKEN": "secret"},
    )
    assert shares.model_to_look_for(record) == {
        "name": "tiny",
        "env": {"HF_HOME": "~/hf"},
    }
    assert shares.model_to_look_for(make_record(cluster, script="train.py")) is None
