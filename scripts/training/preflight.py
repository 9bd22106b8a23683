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


def look(
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
    checkpoint = (
        _checkpoint(settings, resume, output / "checkpoints") if resume else None
    )
    needed = ["torch", "transformers", "accelerate"]
    needed += ["peft"] if settings.lora.enabled else []
    needed += ["datasets"] if kind in ("folder", "hub") else []
    if lacking := [name for name in needed if find_spec(name) is None]:
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
    if (
        quantized.get("quant_method") == "bitsandbytes"
        and find_spec("bitsandbytes") is None
    ):
        raise Fault(
            f"model {name}: it is quantised with bitsandbytes, which this Python lacks"
        )


def _batch_sizes(
    settings: SimpleNamespace, told: str | None, world_size: int
) -> tuple[int, ...]:
    if told is None:
        size = settings.training.batch_size_per_gpu
        if not isinstance(size, int):
            raise Fault(
                f"training.batch_size_per_gpu {size}: only UGRO can resolve that; give a number"
            )
        return (size,) * world_size
    numbers = told.split(",")
    if not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
        raise Fault(
            f"UGRO_BATCH_SIZES {told!r}: write a whole number for each rank, e.g. 3,2,2"
        )
    if len(numbers) != world_size:
        raise Fault(
            f"UGRO_BATCH_SIZES {told!r} has {len(numbers)} numbers for {world_size} ranks"
        )
    return tuple(int(number) for number in numbers)


def _memory(told: str | None) -> int | None:
    if told is None:
        return None
    if not (told.isascii() and told.isdecimal()):
        raise Fault(f"UGRO_MEMORY_MIB {told!r}: write a whole number of MiB")
    return int(told)


def _model(settings: SimpleNamespace, environ: Mapping[str, str]) -> tuple[str, bool]:
    name = settings.model.name
    path = Path(name).expanduser()
    where = f"model {name}"
    if path.is_dir():
        if (path / "adapter_config.json").exists() and not (
            path / "config.json"
        ).exists():
            base = _json(path / "adapter_config.json", where).get(
                "base_model_name_or_path"
            )
            raise Fault(
                f"{where}: that is an adapter; give its base model {base}, and the adapter by --resume"
            )
        if not (path / "config.json").exists():
            raise Fault(
                f"{where}: the folder {path} has no config.json, so it is no model"
            )
        config = _json(path / "config.json", where)
        refuse_config(config, name, settings)
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


def _dataset(settings: SimpleNamespace) -> tuple[str, str]:
    name, column = settings.dataset.name, settings.dataset.text_column
    path = Path(name).expanduser()
    where = f"data set {name}"
    try:
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                first = next((line for line in file if line.strip()), None)
            if first is None:
                raise Fault(f"{where}: the file is empty")
            _refuse_split(settings.dataset, where)
            if path.suffix not in (".jsonl", ".json"):
                return str(path), "text"
            refuse_row(json.loads(first), column, f"{where}, first line")
            return str(path), "jsonl"
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


def refuse_row(row: Any, column: str, where: str) -> None:
    """Raise Fault unless the row has text in its column."""
    if not isinstance(row, dict):
        raise Fault(f"{where}: it is no JSON object with a key {column!r}")
    if not isinstance(row.get(column), str):
        what = "holds no text" if column in row else "is missing"
        raise Fault(
            f"{where}: the column {column!r} {what}; there is {', '.join(map(repr, row)) or 'none'} "
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
    within = path
    if (path / "dataset_dict.json").exists():
        splits = _json(path / "dataset_dict.json", where).get("splits", [])
        for key in ("split", "validation_split"):
            if (name := getattr(wanted, key)) and name not in splits:
                raise Fault(
                    f"{where}: it has no split {name!r}; there is {', '.join(splits)} (dataset.{key})"
                )
        within = path / wanted.split
    elif not (path / "state.json").exists():
        raise Fault(
            f"{where}: the folder is none that `save_to_disk` of datasets wrote"
        )
    else:
        _refuse_split(wanted, where)
    columns = list(_json(within / "dataset_info.json", where).get("features") or {})
    if columns and wanted.text_column not in columns:
        refuse_row(dict.fromkeys(columns), wanted.text_column, where)


def _checkpoint(settings: SimpleNamespace, resume: str, folder: Path) -> Path:
    if resume == "latest":
        found = whole_ones(folder, "checkpoint-*")
        if not found:
            raise Fault(f"--resume latest: there is no whole checkpoint in {folder}")
        path = found[-1]
    else:
        path = Path(resume).expanduser()
    where = f"cannot resume from {path}"
    if not path.is_dir():
        raise Fault(f"{where}: there is no such folder")
    names = {entry.name for entry in path.iterdir()}
    has_adapter = any(name in names for name in ADAPTER_WEIGHTS)
    if not has_adapter and not any(name in names for name in FULL_WEIGHTS):
        raise Fault(f"{where}: it holds no weights")
    if has_adapter != settings.lora.enabled:
        held, asked = (
            ("an adapter", "false") if has_adapter else ("a whole model", "true")
        )
        raise Fault(f"{where}: it holds {held}, but lora.enabled is {asked}")
    if has_adapter:
        config = _json(path / "adapter_config.json", where)
        theirs = (config.get("r"), sorted(config.get("target_modules") or []))
        ours = (settings.lora.rank, sorted(settings.lora.target_modules))
        if theirs != ours:
            raise Fault(
                f"{where}: its adapter has rank {theirs[0]} on {', '.join(theirs[1])}, "
                f"but the settings say rank {ours[0]} on {', '.join(ours[1])}"
            )
    return path


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
