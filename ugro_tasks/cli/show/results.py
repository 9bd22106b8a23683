"""The output of `inv results`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ...text import printable_lines
from .chart import MARK, MARK_COLOUR, chart
from .console import Piece, Printer, open_console, style
from .format import columns, show_json
from .status import show_cause, show_job_head
from .values import byte_size, clock, duration, mean_and_max, number, short

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...jobs.gpu_use import CardUse
    from ...jobs.metrics import Metrics
    from ...jobs.state import Attempt
    from ...reports.results import CheckpointRow, NodeUse, Results


CHART_WIDTH = 100  # at most
NODE_HEADS = [
    "node", "rank", "batch", "tokens/s (median)", "card", "GPU use", "peak memory", "power", "hottest",
]  # fmt: skip
CHECKPOINT_HEADS = ["name", "step", "size", "whole", "ranks", "nodes", "where"]
NO_CARD_CELLS = ["no samples", "", "", "", ""]


def show_results(found: Results, *, as_json: bool) -> None:
    """Print parameters, loss curve, metrics, nodes, attempts, checkpoints and logs of a job."""
    if as_json:
        return show_json(found)
    console = open_console()
    show_job_head(console, found.job_id, found.state)
    for key, value in _parameters(found).items():
        console.print(f"  {key:14} {printable_lines(value)}")
    _show_curve(console, found.metrics)
    _show_section(console, "metrics", _metric_rows(found.metrics))
    _show_section(console, "nodes", _node_rows(found), NODE_HEADS)
    if len(found.state.attempts) > 1:
        _show_section(console, "attempts", map(_attempt_row, found.state.attempts))
    _show_section(
        console,
        "checkpoints",
        map(_checkpoint_row, found.checkpoints),
        CHECKPOINT_HEADS,
    )
    _show_section(
        console, "logs", ([name, byte_size(size)] for name, size in found.logs.items())
    )
    show_cause(console, found.state)
    return None


def _show_section(
    console: Printer,
    title: str,
    rows: Iterable[list[str]],
    heads: list[str] | None = None,
) -> None:
    lines = list(rows)
    if not lines:
        console.print(style(title, "bold"), ": none")
        return
    console.print(style(title, "bold"))
    if heads:
        columns(console, [heads, *lines], indent="  ")
    else:
        columns(console, lines, heads=False, indent="  ")


def _show_curve(console: Printer, metrics: Metrics) -> None:
    rows = chart(
        metrics.train, metrics.evaluation, width=min(CHART_WIDTH, console.width)
    )
    if rows:
        title: list[Piece] = [style("loss", "bold")]
        if metrics.evaluation:
            title += ["   ", style(MARK, MARK_COLOUR), " eval_loss"]
        console.print(*title)
    for row in rows:
        console.print(*row)
    if metrics.first_nonfinite:
        words = f"the loss was no number from step {metrics.first_nonfinite.step:.12g} on, or at times"
        console.print(style(words, "red"))
    if metrics.unreadable_lines:
        words = (
            f"lines of metrics.jsonl that could not be read: {metrics.unreadable_lines}"
        )
        console.print(style(words, "yellow"))


def _parameters(found: Results) -> dict[str, str]:
    record = found.record
    return {
        "folder": found.folder,
        "script": record.script,
        "model": record.model,
        "data set": record.dataset,
        "epochs": str(record.epochs),
        "learning rate": f"{record.learning_rate:g}",
        "nodes": ", ".join(record.nodes),
        "started": record.started_at,
        "code": f"sha256 {record.code.sha256[:12]}, git {(record.code.git_commit or 'none')[:12]}",
    }


def _metric_rows(metrics: Metrics) -> Iterator[list[str]]:
    for key, value in metrics.last.items():
        best = metrics.best.get(key)
        best_words = ""
        if best:
            best_words = f"best {best.value:.6g} at step {best.step:.12g}"
        yield [key, short(value), best_words]


def _node_rows(found: Results) -> Iterator[list[str]]:
    """Yield a row for each node, one for each further card, and the sum of all nodes."""
    for node in found.nodes:
        cards = [_card_cells(card) for card in node.cards] or [NO_CARD_CELLS]
        rank = _rank(node, planned=found.record.plan is not None)
        yield [
            node.node,
            rank,
            number(node.batch_size),
            number(node.tokens_per_second),
            *cards[0],
        ]
        for cells in cards[1:]:
            yield ["", "", "", "", *cells]
    together = found.metrics.tokens_per_second
    if together is not None:
        batch = sum(node.batch_size or 0 for node in found.nodes)
        yield ["together", "", number(batch), number(together), "", "", "", "", ""]


def _rank(node: NodeUse, *, planned: bool) -> str:
    if node.rank is None and planned:
        return "left behind"
    return number(node.rank)


def _card_cells(card: CardUse) -> list[str]:
    return [
        card.name,
        mean_and_max(card.utilization_mean_percent, card.utilization_max_percent, "%"),
        f"{number(card.memory_peak_mib)} of {number(card.memory_total_mib)} MiB",
        mean_and_max(card.power_mean_watts, card.power_max_watts, "W"),
        f"{number(card.temperature_max_celsius)} °C",
    ]


def _attempt_row(attempt: Attempt) -> list[str]:
    since = "from the beginning"
    if attempt.resume:
        since = f"from {attempt.resume.checkpoint}"
    lasted = "goes on"
    if attempt.ended_at:
        lasted = duration(attempt.ended_at - attempt.began_at)
    cause = ""
    if attempt.cause:
        cause = attempt.cause.message.partition("\n")[0]
    nodes = ",".join(attempt.nodes)
    return [str(attempt.number), clock(attempt.began_at), lasted, nodes, since, cause]


def _checkpoint_row(line: CheckpointRow) -> list[str]:
    return [
        line.name,
        "" if line.step is None else str(line.step),
        byte_size(line.bytes),
        _wholeness(line),
        ",".join(map(str, line.ranks)),
        ",".join(line.nodes),
        line.path,
    ]


def _wholeness(line: CheckpointRow) -> str:
    if line.whole is None:
        return "no manifest tells"
    if line.whole:
        return "yes"
    return f"no: {line.missing}"
