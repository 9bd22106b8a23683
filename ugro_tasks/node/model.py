"""Facts about a model on this node: the numbers in its config.json, and the size of its weights."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
from typing import Any, Dict, List, Optional, Tuple

from .files import Json, expand, read_json, read_text

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
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "gpt_bigcode",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "phi",
    "starcoder2",
}
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
    variables = dict(os.environ, **request["env"])
    folder = folder_of(name, variables)
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
        is_small = os.path.getsize(path) <= max_bytes
    except OSError:
        return None
    return read_json(path) if is_small else None


def folder_of(name: str, env: "Dict[str, str]") -> Optional[str]:
    """Return the folder with the model's config.json, None if there is none."""
    if name.startswith(("/", "~/")):
        folders = [expand(name)]
    elif HUB_NAME.fullmatch(name):
        folders = snapshots_of(name, env)
    else:
        return None
    for folder in folders:
        if os.path.isfile(os.path.join(folder, "config.json")):
            return folder
    return None


def snapshots_of(name: str, env: "Dict[str, str]") -> List[str]:
    """Return the folders of a model in the hub's cache, with that of refs/main first."""
    cached = os.path.join(hub_cache(env), "models--" + name.replace("/", "--"))
    snapshots = os.path.join(cached, "snapshots")
    main = read_text(os.path.join(cached, "refs", "main")).strip()
    commits = [main or "-"]
    with contextlib.suppress(OSError):
        commits += sorted(os.listdir(snapshots))
    # The file may hold anything; its base name stays in the folder.
    return [os.path.join(snapshots, os.path.basename(commit)) for commit in commits]


def hub_cache(env: "Dict[str, str]") -> str:
    """Return the cache folder of huggingface_hub, by its rules."""
    caches = env.get("XDG_CACHE_HOME") or "~/.cache"
    home = env.get("HF_HOME") or os.path.join(caches, "huggingface")
    hub = env.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    return os.path.expanduser(hub)


def numbers_of(config: Json) -> Json:
    """Return the numbers relevant for memory in a config.json of any content."""
    # A multimodal model has its language part in a section of its own.
    inner = config.get("text_config")
    text: Json = dict(config)
    if isinstance(inner, dict):
        text.update(inner)
    found: Json = {}
    for wanted, names in DIMENSIONS.items():
        value = first_of(text, names)
        if is_dimension(value):
            found[wanted] = value
    found["tied"] = text.get("tie_word_embeddings") is True
    family = text.get("model_type")
    is_ungated = isinstance(family, str) and family in UNGATED
    found["gated"] = not is_ungated
    dtype = text.get("dtype") or text.get("torch_dtype")
    is_dtype = isinstance(dtype, str) and len(dtype) < 20
    found["dtype"] = dtype if is_dtype else None
    found["quantised_bits"] = None
    quantised = config.get("quantization_config")
    if isinstance(quantised, dict):
        found["quantised_bits"] = bits_of(quantised)
    return found


def first_of(config: Json, names: Tuple[str, ...]) -> Any:
    """Return the first value given under one of the names, None without one."""
    for name in names:
        if config.get(name) is not None:
            return config[name]
    return None


def is_dimension(value: Any) -> bool:
    """Tell whether a value is a plausible size."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return 0 < value < DIMENSION_MAX


def bits_of(quantised: Json) -> Optional[int]:
    """Return the bits per weight of a quantised model."""
    if quantised.get("load_in_4bit") or quantised.get("_load_in_4bit"):
        return 4
    if quantised.get("load_in_8bit") or quantised.get("_load_in_8bit"):
        return 8
    bits = quantised.get("bits")
    if isinstance(bits, int) and 0 < bits <= 16:
        return bits
    return 8


def weights_of(folder: str) -> Optional[int]:
    """Return the bytes of the weights; None if there are none."""
    for name in INDEX_FILES:
        # The index of split weights knows their total size, including files not downloaded yet.
        index = object_in(os.path.join(folder, name), INDEX_MAX_BYTES) or {}
        metadata = index.get("metadata")
        if not isinstance(metadata, dict):
            continue
        total = metadata.get("total_size")
        if isinstance(total, (int, float)) and 0 < total < WEIGHTS_MAX_BYTES:
            return int(total)
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
        for pattern in WEIGHT_FILES:
            files = fnmatch.filter(names, pattern)
            if files:
                paths = [os.path.join(folder, name) for name in files]
                return sum(os.stat(path).st_size for path in paths)
    return None
