# mypy: ignore-errors
"""Count what a training step keeps alive at once. For memory_estimate.py, run by the training environment's Python.

Cases come as JSON on stdin, a line of JSON goes out for each: parameters, and MiB at the peak of three micro-steps. The
tensors are fake: they have sizes and no content, so a model of any size takes seconds and no memory. Attention,
autocast and the loss are those of the CPU; they keep what those of a GPU keep. With --card the tensors are real ones on
the first GPU, and a case that does not fit there says so.
"""

import contextlib
import gc
import json
import sys
import warnings
import weakref

import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, LlamaConfig

MIB = 1 << 20
COMPUTE = torch.bfloat16


class Living(TorchDispatchMode):
    """Counts the bytes of all storages, from the operation that makes one to its end."""

    def __init__(self):
        super().__init__()
        self.known = weakref.WeakKeyDictionary()
        self.bytes = self.most_bytes = 0

    def add(self, tensor):
        """Count a storage that is new."""
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        self.known[storage] = size = storage.nbytes()
        self.bytes += size
        self.most_bytes = max(self.most_bytes, self.bytes)
        weakref.finalize(storage, self.gone, size)

    def gone(self, size):
        """A storage has ended."""
        self.bytes -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result


def make(case, device):
    """Make the model on a device, with what is trained of it in float32; give it and its number of parameters."""
    run, adapted = case["run"], case["run"]["lora_targets"] is not None
    config = LlamaConfig(**case["config"], attn_implementation="sdpa", use_cache=False)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=COMPUTE if adapted else torch.float32
        )
        parameters = sum(parameter.numel() for parameter in model.parameters())
        if run["checkpointing"]:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if adapted:
            targets = run["lora_targets"]
            targets = targets[0] if targets == ["all-linear"] else targets
            lora = LoraConfig(
                r=16, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM"
            )
            model = get_peft_model(model, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train(), parameters


def train(model, run, device):
    """Take three micro-steps: the second one only accumulates, and the third begins with its gradients."""
    optimizer = torch.optim.AdamW(trained_of(model))
    shape = (run["batch_size"], run["sequence_length"])
    tokens = torch.zeros(shape, dtype=torch.long, device=device)
    for step in range(3):
        with torch.autocast(device, COMPUTE):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        if step == 0:
            optimizer.step()
            optimizer.zero_grad()


def trained_of(model):
    """Give the parameters that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@contextlib.contextmanager
def dropout_of_a_gpu():
    """Let dropout keep a byte an element, its mask, as on a GPU; on a CPU it keeps the whole noise."""
    on_cpu = torch.nn.functional.dropout
    torch.nn.functional.dropout = lambda x, p=0.5, training=True, **_: (
        torch.native_dropout(x, p, training)[0]
    )
    try:
        yield
    finally:
        torch.nn.functional.dropout = on_cpu


def count_fake(case):
    """Count on tensors without content."""
    model, parameters = make(case, "meta")
    living = Living()
    with FakeTensorMode():
        made = {}  # by what stands for it on the meta device; a tied head is the embedding
        for module in model.modules():
            for holder in (module._parameters, module._buffers):
                for name, tensor in holder.items():
                    if tensor is not None:
                        if tensor not in made:
                            made[tensor] = torch.empty(tensor.shape, dtype=tensor.dtype)
                            if holder is module._parameters:
                                made[tensor] = torch.nn.Parameter(
                                    made[tensor], tensor.requires_grad
                                )
                            living.add(made[tensor])
                        holder[name] = made[tensor]
        trained = sum(parameter.numel() for parameter in trained_of(model))
        with living, dropout_of_a_gpu():
            train(model, case["run"], "cpu")
    return {
        "parameters": parameters,
        "trained": trained,
        "peak_mib": round(living.most_bytes / MIB, 1),
    }


def count_on_card(case):
    """Count on the first GPU; `taken_mib` is all that is taken of it, with torch's cache, CUDA and the driver."""
    try:
        model, parameters = make(case, "cuda")
        trained = sum(parameter.numel() for parameter in trained_of(model))
        torch.cuda.reset_peak_memory_stats()
        train(model, case["run"], "cuda")
        free, total = torch.cuda.mem_get_info()
    except torch.OutOfMemoryError:
        return {"too_large": True}
    finally:
        model = None
        gc.collect()
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.empty_cache()
    return {
        "parameters": parameters,
        "trained": trained,
        "peak_mib": round(peak / MIB, 1),
        "taken_mib": round((total - free) / MIB, 1),
    }


warnings.simplefilter("ignore")
count = count_on_card if sys.argv[1:] == ["--card"] else count_fake
for line in sys.stdin:
    print(json.dumps(count(json.loads(line))), flush=True)
