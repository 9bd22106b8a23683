# mypy: ignore-errors
"""Count what a training step keeps alive at once. For memory_estimate.py, run by the training environment's Python.

Cases come as JSON on stdin, a line of JSON goes out for each: parameters, and MiB at the peak of three micro-steps. The
tensors are fake: they have sizes and no content, so a model of any size takes seconds and no memory. Attention,
autocast and the loss are those of the CPU; they keep what those of a GPU keep.
"""

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


def count(case):
    run, adapted = case["run"], case["run"]["lora_targets"] is not None
    config = LlamaConfig(**case["config"], attn_implementation="sdpa", use_cache=False)
    compute = torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=compute if adapted else torch.float32
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
        model.train()
        trained = [
            parameter for parameter in model.parameters() if parameter.requires_grad
        ]
        optimizer = torch.optim.AdamW(trained)
        tokens = torch.zeros(
            (run["batch_size"], run["sequence_length"]), dtype=torch.long
        )
        with living:
            for step in range(3):
                with torch.autocast("cpu", compute):
                    loss = model(input_ids=tokens, labels=tokens).loss
                loss.backward()
                if step == 0:
                    # The second one only accumulates, and the third begins with its gradients.
                    optimizer.step()
                    optimizer.zero_grad()
    return {
        "parameters": parameters,
        "trained": sum(parameter.numel() for parameter in trained),
        "peak_mib": round(living.most_bytes / MIB, 1),
    }


warnings.simplefilter("ignore")
for line in sys.stdin:
    print(json.dumps(count(json.loads(line))), flush=True)
