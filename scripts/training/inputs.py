"""The checks before the import of torch and transformers, because that takes ten seconds and more."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .checkpoints import whole_ones
from .faults import Fault

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
FULL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
)
STATE = "trainer_state.json"  # a checkpoint without it has only weights


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a run."""

    model: str  # a folder, or a name on the hub
    dataset: str  # a file, a folder, or a name on the hub
    dataset_kind: str  # text, jsonl, folder or hub
    batch_sizes: tuple[int, ...]  # sequences in a micro-step of each rank
    memory_mib: int | None  # UGRO's estimate of this rank's need on its card
    resume: Path | None
    offline: bool  # nothing is needed from the hub


def find_inputs(
    settings: SimpleNamespace,
    resume: str | None,
    environ: Mapping[str, str],
    output: Path,
) -> Inputs:
    """Find and check the inputs of a run. Raises Fault for missing or unfitting ones."""
    world_size = int(environ.get("WORLD_SIZE", "1"))
    batch_sizes = _batch_sizes(settings, environ.get("UGRO_BATCH_SIZES"), world_size)
    memory_mib = _memory(environ.get("UGRO_MEMORY_MIB"))
    model, model_is_here = _model(settings, environ)
    dataset, kind = _dataset(settings)
    checkpoint = None
    if resume:
        checkpoint = _checkpoint(settings, resume, output / "checkpoints")
    needed = ["torch", "transformers", "accelerate"]
    if settings.lora.enabled:
        needed.append("peft")
    if kind in ("folder", "hub"):
        needed.append("datasets")
    lacking = [name for name in needed if find_spec(name) is None]
    if lacking:
        raise Fault(
            f"this Python lacks {', '.join(lacking)}; the environment must hold what scripts/requirements.txt lists"
        )
    return Inputs(
        model=model,
        dataset=dataset,
        dataset_kind=kind,
        batch_sizes=batch_sizes,
        memory_mib=memory_mib,
        resume=checkpoint,
        offline=model_is_here and kind != "hub",
    )


def refuse_config(
    config: Mapping[str, Any], name: str, settings: SimpleNamespace
) -> None:
    """Raise Fault if a model's configuration contradicts the settings."""
    quantized = config.get("quantization_config") or {}
    if quantized and not settings.lora.enabled:
        raise Fault(
            f"model {name}: its weights are quantised and cannot be trained as a whole; "
            "train an adapter (lora.enabled=true) or take the model that was not quantised"
        )
    needs_bitsandbytes = quantized.get("quant_method") == "bitsandbytes"
    if needs_bitsandbytes and find_spec("bitsandbytes") is None:
        raise Fault(
            f"model {name}: it is quantised with bitsandbytes, which this Python lacks"
        )


def _batch_sizes(
    settings: SimpleNamespace, text: str | None, world_size: int
) -> tuple[int, ...]:
    """Return the sequences of each rank's micro-step: from UGRO_BATCH_SIZES, else the setting. Raises Fault."""
    if text is None:
        size = settings.training.batch_size_per_gpu
        if not isinstance(size, int):
            raise Fault(
                f"training.batch_size_per_gpu {size}: only UGRO can resolve that; give a number"
            )
        return (size,) * world_size
    numbers = text.split(",")
    if not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
        raise Fault(
            f"UGRO_BATCH_SIZES {text!r}: write a whole number for each rank, e.g. 3,2,2"
        )
    if len(numbers) != world_size:
        raise Fault(
            f"UGRO_BATCH_SIZES {text!r} has {len(numbers)} numbers for {world_size} ranks"
        )
    return tuple(int(number) for number in numbers)


def _memory(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise Fault(f"UGRO_MEMORY_MIB {text!r}: write a whole number of MiB")
    return int(text)


def _model(settings: SimpleNamespace, environ: Mapping[str, str]) -> tuple[str, bool]:
    """Return (folder or name on the hub, whether it is a folder here). Raises Fault."""
    name = settings.model.name
    path = Path(name).expanduser()
    where = f"model {name}"
    if path.is_dir():
        refuse_config(_config_in(path, where), name, settings)
        return str(path), True
    if path.exists():
        raise Fault(f"{where}: that is a file; give the model's folder")
    if not HUB_NAME.fullmatch(name):
        raise Fault(
            f"{where}: there is no such folder on this node, and it is no name of the hub's"
        )
    if _is_set(environ.get("HF_HUB_OFFLINE")):
        home = Path(environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        cache = Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
        if not (cache / f"models--{name.replace('/', '--')}").is_dir():
            raise Fault(
                f"{where}: not a folder here and not in {cache}, and HF_HUB_OFFLINE forbids to fetch it"
            )
    return name, False


def _config_in(folder: Path, where: str) -> dict[str, Any]:
    """Read the configuration of the model in a folder. Raises Fault if there is none, or only an adapter."""
    config = folder / "config.json"
    adapter_config = folder / "adapter_config.json"
    if config.exists():
        return _json(config, where)
    if adapter_config.exists():
        base = _json(adapter_config, where).get("base_model_name_or_path")
        raise Fault(
            f"{where}: that is an adapter; give its base model {base}, and the adapter by --resume"
        )
    raise Fault(f"{where}: the folder {folder} has no config.json, so it is no model")


def _dataset(settings: SimpleNamespace) -> tuple[str, str]:
    """Return (file, folder or name on the hub, its kind as in Inputs). Raises Fault."""
    name = settings.dataset.name
    path = Path(name).expanduser()
    where = f"data set {name}"
    try:
        if path.is_file():
            return str(path), _kind_of_file(path, settings.dataset, where)
    except UnicodeError as error:
        raise Fault(f"{where}: it is not UTF-8 text") from error
    except ValueError as error:
        raise Fault(
            f"{where}: its first line is no JSON object; a .jsonl has one a line"
        ) from error
    except OSError as error:
        raise Fault(f"{where}: {error.strerror}") from error
    if path.is_dir():
        _refuse_saved(path, settings.dataset, where)
        return str(path), "folder"
    if not HUB_NAME.fullmatch(name):
        raise Fault(
            f"{where}: there is no such file on this node, and it is no name of the hub's"
        )
    return name, "hub"


def _kind_of_file(path: Path, wanted: SimpleNamespace, where: str) -> str:
    """Return text or jsonl, after a look at the first line. Raises Fault, OSError and ValueError."""
    with path.open(encoding="utf-8") as file:
        first = next((line for line in file if line.strip()), None)
    if first is None:
        raise Fault(f"{where}: the file is empty")
    _refuse_split(wanted, where)
    if path.suffix not in (".jsonl", ".json"):
        return "text"
    refuse_row(json.loads(first), wanted.text_column, f"{where}, first line")
    return "jsonl"


def refuse_row(row: Any, column: str, where: str) -> None:
    """Raise Fault unless the row has text in its column."""
    if not isinstance(row, dict):
        raise Fault(f"{where}: it is no JSON object with a key {column!r}")
    if not isinstance(row.get(column), str):
        fault = "holds no text" if column in row else "is missing"
        columns = ", ".join(repr(name) for name in row) or "none"
        raise Fault(
            f"{where}: the column {column!r} {fault}; there is {columns} "
            "(choose with --set dataset.text_column=NAME)"
        )


def _refuse_split(wanted: SimpleNamespace, where: str) -> None:
    """Raise Fault for a validation split of data without splits."""
    if wanted.validation_split:
        raise Fault(
            f"{where}: it has no splits, so none is called {wanted.validation_split!r} (dataset.validation_split)"
        )


def _refuse_saved(path: Path, wanted: SimpleNamespace, where: str) -> None:
    """Raise Fault unless `save_to_disk` wrote the folder and it has the split and the column."""
    split_folder = path
    split_list = path / "dataset_dict.json"
    if split_list.exists():
        splits = _json(split_list, where).get("splits", [])
        for key in ("split", "validation_split"):
            name = getattr(wanted, key)
            if name and name not in splits:
                raise Fault(
                    f"{where}: it has no split {name!r}; there is {', '.join(splits)} (dataset.{key})"
                )
        split_folder = path / wanted.split
    elif not (path / "state.json").exists():
        raise Fault(
            f"{where}: the folder is none that `save_to_disk` of datasets wrote"
        )
    else:
        _refuse_split(wanted, where)
    info = _json(split_folder / "dataset_info.json", where)
    columns = list(info.get("features") or {})
    if columns and wanted.text_column not in columns:
        refuse_row(dict.fromkeys(columns), wanted.text_column, where)


def _checkpoint(settings: SimpleNamespace, resume: str, folder: Path) -> Path:
    """Return the checkpoint to resume from: a path, or `latest` in the folder. Raises Fault."""
    path = Path(resume).expanduser()
    if resume == "latest":
        checkpoints = whole_ones(folder, "checkpoint-*")
        if not checkpoints:
            raise Fault(f"--resume latest: there is no whole checkpoint in {folder}")
        path = checkpoints[-1]
    where = f"cannot resume from {path}"
    if not path.is_dir():
        raise Fault(f"{where}: there is no such folder")
    names = {entry.name for entry in path.iterdir()}
    has_adapter = any(name in names for name in ADAPTER_WEIGHTS)
    if not has_adapter and not any(name in names for name in FULL_WEIGHTS):
        raise Fault(f"{where}: it holds no weights")
    if has_adapter and not settings.lora.enabled:
        raise Fault(f"{where}: it holds an adapter, but lora.enabled is false")
    if settings.lora.enabled and not has_adapter:
        raise Fault(f"{where}: it holds a whole model, but lora.enabled is true")
    if has_adapter:
        _refuse_other_adapter(path / "adapter_config.json", settings.lora, where)
    return path


def _refuse_other_adapter(path: Path, lora: SimpleNamespace, where: str) -> None:
    """Raise Fault unless a checkpoint's adapter has the rank and the target modules of the settings."""
    config = _json(path, where)
    rank = config.get("r")
    modules = sorted(config.get("target_modules") or [])
    wanted_modules = sorted(lora.target_modules)
    if rank != lora.rank or modules != wanted_modules:
        raise Fault(
            f"{where}: its adapter has rank {rank} on {', '.join(modules)}, "
            f"but the settings say rank {lora.rank} on {', '.join(wanted_modules)}"
        )


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Fault(f"{where}: {path}: {error.strerror}") from error
    except ValueError as error:
        raise Fault(f"{where}: {path} is no JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _is_set(value: str | None) -> bool:
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")
