"""Facts about a model on this node: the numbers in its config.json, and the size of its weights."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
from typing import Dict, Optional, Tuple

from .files import Json, expand, read_object, read_text

# The hub's cache has models--<owner>--<name>/{refs/main, snapshots/<commit>/...}.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
CONFIG_MAX_BYTES = 1 << 20
# {fact: its names in different model families}
DIMENSIONS: Dict[str, Tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_size": ("head_dim",),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    "vocabulary": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions"),
}
DIMENSION_MAX = 1 << 31
# Families with two matrices in the feed-forward part; today's other ones have three.
UNGATED = {
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_bigcode", "opt", "bloom", "falcon", "mpt", "phi", "starcoder2",
}  # fmt: skip
# A folder may have the weights twice; transformers loads the first present kind.
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
INDEX_MAX_BYTES = 1 << 25
WEIGHTS_MAX_BYTES = 1 << 50


def look_for_model(request: Json) -> Json:
    """Return {path, config, weights_bytes} of the model `name`, a path or a name on the hub.

    Returns {missing: reason} without it. `env` has the job's variables for the hub's cache (HF_HOME
    and the like); they override this node's own.
    """
    name = request["name"]
    folder = folder_of(name, dict(os.environ, **request["env"]))
    if folder is None:
        return {"missing": "it is not on this node yet"}
    config = object_in(os.path.join(folder, "config.json"), CONFIG_MAX_BYTES)
    if config is None:
        return {"missing": "its config.json in %s cannot be read" % folder}
    return {
        "path": folder,
        "config": numbers_of(config),
        "weights_bytes": weights_of(folder),
    }


def object_in(path: str, max_bytes: int) -> Optional[Json]:
    """Read the JSON object in a small file of any origin; return None for anything else."""
    try:
        return read_object(path) if os.path.getsize(path) <= max_bytes else None
    except OSError:
        return None


def folder_of(name: str, env: "Dict[str, str]") -> Optional[str]:
    """Return the folder with the model's config.json, None if there is none."""
    if name.startswith(("/", "~/")):
        path = expand(name)
        return path if os.path.isfile(os.path.join(path, "config.json")) else None
    if not HUB_NAME.fullmatch(name):
        return None
    cached = os.path.join(hub_cache(env), "models--" + name.replace("/", "--"))
    snapshots = os.path.join(cached, "snapshots")
    commits = [read_text(os.path.join(cached, "refs", "main")).strip() or "-"]
    with contextlib.suppress(OSError):
        commits += sorted(os.listdir(snapshots))
    folders = [os.path.join(snapshots, os.path.basename(commit)) for commit in commits]
    return next(
        (path for path in folders if os.path.isfile(os.path.join(path, "config.json"))),
        None,
    )


def hub_cache(env: "Dict[str, str]") -> str:
    """Return the cache folder of huggingface_hub, by its rules."""
    home = env.get("HF_HOME") or os.path.join(
        env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return os.path.expanduser(env.get("HF_HUB_CACHE") or os.path.join(home, "hub"))


def numbers_of(config: Json) -> Json:
    """Return the numbers relevant for memory in a config.json of any content."""
    # A multimodal model has its language part in a section of its own.
    inner = config.get("text_config")
    text: Json = dict(config, **inner) if isinstance(inner, dict) else config
    found: Json = {}
    for wanted, names in DIMENSIONS.items():
        value = next((text[name] for name in names if text.get(name) is not None), None)
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and 0 < value < DIMENSION_MAX
        ):
            found[wanted] = value
    found["tied"] = text.get("tie_word_embeddings") is True
    family = text.get("model_type")
    found["gated"] = not (isinstance(family, str) and family in UNGATED)
    dtype = text.get("dtype") or text.get("torch_dtype")
    found["dtype"] = dtype if isinstance(dtype, str) and len(dtype) < 20 else None
    quantised = config.get("quantization_config")
    found["quantised_bits"] = (
        bits_of(quantised) if isinstance(quantised, dict) else None
    )
    return found


def bits_of(quantised: Json) -> Optional[int]:
    """Return the bits per weight of a quantised model."""
    if quantised.get("load_in_4bit") or quantised.get("_load_in_4bit"):
        return 4
    if quantised.get("load_in_8bit") or quantised.get("_load_in_8bit"):
        return 8
    bits = quantised.get("bits")
    return bits if isinstance(bits, int) and 0 < bits <= 16 else 8


def weights_of(folder: str) -> Optional[int]:
    """Return the bytes of the weights; None if there are none."""
    for name in INDEX_FILES:
        # The index of split weights knows their total size, including files not downloaded yet.
        index = object_in(os.path.join(folder, name), INDEX_MAX_BYTES) or {}
        metadata = index.get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        if isinstance(total, (int, float)) and 0 < total < WEIGHTS_MAX_BYTES:
            return int(total)
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
        for pattern in WEIGHT_FILES:
            if files := fnmatch.filter(names, pattern):
                return sum(
                    os.stat(os.path.join(folder, name)).st_size for name in files
                )
    return None
