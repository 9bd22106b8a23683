"""The model, loaded according to the settings and the device."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from .faults import Fault, in_one_line
from .inputs import Inputs, refuse_config

ALL_LINEAR = "all-linear"  # as peft calls it


@dataclass(frozen=True)
class Precision:
    """The number types of weights and computation."""

    compute: torch.dtype
    weights: torch.dtype  # of weights not quantised
    bits: int | None  # of quantised weights; None without any
    prequantized: bool

    @property
    def mixed(self) -> torch.dtype | None:
        """Return the type of mixed precision with trained weights in float32; None if all is float32."""
        return None if self.compute is torch.float32 else self.compute


def open_model(
    settings: SimpleNamespace, inputs: Inputs, notes: list[str]
) -> tuple[Any, Any]:
    """Load the configuration and the tokenizer, and set a pad token. Raises Fault."""
    try:
        config = AutoConfig.from_pretrained(inputs.model)
        tokenizer = AutoTokenizer.from_pretrained(inputs.model)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Fault(f"model {settings.model.name}: {in_one_line(error)}") from error
    refuse_config(config.to_dict(), settings.model.name, settings)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise Fault(
                f"model {settings.model.name}: its tokenizer has neither a pad token nor an end-of-text token "
                "to take for it; set pad_token in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(
            f"the tokenizer has no pad token: {tokenizer.eos_token!r} is taken for it"
        )
    config.pad_token_id = tokenizer.pad_token_id
    return config, tokenizer


def sequence_length(settings: SimpleNamespace, config: Any, notes: list[str]) -> int:
    """Return the tokens in a sequence: model.max_seq_length, limited by the model's positions."""
    wanted = int(settings.model.max_seq_length)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or wanted <= limit:
        return wanted
    notes.append(
        f"model.max_seq_length is {limit}, not {wanted}: the model takes no more"
    )
    return int(limit)


def choose_precision(
    settings: SimpleNamespace, config: Any, device: torch.device, notes: list[str]
) -> Precision:
    """Choose the number types for this device. Raises Fault if a package is missing."""
    own_quantization = getattr(config, "quantization_config", None) or {}
    bits: int | None = None
    if own_quantization:
        bits = 8 if own_quantization.get("load_in_8bit") else 4
    compute = settings.model.dtype
    if device.type == "cpu":
        if compute != "float32":
            notes.append(
                f"no GPU: float32 instead of {compute}, and nothing is quantised on loading"
            )
        compute = "float32"
    else:
        if compute == "bfloat16" and not _has_bfloat16():
            notes.append("this GPU has no bfloat16: float16 is used")
            compute = "float16"
        if not own_quantization:
            bits = _bits_on_loading(settings, notes)
        dtype = settings.quantization.compute_dtype
        if bits == 4 and settings.lora.enabled and dtype != compute:
            notes.append(
                f"4-bit weights compute in {dtype} (quantization.compute_dtype), not {compute}"
            )
    compute_dtype = getattr(torch, compute)
    # Trained weights are kept in float32: steps of a small learning rate would be lost in less.
    weights_dtype = compute_dtype if settings.lora.enabled else torch.float32
    return Precision(compute_dtype, weights_dtype, bits, bool(own_quantization))


def _has_bfloat16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _bits_on_loading(settings: SimpleNamespace, notes: list[str]) -> int | None:
    """Return the bits for quantising the weights on loading; None to leave them. Raises Fault."""
    wanted = settings.quantization
    if not wanted.enabled:
        return None
    if wanted.bits != 8 and not settings.model.load_in_4bit:
        return None
    if not settings.lora.enabled:
        notes.append(
            "all weights are trained (lora.enabled=false), so none are quantised"
        )
        return None
    if find_spec("bitsandbytes") is None:
        raise Fault(
            "quantization.enabled needs bitsandbytes, which this Python lacks; or set it to false"
        )
    return int(wanted.bits)


def load_model(
    settings: SimpleNamespace,
    inputs: Inputs,
    config: Any,
    precision: Precision,
    device: torch.device,
) -> Any:
    """Load the model's own weights onto the device. Raises Fault."""
    options: dict[str, Any] = {"config": config, "dtype": precision.weights}
    compute = precision.compute
    if precision.mixed is not None:
        compute = getattr(torch, settings.quantization.compute_dtype)
    if precision.prequantized:
        name = str(compute).removeprefix("torch.")
        config.quantization_config["bnb_4bit_compute_dtype"] = name
    elif precision.bits == 4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    elif precision.bits == 8:
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    if precision.bits or device.type == "cuda":
        options["device_map"] = {"": device}
    try:
        model = AutoModelForCausalLM.from_pretrained(inputs.model, **options)
    except torch.OutOfMemoryError as error:
        raise Fault(
            f"model {settings.model.name} does not fit: {in_one_line(error)}"
        ) from error
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise Fault(f"model {settings.model.name}: {in_one_line(error)}") from error
    if precision.bits == 4:
        keep_layout(model)
    if model.generation_config is not None:
        # Otherwise the Trainer sets it, with a long warning.
        model.generation_config.pad_token_id = config.pad_token_id
    return model


def keep_layout(model: Any) -> None:
    """Keep the 4-bit weights as loaded, even on a CPU with a faster layout for inference.

    On a CPU with AVX-512 BF16, bitsandbytes repacks the weights at the first evaluation. Repacked weights have no
    backward pass: every gradient behind them is zero until the weights are saved. Saving unpacks them, but only on
    the saving rank, and with other scales than before.
    """
    # Late: an environment without bitsandbytes can train a model without quantised weights.
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def digest_of(model: Any) -> str:
    """Hash the names, shapes and beginnings of all tensors, as an identity of the weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        beginning = tensor.detach().flatten()[:64].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(beginning.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def add_adapter(settings: SimpleNamespace, model: Any) -> Any:
    """Wrap the model with a new adapter; only the adapter is trained. Raises Fault for unknown target modules."""
    lora = settings.lora
    targets = list(lora.target_modules)
    is_all = targets == [ALL_LINEAR]
    if not is_all:
        _refuse_absent(targets, model)
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR if is_all else targets,
        bias=lora.bias,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers for a property by its old name.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, adapter)


def _refuse_absent(targets: list[str], model: Any) -> None:
    """Raise Fault for target modules without a linear module in the model."""
    linear_names = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    absent = []
    for target in targets:
        if not any(_is_named(name, target) for name in linear_names):
            absent.append(target)
    if absent:
        # Without duplicates, in the order of the model.
        known = dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear_names)
        raise Fault(
            f"lora.target_modules: the model has no {', '.join(absent)}; it has {', '.join(known)} (or {ALL_LINEAR})"
        )


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def count_parameters(model: Any) -> tuple[int, int]:
    """Return (trained, all) parameters, quantised ones counted as before quantisation."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trained, everything = model.get_nb_trainable_parameters()
        return int(trained), int(everything)
    everything = sum(parameter.numel() for parameter in model.parameters())
    return everything, everything


def spare_the_network(model: Any) -> None:
    """Keep DDP from sending frozen weights to all ranks at the start: their digests were compared already."""
    ignored = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            ignored.append(name)
    for name, _ in model.named_buffers():
        ignored.append(name)
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        model, ignored
    )
