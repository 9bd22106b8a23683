"""transformers' Trainer with uneven micro-batches, an end by TERM, exact resume, metrics.jsonl and manifests.

Each overridden method says why; the rest is the Trainer's own. Written against transformers 5.23: methods with an
underscore may change, so check them again when the pin in requirements.txt moves.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from .checkpoints import remove, whole_ones, write_manifest
from .data import NO_LABEL, Data, Loader, RankBatches, Sequences
from .inputs import STATE, Inputs
from .metrics import Window, append_line, described
from .ranks import Ranks
from .stopping import GRACE_SECONDS, Stop

PROGRESS = "progress.json"  # in a checkpoint: its place in the data
LEAST_SECONDS_TO_AGREE = 3.0


class ProductionTrainer(Trainer):
    """The Trainer of one rank, with micro-batches of its own size."""

    def __init__(
        self,
        *,
        settings: SimpleNamespace,
        inputs: Inputs,
        data: Data,
        ranks: Ranks,
        output: Path,
        say: Callable[[str], None],
        **options: Any,
    ) -> None:
        super().__init__(
            train_dataset=data.train, eval_dataset=data.validation, **options
        )
        self.ranks = ranks
        self.say = say
        self.settings = settings
        self.batch_sizes = inputs.batch_sizes
        self.data = data
        self.output = output
        self.stop = Stop(
            partial(print, flush=True), agree_seconds=self._seconds_to_agree
        )
        self.stopping = False
        self.saving = False
        self.window = Window()
        self.started = time.monotonic()
        self.step_seconds = 0.0
        self.step_tokens = 0.0
        self.step_loss: torch.Tensor | float = 0.0
        self.saved: set[int] = set()
        # Ranks on one node share its folder, and the first of them writes for all.
        writers = self.ranks.all_gather(self.args.should_save)
        self.writers = [rank for rank, writes in enumerate(writers) if writes]
        # A checkpoint's place in the data is valid only for the same layout.
        self.layout = {
            "seed": settings.training.seed,
            "data": data.digest,
            "batch_sizes": list(inputs.batch_sizes),
            "gradient_accumulation_steps": settings.training.gradient_accumulation_steps,
        }
        self.remove_callback(PrinterCallback)
        self.add_callback(StepByStep(self))

    # ---- data ----

    def get_train_dataloader(self) -> Loader:
        """Return a loader not prepared by accelerate, because that deals out batches of one size."""
        return self._loader(self.data.train, self.settings.training.seed)

    def _loader(self, sequences: Sequences, seed: int | None = None) -> Loader:
        """Make a loader of this rank's batches, in order without a seed."""
        batches = RankBatches(len(sequences), self.batch_sizes, self.ranks.rank, seed)
        pad_id = int(self.processing_class.pad_token_id)
        return Loader(
            sequences, batches, pad_id, pin_memory=self.ranks.device.type == "cuda"
        )

    # ---- steps ----

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Add the loss and the tokens to those of the step, for `step_done`; the rest is the Trainer's."""
        # Still on the CPU: no wait for the GPU.
        self.step_tokens += float(inputs["labels"].ne(NO_LABEL).sum())
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.step_loss = self.step_loss + loss
        return loss

    def step_done(self) -> None:
        """Share loss, tokens and a request to stop among all ranks, with one small message."""
        asked = float(self.stop.asked.is_set())
        loss, tokens, asked = self.ranks.sum([self.step_loss, self.step_tokens, asked])
        self.step_loss = 0.0
        self.step_tokens = 0.0
        # A rank's loss is its share of the sum over tokens, times the number of ranks.
        mean_loss = loss / self.ranks.world_size
        micro_steps = self.current_gradient_accumulation_steps
        samples = micro_steps * sum(self.batch_sizes)
        self.step_seconds = self.window.add(mean_loss, tokens, samples)
        if self.state.global_step >= self.state.max_steps:
            self.control.should_log = True
        if asked:
            self._stop_here()

    def _stop_here(self) -> None:
        self.stop.agreed.set()
        self.stopping = True
        self.control.should_save = True
        self.control.should_training_stop = True

    def _seconds_to_agree(self) -> float:
        # While a checkpoint is written there is no step for the ranks to agree in.
        if self.saving:
            return GRACE_SECONDS
        return LEAST_SECONDS_TO_AGREE + 2 * self.step_seconds

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the mean loss over all tokens of the validation set; each rank evaluates its share.

        The Trainer's own gives all ranks the same share, and weights batches alike regardless of their tokens.
        """
        # The arguments ask for evaluation only with data for it.
        loader = self._loader(self.data.validation)
        started = time.monotonic()
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        tokens = 0.0
        with torch.no_grad():
            for batch in loader:
                if self.stop.asked.is_set():
                    break
                count = float(batch["labels"][:, 1:].ne(NO_LABEL).sum())
                with self.accelerator.autocast():
                    outputs = self.model(**self._prepare_inputs(batch))
                total += count * outputs.loss
                tokens += count
        asked = float(self.stop.asked.is_set())
        loss, tokens, asked = self.ranks.sum([total, tokens, asked])
        self.window.pause()
        if asked:
            self._stop_here()
            return {}
        metrics = {
            "eval_loss": loss / tokens,
            "eval_seconds": round(time.monotonic() - started, 3),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    # ---- metrics ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Also write a line of metrics.jsonl, with the loss of `step_done`: a resumed run continues it exactly."""
        # The Trainer's summary counts only the steps since the resume.
        if "train_runtime" in logs:
            return
        if "loss" in logs:
            logs |= self.window.take()
            if self.ranks.device.type == "cuda":
                peak_mib = torch.cuda.max_memory_allocated() / 2**20
                logs["peak_vram_mib"] = round(peak_mib, 1)
        super().log(logs, start_time)
        if not self.state.is_world_process_zero:
            return
        line: dict[str, Any] = {
            "step": self.state.global_step,
            "total_steps": self.state.max_steps,
            **logs,
        }
        line["epoch"] = round(self.state.epoch or 0.0, 4)
        line["total_epochs"] = self.state.num_train_epochs
        line["elapsed_seconds"] = round(time.monotonic() - self.started, 3)
        line["time"] = round(time.time(), 3)
        append_line(self.output / "metrics.jsonl", line)
        self.say(described(line))

    # ---- checkpoints ----

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Also write the place in the data, and the manifest after all ranks have written; only once a step."""
        step = self.state.global_step
        if step in self.saved:
            return
        self.saving = True
        folder = self.output / "checkpoints" / f"checkpoint-{step}"
        if self.args.should_save and folder.exists():
            remove(folder)  # an earlier run's
        self.ranks.barrier()
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            place = {
                **self.layout,
                "step": step,
                "steps_per_epoch": self._steps_per_epoch(),
                "optimizer": self.settings.optimizer.type,
                "losses": self.window.losses,
            }
            text = json.dumps(place, indent=2) + "\n"
            (folder / PROGRESS).write_text(text, encoding="utf-8")
            make_readable(folder)
        self.ranks.barrier()
        if self.args.should_save:
            write_manifest(
                folder,
                step=step,
                epoch=round(self.state.epoch or 0.0, 4),
                rank=self.ranks.rank,
                ranks=self.writers,
                world_size=self.ranks.world_size,
            )
            self._remove_old_checkpoints(folder)
        self.saving = False
        self.saved.add(step)
        self.say(f"saved {folder}")
        self.window.pause()

    def _remove_old_checkpoints(self, newest: Path) -> None:
        """Remove all but the last training.save_total_limit checkpoints up to the newest one."""
        limit = self.settings.training.save_total_limit
        if not limit:
            return
        known = whole_ones(newest.parent, "checkpoint-*")
        # Later ones belong to an earlier run, which went farther.
        of_this_run = known[: known.index(newest) + 1]
        for old in of_this_run[:-limit]:
            remove(old)

    def _steps_per_epoch(self) -> int:
        micro_steps = len(self.data.train) // sum(self.batch_sizes)
        steps = math.ceil(micro_steps / self.args.gradient_accumulation_steps)
        return max(1, steps)

    # ---- resume ----

    def _init_training_state(
        self,
        max_steps: int,
        steps_per_epoch: int,
        num_epochs: int,
        checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Return the epoch to go on in, and its micro-steps to skip.

        The Trainer's own assumes an unchanged number of steps an epoch.
        """
        epochs, skipped = super()._init_training_state(
            max_steps, steps_per_epoch, num_epochs, checkpoint, trial
        )
        if checkpoint is None:
            return epochs, skipped
        # The intervals of logging and saving are this run's, not the checkpoint's.
        self.state.compute_steps(self.args, max_steps)
        self.state.train_batch_size = self._train_batch_size
        place = self._place(checkpoint)
        changed = [key for key, value in self.layout.items() if place.get(key) != value]
        if changed:
            before = self.state.global_step
            step = self._same_part_of_epoch(steps_per_epoch, place)
            self.state.global_step = step
            epochs, steps_within = divmod(step, steps_per_epoch)
            skipped = steps_within * self.args.gradient_accumulation_steps
            names = ", ".join(key.replace("_", " ") for key in changed)
            self.say(
                f"resuming with other {names}: step {before} of the checkpoint is step {step} of this run, "
                f"at the same part of the epoch; some sequences of it may be seen twice or not at all"
            )
        else:
            self.window.losses = list(place["losses"])
        done = self.state.global_step
        rest = f"{done} of {max_steps} steps are done"
        if done >= max_steps:
            rest = f"step {done} of {max_steps} is reached, so nothing is left to train; ask for more epochs"
        self.say(f"resuming from {checkpoint}: {rest}")
        return epochs, skipped

    def _same_part_of_epoch(self, steps_per_epoch: int, place: dict[str, Any]) -> int:
        """Return this run's step at the same part of the epoch as the checkpoint's step."""
        steps_per_epoch_before = place.get("steps_per_epoch")
        if not steps_per_epoch_before:
            return int(self.state.epoch) * steps_per_epoch
        epoch, within = divmod(self.state.global_step, steps_per_epoch_before)
        return (
            epoch * steps_per_epoch + within * steps_per_epoch // steps_per_epoch_before
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimizer's moments, but keep this run's learning rate, decay and so on."""
        if checkpoint is None:
            return
        place = self._place(checkpoint)
        own_options = []
        for group in self.optimizer.param_groups:
            options = {key: value for key, value in group.items() if key != "params"}
            own_options.append(options)
        optimizer = self.settings.optimizer.type
        if place.get("optimizer", optimizer) == optimizer:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            self.say(
                f"another optimizer than the checkpoint's {place['optimizer']}: it begins anew"
            )
        if place.get("step") != self.state.global_step or "optimizer" not in place:
            self.lr_scheduler.last_epoch = self.state.global_step
        self.lr_scheduler.base_lrs = [options["initial_lr"] for options in own_options]
        step = self.lr_scheduler.last_epoch
        groups = self.optimizer.param_groups  # loading has made new ones
        factors = self.lr_scheduler.lr_lambdas
        for group, options, factor in zip(groups, own_options, factors, strict=True):
            group.update(options)
            group["lr"] = options["initial_lr"] * factor(step)
        self.lr_scheduler._last_lr = [group["lr"] for group in groups]

    def _place(self, checkpoint: str) -> dict[str, Any]:
        """Read PROGRESS of a checkpoint; empty for a checkpoint of another program."""
        path = Path(checkpoint) / PROGRESS
        if not path.exists():
            return {}
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def go(self, checkpoint: Path | None) -> bool:
        """Train from the beginning or from a checkpoint; return whether the training was completed."""
        self.started = time.monotonic()
        self.window.pause()
        if checkpoint and not (checkpoint / STATE).exists():
            self.say(
                f"{checkpoint} holds weights only: they are taken, and the training begins at step 0"
            )
            self._load_from_checkpoint(str(checkpoint))
            checkpoint = None
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not self.stopping:
            # Too late for a checkpoint by TERM: the rest takes only a moment.
            self.stop.agreed.set()
        return not self.stopping


class StepByStep(TrainerCallback):
    """A callback for the trainer's `step_done`, after the Trainer's own callback: so it decides last."""

    def __init__(self, trainer: ProductionTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.trainer.step_done()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Skip evaluation, saving and logging after an epoch broken off by TERM."""
        if self.trainer.stopping:
            control.should_evaluate = False
            control.should_save = False
            control.should_log = False


def make_readable(folder: Path) -> None:
    """Make all files readable for everybody, as the rest of a run: safetensors are written for their owner alone."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
