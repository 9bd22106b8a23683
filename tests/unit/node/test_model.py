"""What a node tells of a model that lies there: in a folder, in the hub's cache, or in a state that says nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.node.test_jobs import pythons
from ugro_tasks.node.model import look_for_model

PACKAGE = Path(__file__).parents[3] / "ugro_tasks"
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 500, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "max_position_embeddings": 256, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
TOLD = {
    "hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 128, "vocabulary": 500,
    "positions": 256, "tied": False, "gated": True, "dtype": "bfloat16", "quantised_bits": None,
}  # fmt: skip


def look(name: object, **env: str) -> dict[str, Any]:
    return look_for_model({"name": str(name), "env": env})


def put(folder: Path, config: object = CONFIG, **weights: int) -> Path:
    """A model's folder, with weight files of these sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        config if isinstance(config, str) else json.dumps(config)
    )
    for name, size in weights.items():
        (folder / name.replace("__", ".")).write_bytes(b"x" * size)
    return folder


def numbers(folder: Path, **changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = look(put(folder, {**CONFIG, **changes}))["config"]
    return told


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path / "tiny", model__safetensors=1000)
    assert look(folder) == {"path": str(folder), "config": TOLD, "weights_bytes": 1000}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert look("~/tiny")["config"] == TOLD


@pytest.mark.parametrize(
    ("place", "env"),
    [
        (".cache/huggingface/hub", {}),
        ("hf/hub", {"HF_HOME": "~/hf"}),
        ("cache/huggingface/hub", {"XDG_CACHE_HOME": "~/cache"}),
        ("here", {"HF_HUB_CACHE": "~/here", "HF_HOME": "~/hf"}),
    ],
)
def test_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, env: dict[str, str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    cached = tmp_path / place / "models--org--tiny"
    put(cached / "snapshots" / "aaaa", {**CONFIG, "hidden_size": 32})
    wanted = put(cached / "snapshots" / "bbbb")
    # As the hub's client lays it out: snapshots hold links to blobs.
    (cached / "blobs").mkdir()
    (cached / "blobs" / "1234").write_bytes(b"x" * 77)
    (wanted / "model.safetensors").symlink_to(cached / "blobs" / "1234")
    assert look("org/tiny", **env)["config"]["hidden_size"] == 32
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("bbbb")
    assert look("org/tiny", **env) == {
        "path": str(wanted),
        "config": TOLD,
        "weights_bytes": 77,
    }


@pytest.mark.parametrize(
    "name",
    [
        "org/none",
        "none",
        "../tiny",
        "a/b/c",
        "",
        "a b",
        "$(id)",
        "/nowhere",
        "~/nowhere",
        "é",
        "x" * 5000,
    ],
)
def test_no_model(name: str) -> None:
    assert look(name) == {"missing": "it is not on this node yet"}


@pytest.mark.parametrize(
    "config", ["", "[]", "7", "{", "[" * 50_000, '{"a": NaN', "null"]
)
def test_a_config_that_is_none(tmp_path: Path, config: str) -> None:
    assert "cannot be read" in look(put(tmp_path / "tiny", config))["missing"]


def test_a_config_that_is_far_too_large(tmp_path: Path) -> None:
    assert (
        "cannot be read"
        in look(put(tmp_path / "tiny", json.dumps({"a": "x" * 2_000_000})))["missing"]
    )


@pytest.mark.parametrize("value", ["64", -1, 0, True, 1.5, None, [64], 1 << 40])
def test_a_number_that_is_none_is_left_out(tmp_path: Path, value: object) -> None:
    assert "hidden_size" not in numbers(tmp_path / "tiny", hidden_size=value)


def test_other_families_have_other_names(tmp_path: Path) -> None:
    config = {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "vocab_size": 50257,
        "n_positions": 1024,
    }
    told = look(put(tmp_path / "gpt2", config))["config"]
    assert (told["hidden_size"], told["layers"], told["heads"], told["positions"]) == (
        768,
        12,
        12,
        1024,
    )
    assert told["gated"] is False
    inner = {**CONFIG, "dtype": "float16"}
    assert (
        look(put(tmp_path / "sees", {"vision_config": {}, "text_config": inner}))[
            "config"
        ]["hidden_size"]
        == 64
    )


@pytest.mark.parametrize(
    ("quantised", "bits"),
    [
        (
            {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "load_in_8bit": False,
            },
            4,
        ),
        ({"quant_method": "bitsandbytes", "_load_in_8bit": True}, 8),
        ({"quant_method": "gptq", "bits": 3}, 3),
        ({"quant_method": "fp8"}, 8),
        ({}, 8),
        ("yes", None),
        (None, None),
    ],
)
def test_quantised_weights(tmp_path: Path, quantised: object, bits: int | None) -> None:
    assert (
        numbers(tmp_path / "tiny", quantization_config=quantised)["quantised_bits"]
        == bits
    )


def test_weights_are_counted_once_and_nothing_else_is(tmp_path: Path) -> None:
    folder = put(
        tmp_path / "tiny",
        adapter_model__safetensors=5,
        consolidated__safetensors=900,
        optimizer__pt=7,
    )
    assert look(folder)["weights_bytes"] is None
    put(folder, pytorch_model__bin=1000)
    assert look(folder)["weights_bytes"] == 1000
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"x" * 300)
    assert look(folder)["weights_bytes"] == 300
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 650}})
    )
    assert look(folder)["weights_bytes"] == 650


@pytest.mark.parametrize(
    "index", ["{}", '{"metadata": 5}', '{"metadata": {"total_size": "1"}}', "{", "[]"]
)
def test_an_index_that_says_nothing_is_passed_over(tmp_path: Path, index: str) -> None:
    folder = put(tmp_path / "tiny", model__safetensors=300)
    (folder / "model.safetensors.index.json").write_text(index)
    assert look(folder)["weights_bytes"] == 300


@pytest.mark.parametrize("python", pythons())
def test_every_python_of_a_node_can_look(tmp_path: Path, python: str) -> None:
    folder = put(tmp_path / "tiny")
    code = "import sys, json; from node.model import *; print(json.dumps(look_for_model(json.loads(sys.argv[1]))))"
    said = subprocess.run(
        [python, "-c", code, json.dumps({"name": str(folder), "env": {}})],
        cwd=PACKAGE, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(said.stdout)["config"] == TOLD, said.stderr
