"""transformers' Trainer with uneven micro-batches, an end by TERM, exact resume, metrics.jsonl and manifests.

Each overridden method says why; the rest is the Trainer's own. Written against transformers 5.23: methods with an
underscore may change, so check them again when the pin in requirements.txt moves.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from .checkpoints import remove, whole_ones, write_manifest
from .data import NO_LABEL, Data, Loader, RankBatches
from .gang import Gang
from .preflight import STATE, Inputs
from .stopping import GRACE_SECONDS, Stop

PROGRESS = "progress.json"  # in a checkpoint: its place in the data
LEAST_SECONDS_TO_AGREE = 3.0


@dataclass
class Window:
    """The sums since the last line of metrics."""

    losses: list[float] = field(default_factory=list)  # of each step
    tokens: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    mark: float = field(default_factory=time.monotonic)

    def add(self, loss: float, tokens: float, samples: int) -> float:
        """Add a step and return its seconds."""
        now = time.monotonic()
        took = now - self.mark
        self.losses.append(loss)
        self.tokens, self.samples, self.seconds = (
            self.tokens + tokens,
            self.samples + samples,
            self.seconds + took,
        )
        self.mark = now
        return took

    def pause(self) -> None:
        """Drop the time since the last step: it was spent on a checkpoint or an evaluation."""
        self.mark = time.monotonic()

    def take(self) -> dict[str, float]:
        """Return the numbers of a line of metrics, and start a new window."""
        seconds = max(self.seconds, 1e-9)
        line = {
            "loss": sum(self.losses) / len(self.losses),
            "tokens_per_second": round(self.tokens / seconds, 1),
            "samples_per_second": round(self.samples / seconds, 3),
        }
        self.losses, self.tokens, self.samples, self.seconds = [], 0.0, 0, 0.0
        return line


class ProductionTrainer(Trainer):
    """The Trainer of one rank, with micro-batches of its own size."""

    def __init__(
        self,
        *,
        settings: SimpleNamespace,
        inputs: Inputs,
        data: Data,
        gang: Gang,
        output: Path,
        say: Callable[[str], None],
        **options: Any,
    ) -> None:
        super().__init__(
            train_dataset=data.train, eval_dataset=data.validation, **options
        )
        self.gang, self.say, self.settings = gang, say, settings
        self.batch_sizes, self.data, self.output = inputs.batch_sizes, data, output
        self.stop = Stop(
            lambda line: print(line, flush=True), agree_seconds=self._seconds_to_agree
        )
        self.stopping = self.saving = False
        self.window = Window()
        self.started = time.monotonic()
        self.step_seconds = self.step_tokens = 0.0
        self.step_loss: torch.Tensor | float = 0.0
        self.saved: set[int] = set()
        # Ranks on one node share its folder, and the first of them writes for all.
        writers = self.gang.gather(self.args.should_save)
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
        batches = RankBatches(
            len(self.data.train),
            self.batch_sizes,
            self.gang.rank,
            self.settings.training.seed,
        )
        return Loader(
            self.data.train,
            batches,
            self._pad_id,
            pin_memory=self.gang.device.type == "cuda",
        )

    @property
    def _pad_id(self) -> int:
        return int(self.processing_class.pad_token_id)

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
        loss, tokens, asked = self.gang.sum([self.step_loss, self.step_tokens, asked])
        self.step_loss = self.step_tokens = 0.0
        micro_steps = self.current_gradient_accumulation_steps
        # A rank's loss is its share of the sum over tokens, times the number of ranks.
        took = self.window.add(
            loss / self.gang.world_size, tokens, micro_steps * sum(self.batch_sizes)
        )
        self.step_seconds = took
        if self.state.global_step >= self.state.max_steps:
            self.control.should_log = True
        if asked:
            self._stop_here()

    def _stop_here(self) -> None:
        self.stop.agreed.set()
        self.stopping = True
        self.control.should_save = self.control.should_training_stop = True

    def _seconds_to_agree(self) -> float:
        # While a checkpoint is written there is no step for the ranks to agree in.
        return (
            GRACE_SECONDS
            if self.saving
            else LEAST_SECONDS_TO_AGREE + 2 * self.step_seconds
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the mean loss over all tokens of the validation set; each rank evaluates its share.

        The Trainer's own gives all ranks the same share, and weights batches alike regardless of their tokens.
        """
        batches = RankBatches(
            len(self.data.validation or ()), self.batch_sizes, self.gang.rank
        )
        loader = Loader(
            self.data.validation,
            batches,
            self._pad_id,
            pin_memory=self.gang.device.type == "cuda",
        )
        started = time.monotonic()
        self.model.eval()
        total, tokens = (
            torch.zeros((), dtype=torch.float64, device=self.gang.device),
            0.0,
        )
        with torch.no_grad():
            for batch in loader:
                if self.stop.asked.is_set():
                    break
                count = float(batch["labels"][:, 1:].ne(NO_LABEL).sum())
                with self.accelerator.autocast():
                    total += count * self.model(**self._prepare_inputs(batch)).loss
                tokens += count
        loss, tokens, asked = self.gang.sum(
            [total, tokens, float(self.stop.asked.is_set())]
        )
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
            if self.gang.device.type == "cuda":
                logs["peak_vram_mib"] = round(
                    torch.cuda.max_memory_allocated() / 2**20, 1
                )
        super().log(logs, start_time)
        if not self.state.is_world_process_zero:
            return
        line: dict[str, Any] = {
            "step": self.state.global_step,
            "total_steps": self.state.max_steps,
        }
        line |= logs
        line |= {
            "epoch": round(self.state.epoch or 0.0, 4),
            "total_epochs": self.state.num_train_epochs,
        }
        line["elapsed_seconds"] = round(time.monotonic() - self.started, 3)
        line["time"] = round(time.time(), 3)
        # One write in append mode: a follower of the file never reads half a line.
        with open(self.output / "metrics.jsonl", "ab", buffering=0) as metrics:
            metrics.write(json.dumps(line).encode() + b"\n")
        where = f"step {line['step']}/{line['total_steps']}, epoch {line['epoch']:g}/{line['total_epochs']}"
        if "eval_loss" in line:
            perplexity = math.exp(min(line["eval_loss"], 100.0))
            self.say(
                f"{where}: eval loss {line['eval_loss']:.4f}, perplexity {perplexity:,.2f}"
            )
        else:
            numbers = (
                f"loss {line['loss']:.4f}, learning rate {line['learning_rate']:.3g}"
            )
            self.say(f"{where}: {numbers}, {line['tokens_per_second']:,.0f} tokens/s")

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
        self.gang.barrier()
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            place = {
                **self.layout,
                "step": step,
                "steps_per_epoch": self._steps_per_epoch(),
            }
            place |= {
                "optimizer": self.settings.optimizer.type,
                "losses": self.window.losses,
            }
            (folder / PROGRESS).write_text(
                json.dumps(place, indent=2) + "\n", encoding="utf-8"
            )
            make_readable(folder)
        self.gang.barrier()
        if self.args.should_save:
            write_manifest(
                folder,
                step=step,
                epoch=round(self.state.epoch or 0.0, 4),
                rank=self.gang.rank,
                ranks=self.writers,
                world_size=self.gang.world_size,
            )
            if limit := self.settings.training.save_total_limit:
                known = whole_ones(folder.parent, "checkpoint-*")
                # Later ones belong to an earlier run, which went farther.
                for old in known[: known.index(folder) + 1][:-limit]:
                    remove(old)
        self.saving = False
        self.saved.add(step)
        self.say(f"saved {folder}")
        self.window.pause()

    def _steps_per_epoch(self) -> int:
        micro_steps = len(self.data.train) // sum(self.batch_sizes)
        return max(1, -(-micro_steps // self.args.gradient_accumulation_steps))

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
        if changed := [
            key for key, value in self.layout.items() if place.get(key) != value
        ]:
            before, of_before = self.state.global_step, place.get("steps_per_epoch")
            whole, part = (
                divmod(before, of_before) if of_before else (int(self.state.epoch), 0)
            )
            step = whole * steps_per_epoch + (
                part * steps_per_epoch // of_before if part else 0
            )
            self.state.global_step = step
            epochs, skipped = (
                step // steps_per_epoch,
                step % steps_per_epoch * self.args.gradient_accumulation_steps,
            )
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

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimizer's moments, but keep this run's learning rate, decay and so on."""
        if checkpoint is None:
            return
        place = self._place(checkpoint)
        before = self.optimizer.param_groups
        own = [
            {key: value for key, value in group.items() if key != "params"}
            for group in before
        ]
        if (
            place.get("optimizer", self.settings.optimizer.type)
            == self.settings.optimizer.type
        ):
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            self.say(
                f"another optimizer than the checkpoint's {place['optimizer']}: it begins anew"
            )
        if place.get("step") != self.state.global_step or "optimizer" not in place:
            self.lr_scheduler.last_epoch = self.state.global_step
        self.lr_scheduler.base_lrs = [values["initial_lr"] for values in own]
        at = self.lr_scheduler.last_epoch
        groups = self.optimizer.param_groups  # loading has made new ones
        for group, values, factor in zip(
            groups, own, self.lr_scheduler.lr_lambdas, strict=True
        ):
            group.update(values, lr=values["initial_lr"] * factor(at))
        self.lr_scheduler._last_lr = [group["lr"] for group in groups]

    def _place(self, checkpoint: str) -> dict[str, Any]:
        """Read PROGRESS of a checkpoint; empty for a checkpoint of another program."""
        path = Path(checkpoint) / PROGRESS
        return (
            dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        )

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
            control.should_evaluate = control.should_save = control.should_log = False


def make_readable(folder: Path) -> None:
    """Make all files readable for everybody, as the rest of a run: safetensors are written for their owner alone."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
