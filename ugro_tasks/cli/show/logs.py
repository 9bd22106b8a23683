"""The output of `inv logs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...text import printable
from .format import note

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...jobs.experiment import Experiment


def show_log_tails(experiment: Experiment, tails: dict[int, list[str]]) -> None:
    """Print the last lines of each rank."""
    if not tails:
        note(f"{experiment.job_id} has printed nothing yet")
    for rank, lines in tails.items():
        if len(tails) > 1:
            print(f"--- {experiment.log(rank).path.name} ---")
        for line in lines:
            print(printable(line))
