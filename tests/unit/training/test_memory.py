"""The estimate of memory, against what torch, peft and bitsandbytes really take.

The figures are recorded: peaks by `python -m benchmarks.memory_estimate --card`, files and bytes of nf4 by saving and
loading a model with bitsandbytes 0.50.
"""

from __future__ import annotations

from typing import Any

import pytest

from ugro_tasks.codec import UNREADABLE, convert
from ugro_tasks.hosts.answers import Model
from ugro_tasks.training.memory import (
    MIB,
    OVERHEAD_MIB,
    ModelFacts,
    estimate,
    model_facts,
    on_card,
)

TINY_LLAMA = ModelFacts(
    hidden_size=2048, layers=22, heads=32, kv_heads=4, intermediate_size=5632, vocabulary=32000, positions=2048
)  # fmt: skip
SMALL = ModelFacts(
    hidden_size=896, layers=24, heads=14, kv_heads=2, intermediate_size=4864, vocabulary=151936, tied=True
)  # fmt: skip
LARGE = ModelFacts(
    hidden_size=4096, layers=32, heads=32, kv_heads=8, intermediate_size=14336, vocabulary=128256
)  # fmt: skip
FOR_NF4: dict[str, Any] = {
    "hidden_size": 1024, "layers": 4, "heads": 16, "kv_heads": 4, "head_size": 64, "intermediate_size": 2816,
    "vocabulary": 8000,
}  # fmt: skip


def settings(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of config/training_defaults.yaml that count, without quantisation."""
    given: dict[str, dict[str, Any]] = {
        "model": {"max_seq_length": 2048, "dtype": "bfloat16", "load_in_4bit": True},
        "training": {"gradient_checkpointing": False},
        "quantization": {"enabled": False, "bits": 4},
        "optimizer": {"type": "adamw"},
        "lora": {"enabled": True, "rank": 16, "target_modules": ["q_proj", "v_proj"]},
    }
    return {
        section: {**keys, **changes.get(section, {})} for section, keys in given.items()
    }


@pytest.mark.parametrize(
    ("model", "parameters"),
    [(TINY_LLAMA, 1_100_048_384), (SMALL, 494_005_120), (LARGE, 8_030_261_248)],
    ids=["TinyLlama-1.1B", "0.5B, tied", "8B"],
)
def test_parameters_are_as_many_as_transformers_makes(
    model: ModelFacts, parameters: int
) -> None:
    assert model.parameters == parameters


EVERY = {"lora": {"target_modules": ["all-linear"]}}
NO_LORA = {"lora": {"enabled": False}}
CHECKPOINTS = {"training": {"gradient_checkpointing": True}}


SHORT = {"model": {"max_seq_length": 512}}
HALF = {"model": {"max_seq_length": 1024}}
# On an H200, with torch 2.11, transformers 5.17 and peft 0.21; with DDP's copy of the gradients.
ON_A_CARD = [
    (SMALL, 1, {}, 6_844),
    (SMALL, 2, {}, 12_453),
    (SMALL, 4, SHORT, 6_826),
    (SMALL, 1, EVERY, 8_163),
    (SMALL, 1, CHECKPOINTS, 4_683),
    (SMALL, 4, CHECKPOINTS, 15_636),
    (SMALL, 1, NO_LORA, 17_212),
    (SMALL, 2, {**NO_LORA, **CHECKPOINTS, **HALF}, 13_626),
    (TINY_LLAMA, 1, {}, 6_041),
    (TINY_LLAMA, 2, {}, 9_872),
    (TINY_LLAMA, 4, SHORT, 6_041),
    (TINY_LLAMA, 1, EVERY, 8_053),
    (TINY_LLAMA, 1, CHECKPOINTS, 3_149),
    (TINY_LLAMA, 4, CHECKPOINTS, 5_975),
    (TINY_LLAMA, 1, NO_LORA, 28_436),
    (TINY_LLAMA, 2, {**NO_LORA, **CHECKPOINTS, **HALF}, 25_243),
    (LARGE, 1, {}, 28_767),
    (LARGE, 2, {}, 42_010),
    (LARGE, 4, SHORT, 28_767),
    (LARGE, 1, EVERY, 35_266),
    (LARGE, 1, CHECKPOINTS, 19_062),
    (LARGE, 4, CHECKPOINTS, 29_712),
]


@pytest.mark.parametrize(("model", "batch_size", "changes", "counted_mib"), ON_A_CARD)
def test_the_estimate_is_what_torch_keeps_on_a_card(
    model: ModelFacts,
    batch_size: int,
    changes: dict[str, dict[str, Any]],
    counted_mib: float,
) -> None:
    needed = estimate(model, settings(**changes), batch_size)
    kept_mib = needed.total_mib - OVERHEAD_MIB
    assert kept_mib == pytest.approx(counted_mib, rel=0.045)


@pytest.mark.parametrize(
    ("told", "bytes_held"),
    [
        ({"dtype": "bfloat16", "weights_bytes": 122_968_304}, 56_076_800),
        ({}, 56_076_800),
        (
            {"dtype": "float16", "quantised_bits": 4, "weights_bytes": 56_102_038},
            56_076_800,
        ),
        (
            {"dtype": "float16", "quantised_bits": 4, "weights_bytes": 58_167_068},
            58_150_656,
        ),
    ],
    ids=[
        "quantised when loaded",
        "by its dimensions",
        "quantised file",
        "without double quantisation",
    ],
)
def test_nf4_weights_are_what_bitsandbytes_holds(
    told: dict[str, Any], bytes_held: int
) -> None:
    found = model_facts(
        Model(config={**FOR_NF4, **told}, weights_bytes=told.get("weights_bytes"))
    )
    assert found
    needed = estimate(found, settings(quantization={"enabled": True}), 1)
    assert needed.weights_mib == pytest.approx(bytes_held / MIB, rel=0.02)


def test_an_adapter_takes_twenty_bytes_a_parameter() -> None:
    assert estimate(TINY_LLAMA, settings(), 1).trained_mib == round(
        20 * 2_252_800 / MIB
    )
    in_8_bits = estimate(TINY_LLAMA, settings(optimizer={"type": "adamw_8bit"}), 1)
    assert in_8_bits.trained_mib == round(14 * 2_252_800 / MIB)


def test_what_must_not_be_quantised_is_not() -> None:
    asked = {"quantization": {"enabled": True}}
    assert estimate(TINY_LLAMA, settings(**asked), 1).weights_mib < 800
    assert (
        estimate(
            TINY_LLAMA, settings(**asked, model={"load_in_4bit": False}), 1
        ).weights_mib
        > 2000
    )
    assert estimate(TINY_LLAMA, settings(**asked, **NO_LORA), 1).weights_mib > 4000


def test_a_sequence_is_no_longer_than_the_model_takes() -> None:
    at_most = estimate(TINY_LLAMA, settings(), 1)
    assert estimate(TINY_LLAMA, settings(model={"max_seq_length": 9999}), 1) == at_most


def test_settings_that_say_nothing_mean_the_defaults() -> None:
    assert estimate(TINY_LLAMA, {}, 1) == estimate(
        TINY_LLAMA, settings(quantization={"enabled": True}), 1
    )


@pytest.mark.parametrize(
    ("card_mib", "taken_mib", "fit"),
    [
        (8000, 0, "fits"),
        (8000, 2200, "fits"),
        (8000, 2300, "tight"),
        (5100, 0, "tight"),
        (5100, 100, "too large"),
    ],
)
def test_how_it_fits(card_mib: int, taken_mib: int, fit: str) -> None:
    needed = on_card(estimate(TINY_LLAMA, {}, 1), card_mib, taken_mib)
    assert needed.total_mib == 5800
    assert needed.fit == fit


@pytest.mark.parametrize(
    "told",
    [
        None,
        Model(),
        Model(missing="it is not on this node yet"),
        Model(config={"hidden_size": "2048", "layers": 1, "heads": 1, "vocabulary": 1}),
        Model(config={"hidden_size": 64, "layers": 1, "heads": 0, "vocabulary": 1}),
    ],
)
def test_too_little_is_known_for_an_estimate(told: Model | None) -> None:
    assert model_facts(told) is None


@pytest.mark.parametrize(
    "told", [{"config": 7}, [], {"config": {}, "weights_bytes": -1}]
)
def test_what_is_no_answer_about_a_model_is_refused_before(told: object) -> None:
    with pytest.raises(UNREADABLE):
        convert(Model, told)
