"""Writes a tiny Llama, the same one quantised to nf4, a tokenizer for both, and data sets; no network.

Run by the training environment's Python, with the folder to write into as its argument.
"""
# mypy: disable-error-code="import-not-found"

import json
import random
import shutil
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = [
    "node",
    "rank",
    "step",
    "loss",
    "card",
    "wire",
    "host",
    "rack",
    "light",
    "cable",
    "epoch",
    "token",
    "batch",
]


def texts(count: int) -> list[str]:
    """Sentences with some order in them, so that there is something to learn."""
    draw = random.Random(7)
    lines = []
    for _ in range(count):
        begin = draw.randrange(len(WORDS))
        lines.append(
            " ".join(
                WORDS[(begin + 2 * place) % len(WORDS)]
                for place in range(draw.randint(6, 14))
            )
            + "."
        )
    return lines


def make_tokenizer(folder: Path, lines: list[str], **special: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<end>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(
        folder
    )


def main() -> None:
    root = Path(sys.argv[1])
    lines = texts(240)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(root / "llama")
    for name, special in (("llama", {"eos_token": "<end>"}), ("no_end", {})):
        make_tokenizer(root / name, lines, **special)
    (root / "no_end" / "config.json").write_text(
        (root / "llama" / "config.json").read_text()
    )

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16,
    )
    quantized = LlamaForCausalLM.from_pretrained(
        root / "llama", quantization_config=nf4, device_map={"": "cpu"}
    )
    quantized.save_pretrained(root / "nf4")
    make_tokenizer(root / "nf4", lines, eos_token="<end>")

    (root / "texts.txt").write_text("\n".join(lines) + "\n")
    rows = [
        json.dumps({"text": line, "number": number})
        for number, line in enumerate(lines)
    ]
    (root / "texts.jsonl").write_text("\n".join(rows) + "\n")

    # What cannot be used: no weights, a line that is no JSON.
    shutil.copytree(
        root / "llama",
        root / "empty",
        ignore=shutil.ignore_patterns("model.safetensors"),
    )
    (root / "broken.jsonl").write_text(f"{rows[0]}\n{{\n")

    import datasets

    both = {"train": lines[:200], "validation": lines[200:]}
    splits = {
        name: datasets.Dataset.from_dict({"text": some}) for name, some in both.items()
    }
    datasets.DatasetDict(splits).save_to_disk(root / "saved")


if __name__ == "__main__":
    main()
