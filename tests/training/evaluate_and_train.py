"""Evaluates a quantised model, then asks for a gradient; fails where the evaluation has changed anything.

Run by the training environment's Python with the folder of a model whose weights have 4 bits, and with whether
bitsandbytes shall believe that this CPU has its faster layout for inference.
"""
# mypy: disable-error-code="import-not-found"

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))


def main() -> None:
    folder, fast_inference = sys.argv[1], sys.argv[2] == "True"
    bitsandbytes.nn.modules.has_avx512bf16 = lambda: fast_inference
    from training.model import Precision, load_model
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    config.pad_token_id = config.eos_token_id
    precision = Precision(torch.float32, torch.float32, 4, prequantized=True)
    inputs = SimpleNamespace(model=folder)
    model = load_model(
        SimpleNamespace(), inputs, config, precision, torch.device("cpu")
    )
    layer = next(
        module
        for module in model.modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    )
    before = copy.deepcopy(layer.weight.data)
    tokens = torch.arange(16).reshape(1, 16)

    model.eval()
    with torch.no_grad():
        model(tokens)
    model.train()
    assert torch.equal(layer.weight.data, before), (
        "the evaluation has changed the weights"
    )

    inputs = torch.ones(1, 4, layer.in_features, requires_grad=True)
    layer(inputs).sum().backward()
    assert inputs.grad is not None, "no gradient has come through the layer"
    assert inputs.grad.abs().sum() > 0, "the gradient is zero"


if __name__ == "__main__":
    main()
