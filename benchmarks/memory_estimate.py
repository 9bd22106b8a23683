"""The estimate of `inv launch --dry-run` beside what torch keeps alive in training, for models of known dimensions.

A validation: nothing is timed. `count_memory.py` counts, in the training environment, what is alive by its size; with
--card also what a real GPU has to give.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.command import BenchmarkError, make_parser, run
from benchmarks.peers import PYTHON, need_training_environment
from ugro_tasks.hosts.answers import Model
from ugro_tasks.node.model import numbers_of
from ugro_tasks.training.memory import estimate, model_facts

COUNT = Path(__file__).with_name("count_memory.py")


def llama(**dimensions: Any) -> dict[str, Any]:
    """Write the config of a model."""
    names = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
        "vocab_size",
    )  # fmt: skip
    sizes = dict(zip(names, dimensions.pop("sizes"), strict=True))
    return {
        "tie_word_embeddings": False,
        "max_position_embeddings": 8192,
        **sizes,
        **dimensions,
    }


# hidden size, layers, heads, heads of keys and values, feed-forward size, vocabulary
MODELS = {
    "0.5B": llama(sizes=(896, 24, 14, 2, 4864, 151936), tie_word_embeddings=True),
    "TinyLlama 1.1B": llama(sizes=(2048, 22, 32, 4, 5632, 32000)),
    "1B, 128k words": llama(
        sizes=(2048, 16, 32, 8, 8192, 128256), tie_word_embeddings=True
    ),
    "8B": llama(sizes=(4096, 32, 32, 8, 14336, 128256)),
}
QV, ALL = ["q_proj", "v_proj"], ["all-linear"]
RUNS = [
    # batch size, sequence length, LoRA's targets (None: all weights are trained), checkpointing
    (1, 2048, QV, False), (2, 2048, QV, False), (4, 512, QV, False), (1, 2048, ALL, False),
    (1, 2048, QV, True), (4, 2048, QV, True), (1, 2048, None, False), (2, 1024, None, True),
]  # fmt: skip


def compare(counting: subprocess.Popen[str], model_name: str, *, on_card: bool) -> None:
    """Print a line for each way to train the model: estimated, counted, and their ratio."""
    assert counting.stdin
    assert counting.stdout
    config = MODELS[model_name]
    model = model_facts(Model(config=numbers_of(config)))
    assert model
    for batch_size, length, targets, checkpointing in RUNS:
        case = {
            "batch_size": batch_size, "sequence_length": length, "lora_targets": targets,
            "checkpointing": checkpointing,
        }  # fmt: skip
        print(
            json.dumps({"config": config, "run": case}), file=counting.stdin, flush=True
        )
        answer = counting.stdout.readline()
        if not answer:
            raise BenchmarkError(
                f"{COUNT.name} ended with {counting.wait()}; what it said stands above"
            )
        counted = json.loads(answer)
        how = (
            f"{model_name:15} {batch_size:5} {length:6} {trained(targets):12} "
            f"{'yes' if checkpointing else 'no':13}"
        )
        if "too_large" in counted:
            print(f"{how}  too large for this card", flush=True)
            continue
        if counted["parameters"] != model.parameters:
            raise BenchmarkError(
                f"{model_name} has {counted['parameters']} parameters, not {model.parameters}"
            )
        settings: dict[str, dict[str, Any]] = {
            "model": {"max_seq_length": length, "dtype": "bfloat16"},
            "quantization": {"enabled": False},
            "lora": {
                "enabled": targets is not None,
                "rank": 16,
                "target_modules": targets or [],
            },
            "training": {"gradient_checkpointing": checkpointing},
        }
        needed = estimate(model, settings, batch_size)
        ours = needed.total_mib - needed.overhead_mib
        theirs = counted["peak_mib"] + 4 * counted["trained"] / (1 << 20)
        taken = ""
        if on_card:
            whole = counted["taken_mib"] + theirs - counted["peak_mib"]
            taken = f"  {needed.total_mib:9,.0f} {whole:9,.0f}  {needed.total_mib / whole:5.2f}"
        print(
            f"{how}  {ours:9,.0f} {theirs:9,.0f}  {ours / theirs:5.2f}{taken}",
            flush=True,
        )


def trained(targets: list[str] | None) -> str:
    """Name what is trained."""
    if targets is None:
        return "all weights"
    return "every matrix" if targets == ALL else "q and v"


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    made = make_parser("memory_estimate", __doc__)
    made.add_argument(
        "--model",
        choices=[*MODELS, "all"],
        default="all",
        help="one of the models, instead of all",
    )
    made.add_argument(
        "--card", action="store_true", help="count on a real GPU of this machine"
    )
    made.add_argument(
        "--python",
        help="the Python of another training environment, with torch, transformers and peft",
    )
    return made


def main(model: str, python: str | None, *, card: bool) -> None:
    if python is None:
        need_training_environment()
    argv = [python or PYTHON, COUNT, *(["--card"] if card else [])]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as counting:
        print(
            "MiB; first without what CUDA takes, counted by what is alive"
            + (", then of the whole card" if card else "")
            + "; to both counts DDP's copy of the gradients is added"
        )
        columns = "   estimate   counted  ratio"
        print(
            "model           batch tokens trained     checkpointing"
            + columns
            + (columns if card else "")
        )
        try:
            for name in MODELS:
                if model in (name, "all"):
                    compare(counting, name, on_card=card)
        except BaseException:
            counting.kill()
            raise


if __name__ == "__main__":
    run(parser(), main)
