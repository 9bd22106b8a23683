"""Fine-tune a causal language model: LoRA on top of frozen, perhaps quantised weights, or all of them.

On one CPU, a minute; a model and a text of your own, both in folders here:
    python scripts/train_production.py --model-name ./tiny-llama --dataset-name ./book.txt --num-epochs 1 \
        --set model.max_seq_length=128 --set training.gradient_accumulation_steps=1
Three ranks on this machine, uneven micro-batches:
    UGRO_BATCH_SIZES=3,2,2 torchrun --nproc-per-node 3 scripts/train_production.py --model-name ./tiny-llama ...
As UGRO starts it, one rank per host:
    inv launch --name exp1 --epochs 3 --set lora.rank=32
On from where a run stopped:
    ... scripts/train_production.py --resume latest

The settings with their defaults are in config/training_defaults.yaml; by hand: --config FILE, --set SECTION.KEY=VALUE.
Models and data sets are names on the hub or paths readable by every rank. UGRO gives a run UGRO_SETTINGS (JSON, all of
them, checked), UGRO_BATCH_SIZES (sequences of each rank's micro-step), UGRO_MEMORY_MIB (this rank's estimated need on
its card) and UGRO_RESUME (a checkpoint).

A run writes into $UGRO_OUTPUT_DIR (default ./output): `metrics.jsonl`, `tensorboard/` and `artifacts/` on rank 0, and
`checkpoints/checkpoint-<step>/` with a manifest on every node. `artifacts/adapter` or `artifacts/model` is the result.

Exit code: 0 done; 2 unusable settings or inputs, with one line about it; 143 stopped by TERM, after a checkpoint.
"""
# mypy: allow-subclassing-any, allow-untyped-decorators, disable-error-code="import-not-found"

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from training.faults import STOPPED_BY_FAULT, Fault
from training.inputs import find_inputs
from training.settings import read
from training.stopping import STOPPED_BY_TERM

RANK = int(os.environ.get("RANK", "0"))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
OUTPUT = Path(os.environ.get("UGRO_OUTPUT_DIR", "output"))

say = partial(print, flush=True)  # progress must be visible at once


def refuse(fault: Fault) -> None:
    """Print the fault on one line and end this rank."""
    sys.stdout.flush()
    print(f"train_production: {fault}", file=sys.stderr, flush=True)
    os._exit(STOPPED_BY_FAULT)


# Faults are reported before torch is imported, because that takes seconds.
try:
    settings, options = read(sys.argv[1:], os.environ)
    inputs = find_inputs(settings, options.resume, os.environ, OUTPUT)
except Fault as fault:
    refuse(fault)

if inputs.offline:  # model and data are local files, so nothing may ask the hub
    os.environ.update(
        HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1"
    )
os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
if "RANK" not in os.environ:
    # Plain python takes one GPU; the Trainer would spread over all.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
say(
    f"train_production: rank {RANK} of {WORLD_SIZE}, job {options.job_id}, importing torch and transformers"
)

import torch  # noqa: E402  (late on purpose, see above)
import torch.distributed as dist  # noqa: E402
import transformers  # noqa: E402
from torch.distributed.elastic.multiprocessing.errors import record  # noqa: E402
from training import model as models  # noqa: E402
from training.arguments import training_arguments  # noqa: E402
from training.card import write_card  # noqa: E402
from training.data import prepare  # noqa: E402
from training.memory import refuse_if_too_large  # noqa: E402
from training.ranks import Ranks  # noqa: E402
from training.trainer import ProductionTrainer, make_readable  # noqa: E402


def train() -> int:
    """Train on this rank and return its exit code."""
    ranks = Ranks.join()
    notes: list[str] = []
    batch_size = inputs.batch_sizes[RANK]
    is_reporting = RANK == 0 and settings.logging.log_level in ("DEBUG", "INFO")
    progress = say if is_reporting else lambda _: None
    where = f"rank {RANK} of {WORLD_SIZE} on {ranks.name}: {ranks.device}"
    say(f"{where}, micro-batch {batch_size}")
    memory = ranks.all_or_none(
        lambda: refuse_if_too_large(inputs.memory_mib, settings, batch_size, ranks)
    )
    if memory:
        say(f"rank {RANK}: {memory}")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity("WARNING" if RANK == 0 else "ERROR")

    config, tokenizer = ranks.all_or_none(
        lambda: models.open_model(settings, inputs, notes)
    )
    length = models.sequence_length(settings, config, notes)
    precision = ranks.all_or_none(
        lambda: models.choose_precision(settings, config, ranks.device, notes)
    )
    vocabulary = config.get_text_config().vocab_size
    data = ranks.all_or_none(
        lambda: prepare(settings, inputs, tokenizer, vocabulary, length)
    )
    ranks.require_same(data.digest, f"the data set {settings.dataset.name}")
    notes += data.notes
    for note in notes:
        progress(f"note: {note}")
    held_out = f", {len(data.validation)} for validation" if data.validation else ""
    progress(f"{len(data.train)} sequences of {length} tokens to train on{held_out}")

    model = ranks.all_or_none(
        lambda: models.load_model(settings, inputs, config, precision, ranks.device)
    )
    ranks.require_same(models.digest_of(model), f"the model {settings.model.name}")
    # The same on all ranks: they start with the same adapter.
    transformers.set_seed(settings.training.seed)
    if settings.lora.enabled:
        model = ranks.all_or_none(lambda: models.add_adapter(settings, model))
    models.spare_the_network(model)

    arguments = training_arguments(
        settings, inputs, precision, ranks, OUTPUT, evaluates=bool(data.validation)
    )
    trainer = ProductionTrainer(
        settings=settings,
        inputs=inputs,
        data=data,
        ranks=ranks,
        output=OUTPUT,
        say=progress,
        model=model,
        processing_class=tokenizer,
        args=arguments,
    )
    # From here on each rank has a random state of its own, for dropout.
    transformers.set_seed(settings.training.seed + RANK)
    trained, everything = models.count_parameters(model)
    trained_part = f"{trained:,} of {everything:,} parameters"
    bits = precision.bits or precision.weights.itemsize * 8
    progress(f"training {trained_part}; weights {bits} bits")
    if settings.logging.use_tensorboard and RANK == 0:
        add_tensorboard(trainer)
    is_uneven = len(set(inputs.batch_sizes)) > 1
    if is_uneven and not trainer.model_accepts_loss_kwargs:
        progress(
            "note: this model's loss cannot be weighted by tokens: uneven ranks count alike"
        )

    if not trainer.go(inputs.resume):
        # A rank leaving first would make torchrun end the saving rank.
        ranks.barrier()
        trainer.stop.saved.set()
        say(f"rank {RANK}: stopped by TERM after step {trainer.state.global_step}")
        return STOPPED_BY_TERM
    peak_mib = None
    if ranks.device.type == "cuda":
        peak_mib = torch.cuda.max_memory_allocated() / 2**20
    peaks_mib = ranks.all_gather(peak_mib)
    if RANK == 0:
        facts = facts_of(trainer, length, peaks_mib)
        write_result(trainer, tokenizer, {"trained parameters": trained_part, **facts})
    ranks.barrier()
    return 0


def facts_of(
    trainer: ProductionTrainer, length: int, peaks_mib: list[float | None]
) -> dict[str, object]:
    """Return the facts of the run for the model card."""
    micro_steps = settings.training.gradient_accumulation_steps
    sequences = sum(inputs.batch_sizes) * micro_steps
    facts: dict[str, object] = {
        "steps": trainer.state.global_step,
        "ranks": WORLD_SIZE,
        "sequences in a step": f"{sequences} of up to {length} tokens",
        "micro-batch of each rank": inputs.batch_sizes,
    }
    rounded = [round(peak) for peak in peaks_mib if peak]
    if rounded:
        facts["peak GPU memory of each rank, MiB"] = rounded
    return facts


def add_tensorboard(trainer: ProductionTrainer) -> None:
    """Write events for TensorBoard, if it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("note: no tensorboard in this environment, so no events are written")
        return
    from transformers.integrations import TensorBoardCallback

    folder = OUTPUT / "tensorboard"
    if settings.logging.tensorboard_dir:
        name = settings.logging.tensorboard_dir.replace("{job_id}", options.job_id)
        folder = Path(name).expanduser()
    writer = SummaryWriter(log_dir=str(folder))
    trainer.add_callback(TensorBoardCallback(writer))


def write_result(
    trainer: ProductionTrainer, tokenizer: Any, facts: dict[str, object]
) -> None:
    """Write the result: the adapter or the model, its tokenizer and its card."""
    kind = "adapter" if settings.lora.enabled else "model"
    folder = OUTPUT / "artifacts" / kind
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_card(
        folder,
        settings,
        job_id=options.job_id,
        history=trainer.state.log_history,
        facts=facts,
    )
    make_readable(folder)
    say(f"wrote {folder}")


@record  # writes the traceback into a file, for torchrun and UGRO to read the cause from
def main() -> int:
    try:
        return train()
    except Fault as fault:
        print(f"train_production: {fault}", file=sys.stderr, flush=True)
        return STOPPED_BY_FAULT
    except torch.OutOfMemoryError as error:
        message = " ".join(str(error).split())[:300]
        print(
            f"train_production: rank {RANK} ran out of GPU memory: take a smaller batch size or model.max_seq_length, "
            f"or training.gradient_checkpointing=true ({message})",
            file=sys.stderr,
            flush=True,
        )
        return STOPPED_BY_FAULT
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    code = main()
    # Without Python's own shutdown: gloo's threads survive their group, and a thread dropping its
    # last tensor then aborts the process (torch 2.13, some runs in a hundred).
    sys.stdout.flush()
    os._exit(code)
