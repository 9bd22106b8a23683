"""The lines of metrics.jsonl, and the sums for them."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
        self.tokens += tokens
        self.samples += samples
        self.seconds += took
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
        self.losses = []
        self.tokens = 0.0
        self.samples = 0
        self.seconds = 0.0
        return line


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a line of JSON, by one write in append mode: a follower of the file never reads half a line."""
    with open(path, "ab", buffering=0) as metrics:
        metrics.write(json.dumps(line).encode() + b"\n")


def described(line: dict[str, Any]) -> str:
    """Return a line of ProductionTrainer's metrics for people."""
    step = f"step {line['step']}/{line['total_steps']}"
    epoch = f"epoch {line['epoch']:g}/{line['total_epochs']}"
    if "eval_loss" in line:
        perplexity = math.exp(min(line["eval_loss"], 100.0))
        numbers = f"eval loss {line['eval_loss']:.4f}, perplexity {perplexity:,.2f}"
    else:
        loss = f"loss {line['loss']:.4f}"
        rate = f"learning rate {line['learning_rate']:.3g}"
        numbers = f"{loss}, {rate}, {line['tokens_per_second']:,.0f} tokens/s"
    return f"{step}, {epoch}: {numbers}"
