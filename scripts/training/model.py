"""The model, as the settings and the device want it, and whether it will fit."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
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
from .gang import Gang
from .preflight import Inputs, refuse_config

ALL_LINEAR = "all-linear"  # as peft calls it
MIB, GIB = 2**20, 2**30
# What a weight takes, in bytes; 4 bits with a byte of scale for each 64 of them, and a float32 for each 256 scales.
QUANTIZED_BYTES = {4: 0.5 + 1 / 64 + 4 / (64 * 256), 8: 1.0}
OPTIMIZER_BYTES = {
    "adamw": 8,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "adafactor": 0.1,
    "sgd": 0,
}


@dataclass(frozen=True)
class Precision:
    """How numbers are held and computed."""

    compute: torch.dtype
    weights: torch.dtype  # of what is not quantised
    bits: int | None  # of quantised weights; None: none are
    prequantized: bool

    @property
    def mixed(self) -> torch.dtype | None:
        """The type to compute in where the trained weights are float32; None: all is float32."""
        return None if self.compute is torch.float32 else self.compute


def open_model(
    settings: SimpleNamespace, inputs: Inputs, notes: list[str]
) -> tuple[Any, Any]:
    """The configuration and the tokenizer, with a pad token. Raises Fault."""
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
    """Tokens in a sequence: what is asked for, but no more than the model can take."""
    wanted, most = (
        settings.model.max_seq_length,
        getattr(config, "max_position_embeddings", None),
    )
    if most is None or wanted <= most:
        return int(wanted)
    notes.append(
        f"model.max_seq_length is {most}, not {wanted}: the model takes no more"
    )
    return int(most)


def choose_precision(
    settings: SimpleNamespace, config: Any, device: torch.device, notes: list[str]
) -> Precision:
    """How to hold and compute, on this device. Raises Fault where a package is missing."""
    own = getattr(config, "quantization_config", None) or {}
    bits: int | None = None
    if own:
        bits = 8 if own.get("load_in_8bit") else 4
    compute = settings.model.dtype
    if device.type == "cpu":
        if compute != "float32":
            notes.append(
                f"no GPU: float32 instead of {compute}, and nothing is quantised on loading"
            )
        compute = "float32"
    else:
        if compute == "bfloat16" and not torch.cuda.is_bf16_supported(
            including_emulation=False
        ):
            notes.append("this GPU has no bfloat16: float16 is used")
            compute = "float16"
        wanted = settings.quantization
        if (
            not own
            and wanted.enabled
            and (wanted.bits == 8 or settings.model.load_in_4bit)
        ):
            if not settings.lora.enabled:
                notes.append(
                    "all weights are trained (lora.enabled=false), so none are quantised"
                )
            elif find_spec("bitsandbytes") is None:
                raise Fault(
                    "quantization.enabled needs bitsandbytes, which this Python lacks; or set it to false"
                )
            else:
                bits = wanted.bits
        if bits == 4 and settings.lora.enabled and wanted.compute_dtype != compute:
            notes.append(
                f"4-bit weights compute in {wanted.compute_dtype} (quantization.compute_dtype), not {compute}"
            )
    held = getattr(torch, compute)
    # Weights that are trained are kept in float32: steps of a small learning rate would be lost in less.
    return Precision(
        held, held if settings.lora.enabled else torch.float32, bits, bool(own)
    )


def refuse_if_too_large(
    settings: SimpleNamespace,
    config: Any,
    precision: Precision,
    length: int,
    batch_size: int,
    gang: Gang,
) -> str:
    """A line with what the model will take and what is free. Raises Fault if it cannot fit at all."""
    parts = _memory_needed(settings, config, precision, length, batch_size)
    if gang.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(gang.device)
        what = f"GPU memory ({torch.cuda.get_device_name(gang.device)})"
    else:
        free, total = _host_memory()
        what = "memory"
    least = sum(parts.values()) - parts["activations"]
    listed = ", ".join(f"{name} {_size(value)}" for name, value in parts.items())
    sizes = f"{_size(free)} of {_size(total)} are free"
    if least > free > 0:
        raise Fault(
            f"not enough {what} on {gang.name}: at least {_size(least)} are needed ({listed}), {sizes}; "
            "take a smaller model, batch size or model.max_seq_length, or quantise it"
        )
    estimate = sum(parts.values())
    doubt = "; it may not be enough" if estimate > free > 0 else ""
    return f"{what}: about {_size(estimate)} needed ({listed}), {sizes}{doubt}"


def _memory_needed(
    settings: SimpleNamespace,
    config: Any,
    precision: Precision,
    length: int,
    batch_size: int,
) -> dict[str, float]:
    """Bytes by what takes them; all but the activations are sure to be needed.

    Of each token the backward pass keeps, in a layer that computes in c bytes with frozen weights: 8h for the norms,
    5ch of attention, 3ci of the feed-forward part, and the input of each matrix with an adapter in float32 and in c.
    Weights that are trained need the inputs of all matrices: (28 + 4c)h + 4ci.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    linears = {name: m for name, m in empty.named_modules() if isinstance(m, nn.Linear)}
    head = empty.get_output_embeddings()
    inner = {name: m for name, m in linears.items() if m is not head}
    in_matrices = sum(m.weight.numel() for m in inner.values())
    everything = sum(parameter.numel() for parameter in empty.parameters())
    plain, compute = precision.weights.itemsize, precision.compute.itemsize
    weights = (
        in_matrices * QUANTIZED_BYTES.get(precision.bits or 0, plain)
        + (everything - in_matrices) * plain
    )

    text, tokens = config.get_text_config(), batch_size * length
    hidden, layers = text.hidden_size, text.num_hidden_layers
    feed_forward = getattr(text, "intermediate_size", None) or 4 * hidden
    if settings.lora.enabled:
        targets = [m for name, m in inner.items() if _is_target(name, settings)]
        trained = sum(
            settings.lora.rank * (m.in_features + m.out_features) for m in targets
        )
        weights += 4 * trained
        adapted = sum(m.in_features for m in targets) * (4 + compute) / layers
        layer = hidden * (8 + 5 * compute) + feed_forward * 3 * compute + adapted
    else:
        trained = everything
        layer = hidden * (28 + 4 * compute) + feed_forward * 4 * compute
    checkpointing = settings.training.gradient_checkpointing
    return {
        "weights": weights,
        "gradients": 4.0 * trained,
        "optimizer": float(OPTIMIZER_BYTES[settings.optimizer.type] * trained),
        "logits": 8.0
        * tokens
        * text.vocab_size,  # in float32, and the gradient of that
        "activations": tokens
        * (layers * plain * hidden + layer if checkpointing else layers * layer),
    }


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def _host_memory() -> tuple[int, int]:
    """(available, total) bytes of this machine; zeros where nobody says."""
    path = Path("/proc/meminfo")
    fields = (
        dict(line.split(":", 1) for line in path.read_text().splitlines())
        if path.exists()
        else {}
    )
    available, total = (
        int(fields.get(name, "0 kB").split()[0])
        for name in ("MemAvailable", "MemTotal")
    )
    return 1024 * available, 1024 * total


def load_model(
    settings: SimpleNamespace,
    inputs: Inputs,
    config: Any,
    precision: Precision,
    device: torch.device,
) -> Any:
    """The model's own weights, on the device. Raises Fault."""
    options: dict[str, Any] = {"config": config, "dtype": precision.weights}
    compute = (
        precision.compute
        if precision.mixed is None
        else getattr(torch, settings.quantization.compute_dtype)
    )
    if precision.prequantized:
        config.quantization_config["bnb_4bit_compute_dtype"] = str(
            compute
        ).removeprefix("torch.")
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
        # Else the Trainer does, with a paragraph about it.
        model.generation_config.pad_token_id = config.pad_token_id
    return model


def keep_layout(model: Any) -> None:
    """Keep the 4-bit weights as they were loaded, also where the CPU has a faster layout for inference.

    On a CPU with AVX-512 BF16, bitsandbytes repacks the weights at the first evaluation. What is repacked has no
    backward pass: every gradient behind it is zero until the weights are saved, which unpacks them on the rank that
    saves, with other scales than before.
    """
    # Late: an environment without it trains what is not quantised.
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def digest_of(model: Any) -> str:
    """What tells these weights from others: the beginning of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        beginning = tensor.detach().flatten()[:64].cpu().contiguous()
        digest.update(
            f"{name} {tuple(tensor.shape)}".encode()
            + beginning.view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def add_adapter(settings: SimpleNamespace, model: Any) -> Any:
    """The model with a new adapter, which alone is trained. Raises Fault for target modules that it has not."""
    lora = settings.lora
    linears = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    absent = [
        t for t in lora.target_modules if not any(_named(name, t) for name in linears)
    ]
    if absent and lora.target_modules != [ALL_LINEAR]:
        known = dict.fromkeys(name.rsplit(".", 1)[-1] for name in linears)
        raise Fault(
            f"lora.target_modules: the model has no {', '.join(absent)}; it has {', '.join(known)} (or {ALL_LINEAR})"
        )
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR
        if lora.target_modules == [ALL_LINEAR]
        else list(lora.target_modules),
        bias=lora.bias,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers for a property by its old name.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, adapter)


def count_parameters(model: Any) -> tuple[int, int]:
    """Those that are trained, and all; of quantised ones as many as they stand for."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trained, everything = model.get_nb_trainable_parameters()
        return int(trained), int(everything)
    everything = sum(parameter.numel() for parameter in model.parameters())
    return everything, everything


def spare_the_network(model: Any) -> None:
    """Keep DDP from sending what is frozen to all ranks at the start: `digest_of` has compared it already."""
    frozen = [
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    ]
    buffers = [name for name, _ in model.named_buffers()]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        model, frozen + buffers
    )


def _is_target(name: str, settings: SimpleNamespace) -> bool:
    targets = settings.lora.target_modules
    return targets == [ALL_LINEAR] or any(_named(name, target) for target in targets)


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
