"""The card of a trained model: its base model, its use, its results and its parameters."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def write_card(
    folder: Path,
    settings: SimpleNamespace,
    *,
    job_id: str,
    history: list[dict[str, Any]],
    facts: dict[str, Any],
) -> None:
    """Write README.md in the folder of the model."""
    name = settings.model.name
    is_adapter = settings.lora.enabled
    kind = "A LoRA adapter for" if is_adapter else "All weights of"
    about = f"{kind} `{name}`, trained on `{settings.dataset.name}` with UGRO's train_production.py."
    parameters = {}
    for section, keys in vars(settings).items():
        for key, value in vars(keys).items():
            parameters[f"{section}.{key}"] = value
    lines = ["---", *_header(name, is_adapter), "---", ""]
    lines += [f"# {job_id}", "", about, ""]
    lines += ["```python", *_use(name, is_adapter), "```", ""]
    lines += ["## Results", "", *_table({**facts, **_results(history)}), ""]
    lines += ["## Parameters", "", *_table(parameters)]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _header(name: str, is_adapter: bool) -> list[str]:
    """Return the lines of metadata for the hub."""
    lines = [
        f"base_model: {json.dumps(name)}",
        f"library_name: {'peft' if is_adapter else 'transformers'}",
        "pipeline_tag: text-generation",
    ]
    if is_adapter:
        lines.append("tags: [lora]")
    return lines


def _use(name: str, is_adapter: bool) -> list[str]:
    """Return the lines of Python for loading the model."""
    transformers = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    tokenizer = 'tokenizer = AutoTokenizer.from_pretrained("this/folder")'
    if is_adapter:
        return [
            transformers,
            "from peft import PeftModel",
            "",
            f"model = AutoModelForCausalLM.from_pretrained({name!r})",
            'model = PeftModel.from_pretrained(model, "this/folder")',
            tokenizer,
        ]
    return [
        transformers,
        "",
        'model = AutoModelForCausalLM.from_pretrained("this/folder")',
        tokenizer,
    ]


def _table(values: dict[str, Any]) -> list[str]:
    lines = ["| | |", "| --- | --- |"]
    for key, value in values.items():
        lines.append(f"| {key} | {_shown(value)} |")
    return lines


def _results(history: list[dict[str, Any]]) -> dict[str, Any]:
    training = [line["loss"] for line in history if "loss" in line]
    validation = [line["eval_loss"] for line in history if "eval_loss" in line]
    results: dict[str, Any] = {}
    if training:
        results["first training loss"] = round(training[0], 4)
        results["last training loss"] = round(training[-1], 4)
    if validation:
        results["best validation loss"] = round(min(validation), 4)
        results["last validation loss"] = round(validation[-1], 4)
    return results


def _shown(value: Any) -> str:
    text = str(value)
    if isinstance(value, (list, tuple)):
        text = ", ".join(str(item) for item in value)
    return text.replace("|", "\\|").replace("\n", " ")
