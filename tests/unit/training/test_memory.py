"""The estimate of memory, against what torch, peft and bitsandbytes really take.

The figures are recorded: parameters and peaks by `python -m benchmarks.memory_estimate` (torch 2.13, transformers
5.23, peft 0.21), files and bytes of nf4 by saving and loading a model with bitsandbytes 0.50.
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


@pytest.mark.parametrize(
    ("model", "batch_size", "changes", "trained", "counted_mib"),
    [
        (SMALL, 1, {}, 1_081_344, 7250.2),
        (SMALL, 4, CHECKPOINTS, 1_081_344, 15583.3),
        (SMALL, 1, EVERY, 8_798_208, 9759.2),
        (TINY_LLAMA, 1, {}, 2_252_800, 6955.8),
        (TINY_LLAMA, 2, {}, 2_252_800, 11774.4),
        (TINY_LLAMA, 4, {"model": {"max_seq_length": 512}}, 2_252_800, 6823.4),
        (TINY_LLAMA, 1, EVERY, 12_615_680, 10688.5),
        (TINY_LLAMA, 1, CHECKPOINTS, 2_252_800, 3079.1),
        (TINY_LLAMA, 1, NO_LORA, 1_100_048_384, 24659.3),
        (
            TINY_LLAMA,
            2,
            {**NO_LORA, **CHECKPOINTS, "model": {"max_seq_length": 1024}},
            1_100_048_384,
            19794.0,
        ),
        (LARGE, 1, {}, 6_815_744, 31188.8),
        (LARGE, 4, CHECKPOINTS, 6_815_744, 29637.6),
        (LARGE, 1, EVERY, 41_943_040, 43289.6),
    ],
)
def test_the_estimate_is_what_torch_keeps_alive(
    model: ModelFacts,
    batch_size: int,
    changes: dict[str, dict[str, Any]],
    trained: int,
    counted_mib: float,
) -> None:
    needed = estimate(model, settings(**changes), batch_size)
    buckets_mib = 4 * trained / MIB  # of DDP; the counted process was alone
    assert needed.total_mib - OVERHEAD_MIB == pytest.approx(
        counted_mib + buckets_mib, rel=0.04
    )


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
        (8000, 1300, "fits"),
        (8000, 1400, "tight"),
        (6000, 0, "tight"),
        (6000, 300, "too large"),
    ],
)
def test_how_it_fits(card_mib: int, taken_mib: int, fit: str) -> None:
    needed = on_card(estimate(TINY_LLAMA, {}, 1), card_mib, taken_mib)
    assert needed.total_mib == 6636
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
