"""The settings as arguments of transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import TrainingArguments

from .inputs import Inputs
from .model import Precision
from .ranks import Ranks

OPTIMIZERS = {  # {name in the settings: name in the Trainer}
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}


def training_arguments(
    settings: SimpleNamespace,
    inputs: Inputs,
    precision: Precision,
    ranks: Ranks,
    output: Path,
    *,
    evaluates: bool,
) -> TrainingArguments:
    """Translate the settings into the Trainer's arguments."""
    training = settings.training
    optimizer = settings.optimizer
    scheduler = training.lr_scheduler
    if scheduler == "constant":
        scheduler = "constant_with_warmup"
    checkpointing_options = None
    if training.gradient_checkpointing:
        checkpointing_options = {"use_reentrant": False}
    on_cpu = ranks.device.type == "cpu"
    return TrainingArguments(
        output_dir=str(output / "checkpoints"),
        per_device_train_batch_size=inputs.batch_sizes[ranks.rank],
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        # Each token counts alike, regardless of its rank: so uneven ranks equal one big batch.
        average_tokens_across_devices=True,
        num_train_epochs=training.num_epochs,
        max_steps=training.max_steps or -1,
        learning_rate=training.learning_rate,
        lr_scheduler_type=scheduler,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=OPTIMIZERS[optimizer.type],
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.eps,
        fp16=precision.mixed is torch.float16,
        bf16=precision.mixed is torch.bfloat16,
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs=checkpointing_options,
        save_strategy=training.save_strategy,
        save_steps=training.save_steps,
        save_on_each_node=True,  # there is no shared disk
        eval_strategy=training.evaluation_strategy if evaluates else "no",
        eval_steps=training.eval_steps,
        logging_steps=settings.logging.steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is no number must be seen
        log_level="info" if settings.logging.log_level == "DEBUG" else "warning",
        log_level_replica="error",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=training.seed,
        use_cpu=on_cpu,
        ddp_backend="gloo" if ranks.have_group and on_cpu else None,
        ddp_find_unused_parameters=False,
    )
