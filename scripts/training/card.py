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
    name, adapter = settings.model.name, settings.lora.enabled
    header = [
        f"base_model: {json.dumps(name)}",
        f"library_name: {'peft' if adapter else 'transformers'}",
    ]
    header += ["pipeline_tag: text-generation", *(["tags: [lora]"] if adapter else [])]
    use = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        *(["from peft import PeftModel"] if adapter else []),
        "",
        f"model = AutoModelForCausalLM.from_pretrained({name!r})"
        if adapter
        else 'model = AutoModelForCausalLM.from_pretrained("this/folder")',
        *(
            ['model = PeftModel.from_pretrained(model, "this/folder")']
            if adapter
            else []
        ),
        'tokenizer = AutoTokenizer.from_pretrained("this/folder")',
    ]
    what = "A LoRA adapter for" if adapter else "All weights of"
    lines = ["---", *header, "---", "", f"# {job_id}", ""]
    lines += [
        f"{what} `{name}`, trained on `{settings.dataset.name}` with UGRO's train_production.py.",
        "",
    ]
    lines += ["```python", *use, "```", "", "## Results", "", "| | |", "| --- | --- |"]
    lines += [
        f"| {key} | {_shown(value)} |"
        for key, value in {**facts, **_results(history)}.items()
    ]
    lines += ["", "## Parameters", "", "| | |", "| --- | --- |"]
    for section, keys in vars(settings).items():
        lines += [
            f"| {section}.{key} | {_shown(value)} |"
            for key, value in vars(keys).items()
        ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _results(history: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [line["loss"] for line in history if "loss" in line]
    evaluated = [line["eval_loss"] for line in history if "eval_loss" in line]
    found: dict[str, Any] = {}
    if losses:
        found |= {
            "first training loss": round(losses[0], 4),
            "last training loss": round(losses[-1], 4),
        }
    if evaluated:
        found |= {
            "best validation loss": round(min(evaluated), 4),
            "last validation loss": round(evaluated[-1], 4),
        }
    return found


def _shown(value: Any) -> str:
    text = (
        ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    )
    return text.replace("|", "\\|").replace("\n", " ")
