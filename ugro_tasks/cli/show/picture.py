"""The loss curve as a picture, drawn by matplotlib, an optional package."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import RecordError, ToolMissing, UsageError
from ...jobs.metrics import EVAL_LOSS, LOSS

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...reports.results import Results


KINDS = (".png", ".svg")


def draw(found: Results, target: str) -> Path:
    """Draw train and eval loss over the steps into a .png or .svg file; no display is needed.

    Raises UsageError for another kind of file or one that cannot be written, RecordError if no loss
    was logged, ToolMissing without matplotlib.
    """
    path = _picture_path(target)
    curves = {
        LOSS: (found.metrics.train, "-", "tab:blue"),
        EVAL_LOSS: (found.metrics.evaluation, "D--", "tab:purple"),
    }
    if not any(points for points, _, _ in curves.values()):
        raise RecordError(
            f"{found.job_id} has logged no loss, so there is nothing to draw"
        )
    figure = _new_figure()
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    axes.set_title(found.job_id, parse_math=False)
    for label, (points, style, colour) in curves.items():
        if not points:
            continue
        steps = [point.step for point in points]
        values = [point.value for point in points]
        axes.plot(
            steps, values, style, label=label, color=colour, linewidth=1.2, markersize=4
        )
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"--plot {target}: {error.strerror}") from error
    return path


def _picture_path(target: str) -> Path:
    try:
        path = Path(target).expanduser()
    except RuntimeError as error:  # ~somebody, without a home
        raise UsageError(f"--plot {target}: {error}") from error
    if path.suffix.lower() not in KINDS:
        raise UsageError(
            f"--plot {target}: name a file that ends in {' or '.join(KINDS)}"
        )
    return path


def _new_figure() -> Any:
    try:
        from matplotlib.figure import Figure  # late: it takes longer than all the rest
    except ImportError as error:
        install = shlex.join([sys.executable, "-m", "pip", "install", "matplotlib"])
        raise ToolMissing(
            f"--plot draws with matplotlib, which is not installed here; install it: {install}"
        ) from error
    return Figure(figsize=(8, 5), dpi=150, layout="constrained")
