"""What a run is told. Each counts over the one before: DEFAULTS, --config, flags, UGRO_SETTINGS, --set.

    settings, options = read(["--config", "mine.yaml", "--set", "lora.rank=8"], os.environ)
    settings.lora.rank       # 8

DEFAULTS says the same as config/training_defaults.yaml, which explains the keys; a test holds them together.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from .faults import STOPPED_BY_FAULT, Fault

DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {
        "name": "unsloth/tinyllama-bnb-4bit",
        "max_seq_length": 2048,
        "dtype": "float16",
        "load_in_4bit": True,
    },
    "dataset": {
        "name": "wikitext",
        "config": None,
        "split": "train",
        "validation_split": None,
        "validation_fraction": 0.05,
        "text_column": "text",
        "packing": True,
        "max_texts": None,
        "cache_dir": "~/.cache/huggingface/datasets",
    },
    "training": {
        "num_epochs": 1,
        "max_steps": None,
        "learning_rate": 2e-4,
        "lr_scheduler": "linear",
        "warmup_steps": 100,
        "weight_decay": 0.01,
        "batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 8,
        "gradient_checkpointing": False,
        "max_grad_norm": 1.0,
        "save_strategy": "epoch",
        "save_steps": 100,
        "save_total_limit": 3,
        "evaluation_strategy": "epoch",
        "eval_steps": 100,
        "seed": 42,
    },
    "optimizer": {"type": "adamw", "betas": [0.9, 0.999], "eps": 1e-8},
    "lora": {
        "enabled": True,
        "rank": 16,
        "alpha": 32,
        "dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    },
    "quantization": {"enabled": True, "bits": 4, "compute_dtype": "float16"},
    "logging": {
        "log_level": "INFO",
        "steps": 10,
        "use_tensorboard": True,
        "tensorboard_dir": None,
    },
}
# What may be null, and what it is otherwise.
KINDS: dict[str, type] = {
    "dataset.config": str,
    "dataset.validation_split": str,
    "dataset.max_texts": int,
    "training.max_steps": int,
    "training.save_total_limit": int,
    "logging.tensorboard_dir": str,
}
DTYPES = ("float16", "bfloat16", "float32")
WHEN = ("epoch", "steps", "no")
CHOICES: dict[str, tuple[Any, ...]] = {
    "model.dtype": DTYPES,
    "training.lr_scheduler": ("linear", "cosine", "constant"),
    "training.save_strategy": WHEN,
    "training.evaluation_strategy": WHEN,
    "optimizer.type": ("adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"),
    "lora.bias": ("none", "all", "lora_only"),
    "quantization.bits": (4, 8),
    "quantization.compute_dtype": DTYPES,
    "logging.log_level": ("DEBUG", "INFO", "WARNING", "ERROR"),
}
MAY_BE_ZERO = {
    "training.warmup_steps",
    "training.weight_decay",
    "training.max_grad_norm",
    "training.seed",
}
BELOW_ONE = {"dataset.validation_fraction", "lora.dropout"}
FLAGS = {  # of the contract with UGRO
    "model_name": ("model", "name"),
    "dataset_name": ("dataset", "name"),
    "num_epochs": ("training", "num_epochs"),
    "learning_rate": ("training", "learning_rate"),
}
YES_NO = {
    "true": True,
    "yes": True,
    "on": True,
    "false": False,
    "no": False,
    "off": False,
}
NOTHING = ("", "null", "~")


class Parser(argparse.ArgumentParser):
    """A parser whose every complaint is one line, without the usage, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(STOPPED_BY_FAULT, f"{self.prog}: {message}\n")


def read(
    arguments: Sequence[str], environ: Mapping[str, str]
) -> tuple[SimpleNamespace, argparse.Namespace]:
    """The settings by section and key, and the flags that are no settings: job_id, resume, notes.

    `notes` are lines that the run should show. Raises Fault for what cannot be used.
    """
    parser = Parser(
        prog="train_production", description="Fine-tune a causal language model."
    )
    parser.add_argument("--model-name", help="model.name: on the hub, or a folder")
    parser.add_argument(
        "--dataset-name", help="dataset.name: on the hub, or a file or folder"
    )
    parser.add_argument("--num-epochs", help="training.num_epochs")
    parser.add_argument("--learning-rate", help="training.learning_rate")
    parser.add_argument("--job-id", default=environ.get("UGRO_JOB_ID", "local"))
    parser.add_argument(
        "--config", help="a YAML file like config/training_defaults.yaml"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE"
    )
    parser.add_argument(
        "--resume",
        default=environ.get("UGRO_RESUME"),
        metavar="PATH|latest",
        help="a checkpoint",
    )
    options = parser.parse_args(arguments)
    options.notes = []

    values = {section: dict(keys) for section, keys in DEFAULTS.items()}
    for source, section, key, value in _given(options, environ):
        if key not in values.get(section, {}):
            if source == "UGRO_SETTINGS":
                # Of another script that has its own keys in the same file.
                options.notes.append(
                    f"{section}.{key} is not known here and has no effect"
                )
                continue
            raise Fault(
                f"{source}: there is no setting {section}.{key}{_near(f'{section}.{key}')}"
            )
        values[section][key] = _fit(value, f"{section}.{key}", source)
    return SimpleNamespace(
        **{name: SimpleNamespace(**keys) for name, keys in values.items()}
    ), options


def _given(
    options: argparse.Namespace, environ: Mapping[str, str]
) -> Iterator[tuple[str, str, str, Any]]:
    """(source, section, key, value) of all that was said, in the order in which it counts."""
    if options.config:
        yield from _of_file(Path(options.config))
    for flag, (section, key) in FLAGS.items():
        if (value := getattr(options, flag)) is not None:
            yield f"--{flag.replace('_', '-')}", section, key, value
    try:
        settings = json.loads(environ.get("UGRO_SETTINGS") or "{}")
        pairs = [
            (section, key, value)
            for section, keys in settings.items()
            for key, value in keys.items()
        ]
    except (ValueError, AttributeError) as error:
        raise Fault(
            f"UGRO_SETTINGS is not a JSON object of sections: {error}"
        ) from error
    for section, key, value in pairs:
        yield "UGRO_SETTINGS", section, key, value
    for pair in options.set:
        name, equals, text = pair.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise Fault(
                f"--set {pair}: write SECTION.KEY=VALUE, e.g. training.warmup_steps=50"
            )
        yield f"--set {pair}", section, key, text.strip()


def _of_file(path: Path) -> Iterator[tuple[str, str, str, Any]]:
    import yaml  # transformers needs it, too; a run without --config does not

    try:
        # Plain text throughout, so that `no` is a word, and 1e-8 a number, where they should be.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
    except (OSError, UnicodeError) as error:
        raise Fault(
            f"--config {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise Fault(
            f"--config {path}{line}: not YAML: {getattr(error, 'problem', error)}"
        ) from error
    for section, keys in (
        (content or {}).items() if isinstance(content or {}, dict) else [("", "")]
    ):
        if not isinstance(keys, dict):
            raise Fault(
                f"--config {path}: {section or 'it'} must hold `key: value` lines"
            )
        for key, value in keys.items():
            yield f"--config {path}", section, key, value


def _fit(value: Any, name: str, source: str) -> Any:
    """The value as its key wants it; text is read as what it should be. Raises Fault."""
    section, key = name.split(".")
    default = DEFAULTS[section][key]
    kind = KINDS.get(name, type(default))
    said = f"{name} {value!r}" if source == "UGRO_SETTINGS" else f"{source}: {value!r}"
    if name in KINDS and (
        value is None or (isinstance(value, str) and value in NOTHING)
    ):
        return None
    if name == "training.batch_size_per_gpu" and (
        value == "auto" or isinstance(value, dict)
    ):
        return value  # who launches decides it then, and says so in UGRO_BATCH_SIZES
    if kind is list:
        if isinstance(value, str):
            value = [
                item.strip() for item in value.strip("[] ").split(",") if item.strip()
            ]
        item_kind = type(default[0])
        if (
            not isinstance(value, list)
            or not value
            or (item_kind is float and len(value) != len(default))
        ):
            raise Fault(f"{said} must be a list like {default}")
        return [_scalar(item, item_kind, said) for item in value]
    fitted = _scalar(value, kind, said)
    if name == "logging.log_level":
        fitted = fitted.upper()
    if name in CHOICES and fitted not in CHOICES[name]:
        raise Fault(f"{said} must be one of: {', '.join(map(str, CHOICES[name]))}")
    if kind in (int, float):
        if fitted < 0 or (fitted == 0 and name not in MAY_BE_ZERO | BELOW_ONE):
            raise Fault(
                f"{said} must be {'at least 0' if name in MAY_BE_ZERO else 'more than 0'}"
            )
        if name in BELOW_ONE and fitted >= 1:
            raise Fault(f"{said} must be less than 1")
    return fitted


def _scalar(value: Any, kind: type, said: str) -> Any:
    text = value.strip() if isinstance(value, str) else value
    try:
        if (
            kind is str
            and isinstance(value, (str, int, float))
            and not isinstance(value, bool)
            and text != ""
        ):
            return str(text)
        if kind is bool and (isinstance(value, bool) or str(text).lower() in YES_NO):
            return value if isinstance(value, bool) else YES_NO[text.lower()]
        if kind is int and not isinstance(value, (bool, float)):
            return int(text)
        if kind is float and not isinstance(value, bool) and math.isfinite(float(text)):
            return float(text)
    except (TypeError, ValueError):
        pass
    names = {
        str: "one value",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
    }
    raise Fault(f"{said} must be {names[kind]}")


def _near(name: str) -> str:
    known = [f"{section}.{key}" for section, keys in DEFAULTS.items() for key in keys]
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
