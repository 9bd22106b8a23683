"""An estimate of the GPU memory of one rank of `train_production.py`, made before anything is started.

    needed = weights + trained + activations + overhead

Weights: parameters x bytes each. The parameters are the size of the weight files over the bytes of their type, if both
are known; else embedding V*h (twice for a head not tied to it) and a layer's matrices: q and o h*heads*head_size each,
k and v h*kv_heads*head_size each, the feed-forward part 3*h*i (ungated 2*h*i). nf4 is half a byte a parameter, a byte
of scale for each 64, and a float32 for each 256 of these (Dettmers et al. 2023, arXiv:2305.14314, section 3);
embedding, norms and head are not quantised.

Trained: LoRA adds rank*(in + out) parameters to each adapted matrix (Hu et al. 2021, arXiv:2106.09685, section 4.1).
Each is kept as float32, with its gradient, DDP's copy of that, and the optimizer's moments.

Activations: the bytes of each token kept for the backward pass, counted layer by layer like Korthikanti et al. 2022
(arXiv:2205.05198, section 4). Their s*b*h*(34 + 5*a*s/h) is for GPT-2; today's attention does not keep its matrix, so
the second term is dropped, and the first is counted here for a Llama layer, see `_kept_of_a_layer`. The logits are
added. `benchmarks/memory_estimate.py` compares all this with the real allocations of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..codec import UNREADABLE, convert
from ..jobs.plan import Memory

if TYPE_CHECKING:  # a launch that is only queued reads no answers
    from ..hosts.answers import Model

MIB = 1 << 20
# CUDA's context, the kernels of torch, the buffers of cuBLAS and NCCL, and the driver's own part.
OVERHEAD_MIB = 1024
# The accepted relative error of the estimate.
TOLERANCE = 0.15
FLOAT32_BYTES = 4
DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": FLOAT32_BYTES, "float64": 8}
QUANTISED_BYTES = {4: 0.5 + 1 / 64 + 4 / (64 * 256), 8: 1.0}
# The optimizer's bytes for each trained parameter.
MOMENT_BYTES = {
    "adamw": 8.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "sgd": 0.0,
    "adafactor": 0.1,
}
# For each logit, in float32: the log of its softmax, the gradient of that, and the logit's own gradient.
LOGIT_BYTES = 3 * FLOAT32_BYTES
# Of each element, on a GPU.
DROPOUT_MASK_BYTES = 1
ALL_LINEAR = "all-linear"  # peft's word for every matrix


Count = Annotated[int, Meta(gt=0, lt=1 << 50)]


class ModelFacts(Struct, frozen=True, kw_only=True):
    """The facts of a model, as reported by `node/model.py`."""

    hidden_size: Count
    layers: Count
    heads: Count
    vocabulary: Count
    kv_heads: Count | None = None
    head_size: Count | None = None
    intermediate_size: Count | None = None
    positions: Count | None = None  # the length of the longest sequence
    tied: bool = False  # the head is the embedding, used again
    gated: bool = True  # the feed-forward part has three matrices, not two
    dtype: str | None = None  # of the weight files, like all below
    quantised_bits: int | None = None
    weights_bytes: Count | None = None

    @property
    def inner_size(self) -> int:
        """Return the inner width of the feed-forward part; by default 4 times the hidden size."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Return {name: (in, out)} of a layer's matrices, with the names of `lora.target_modules`."""
        hidden = self.hidden_size
        inner = self.inner_size
        head_size = self.head_size or hidden // self.heads
        kv_heads = self.kv_heads or self.heads
        queries = self.heads * head_size
        keys = kv_heads * head_size
        matrices = {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }
        if self.gated:
            matrices["gate_proj"] = (hidden, inner)
        return matrices

    @property
    def outside_matrices(self) -> int:
        """Count the parameters of embedding, head and norms."""
        norms = self.hidden_size * (2 * self.layers + 1)
        embedding = self.vocabulary * self.hidden_size
        head = 0 if self.tied else embedding
        return embedding + head + norms

    @property
    def parameters(self) -> int:
        """Count all parameters: by the size of the files if it is known and they are not quantised."""
        if self.weights_bytes and not self.quantised_bits:
            bytes_each = DTYPE_BYTES.get(self.dtype or "", 2)
            return self.weights_bytes // bytes_each
        in_a_layer = sum(fan_in * fan_out for fan_in, fan_out in self.matrices.values())
        return self.layers * in_a_layer + self.outside_matrices


def model_facts(told: Model | None) -> ModelFacts | None:
    """Read a probe's facts of the model; None if they are not enough for an estimate."""
    if told is None:
        return None
    try:
        return convert(ModelFacts, {**told.config, "weights_bytes": told.weights_bytes})
    except UNREADABLE:
        return None


def estimate(
    model: ModelFacts, settings: Mapping[str, Mapping[str, Any]], batch_size: int
) -> Memory:
    """Estimate a rank's memory for micro-batches of `batch_size` sequences with the job's settings."""
    run = _Run.of(settings)
    sequence_length = run.sequence_length
    if model.positions:
        sequence_length = min(sequence_length, model.positions)
    tokens = batch_size * sequence_length
    parts = {
        "weights_mib": round(_weights_bytes(model, run) / MIB),
        "trained_mib": round(_trained_bytes(model, run) / MIB),
        "activations_mib": round(tokens * _bytes_a_token(model, run) / MIB),
        "overhead_mib": OVERHEAD_MIB,
    }
    return convert(Memory, {**parts, "total_mib": sum(parts.values())})


def on_card(memory: Memory, card_mib: int, taken_mib: int) -> Memory:
    """Return the estimate with its fit on a card, `taken_mib` of which is used by others.

    Beyond the free room it is "tight" within TOLERANCE, then "too large".
    """
    room = card_mib - taken_mib
    fit: Literal["fits", "tight", "too large"] = "too large"
    if memory.total_mib <= room:
        fit = "fits"
    elif memory.total_mib <= room * (1 + TOLERANCE):
        fit = "tight"
    return msgspec.structs.replace(
        memory, card_mib=card_mib, taken_mib=taken_mib, fit=fit
    )


class _Run(Struct, frozen=True, kw_only=True):
    """The part of a job's settings with an influence on memory; config/training_defaults.yaml explains them."""

    sequence_length: int
    compute_bytes: int
    lora_rank: int | None  # None: all weights are trained, and kept as float32
    lora_targets: tuple[str, ...]
    quantise_bits: int | None
    checkpointing: bool
    optimizer: str

    @classmethod
    def of(cls, settings: Mapping[str, Mapping[str, Any]]) -> _Run:
        """Extract that part from all settings."""
        model = settings.get("model", {})
        training = settings.get("training", {})
        lora = settings.get("lora", {})
        quantisation = settings.get("quantization", {})
        optimizer = settings.get("optimizer", {})
        dtype = model.get("dtype", "float16")
        targets = lora.get("target_modules", ("q_proj", "v_proj"))
        lora_rank = None
        quantise_bits = None
        # Weights are quantised only below an adapter, never if they are trained themselves.
        if lora.get("enabled", True):
            lora_rank = lora.get("rank", 16)
            bits = quantisation.get("bits", 4)
            is_allowed = bits == 8 or model.get("load_in_4bit", True)
            if quantisation.get("enabled", True) and is_allowed:
                quantise_bits = bits
        return cls(
            sequence_length=model.get("max_seq_length", 2048),
            compute_bytes=DTYPE_BYTES.get(dtype, 2),
            lora_rank=lora_rank,
            lora_targets=tuple(targets),
            quantise_bits=quantise_bits,
            checkpointing=training.get("gradient_checkpointing", False),
            optimizer=optimizer.get("type", "adamw"),
        )

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of a weight that is not quantised."""
        return FLOAT32_BYTES if self.lora_rank is None else self.compute_bytes

    def adapted(self, model: ModelFacts) -> list[tuple[int, int]]:
        """List (in, out) of the matrices with an adapter in one layer."""
        matrices = model.matrices
        if self.lora_targets == (ALL_LINEAR,):
            return list(matrices.values())
        return [matrices[name] for name in self.lora_targets if name in matrices]


def _weights_bytes(model: ModelFacts, run: _Run) -> float:
    if model.quantised_bits and model.weights_bytes:
        return model.weights_bytes
    bits = model.quantised_bits or run.quantise_bits or 0
    bytes_each = QUANTISED_BYTES.get(bits, run.weight_bytes)
    in_matrices = model.parameters - model.outside_matrices
    return in_matrices * bytes_each + model.outside_matrices * run.weight_bytes


def _trained_bytes(model: ModelFacts, run: _Run) -> float:
    """Sum gradients, DDP's copy of them, the optimizer's moments, and the adapter itself."""
    bytes_each = 2 * FLOAT32_BYTES + MOMENT_BYTES.get(run.optimizer, 8.0)
    if run.lora_rank is None:
        # The layers compute with a copy of the weights in the smaller type, kept for the backward pass.
        if run.compute_bytes < FLOAT32_BYTES:
            bytes_each += run.compute_bytes
        return model.parameters * bytes_each
    widths = sum(fan_in + fan_out for fan_in, fan_out in run.adapted(model))
    adapter_parameters = model.layers * run.lora_rank * widths
    return adapter_parameters * (FLOAT32_BYTES + bytes_each)


def _bytes_a_token(model: ModelFacts, run: _Run) -> float:
    layer = _kept_of_a_layer(model, run)
    logits = LOGIT_BYTES * model.vocabulary
    if not run.checkpointing:
        return model.layers * layer + logits
    # Only the input of each layer is kept; one layer at a time is computed again, after the logits are freed.
    inputs = model.layers * run.weight_bytes * model.hidden_size
    return inputs + max(layer, logits)


def _kept_of_a_layer(model: ModelFacts, run: _Run) -> float:
    """Return the bytes a token kept for the backward pass in one layer, computing in c bytes.

    Attention keeps q and its result, each as wide as all heads together, and k and v, as wide as their own heads.
    Frozen weights: 8h for the two norms, which work in float32; c for each of attention and of q's rotation; 3ci for
    the feed-forward part; and for each matrix with an adapter its input in c, and a byte for dropout's mask.
    Trained weights need the input of each matrix: 20h and ci more, and no rotation.
    """
    hidden = model.hidden_size
    inner = model.inner_size
    compute = run.compute_bytes
    _, queries = model.matrices["q_proj"]
    _, keys = model.matrices["k_proj"]
    if run.lora_rank is None:
        attention = compute * (2 * queries + 2 * keys)
        return 28 * hidden + attention + 4 * compute * inner
    attention = compute * (3 * queries + 2 * keys)
    inputs = sum(fan_in for fan_in, _ in run.adapted(model))
    adapters = inputs * (compute + DROPOUT_MASK_BYTES)
    return 8 * hidden + attention + 3 * compute * inner + adapters
