"""What came of a job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .chart import MARK, chart
from .console import Printer
from .format import byte_size, clock, coloured, columns, duration, open_console, short, show_json, shown
from .status import show_cause

if TYPE_CHECKING:  # what is only shown need not be loaded for what is not
    from ...jobs.gpu_use import CardUse
    from ...jobs.metrics import Metrics
    from ...reports.results import Kept, Results


CHART_WIDTH = 100  # at most


def show_results(found: Results, *, as_json: bool) -> None:
    """What came of a job: its parameters, curve, metrics, nodes, attempts, checkpoints and logs."""
    if as_json:
        return show_json(found)
    console, record = open_console(), found.record
    console.print(
        f"[bold]{shown(found.job_id)}[/]  {coloured(found.state.phase)}  {duration(found.state.seconds)}"
    )
    rows = {
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
    for key, value in rows.items():
        console.print(f"  {key:14} {shown(value)}")
    _show_curve(console, found.metrics)
    _section(console, "metrics", _metric_rows(found.metrics))
    _section(console, "nodes", _node_rows(found), _NODE_HEADS)
    if len(found.state.attempts) > 1:
        _section(console, "attempts", _attempt_rows(found))
    _section(console, "checkpoints", map(_checkpoint_row, found.checkpoints), _CHECKPOINT_HEADS)
    _section(console, "logs", ([name, byte_size(size)] for name, size in found.logs.items()))
    show_cause(console, found.state)
    return None


def _section(console: Printer, title: str, rows: Iterable[list[str]], heads: list[str] | None = None) -> None:
    lines = list(rows)
    console.print(f"[bold]{title}[/]" + ("" if lines else ": none"))
    if lines:
        columns(console, [heads, *lines] if heads else lines, heads=bool(heads), indent="  ")


def _show_curve(console: Printer, metrics: Metrics) -> None:
    rows = chart(metrics.train, metrics.evaluation, width=min(CHART_WIDTH, console.width))
    if rows:
        marks = f"   [magenta]{MARK}[/] eval_loss" if metrics.evaluation else ""
        console.print(f"[bold]loss[/]{marks}")
    for row in rows:
        console.print(row)
    if metrics.astray:
        console.print(f"[red]the loss was no number from step {metrics.astray.step:.12g} on, or at times[/]")


def _metric_rows(metrics: Metrics) -> Iterator[list[str]]:
    for key, value in metrics.last.items():
        best = metrics.best.get(key)
        yield [key, short(value), f"best {best.value:.6g} at step {best.step:.12g}" if best else ""]


_NODE_HEADS = [
    "node", "rank", "batch", "tokens/s (median)", "card", "GPU use", "peak memory", "power", "hottest",
]  # fmt: skip


def _node_rows(found: Results) -> Iterator[list[str]]:
    for node in found.nodes:
        rank = "left behind" if node.rank is None and found.record.plan else _count(node.rank)
        mine = [node.node, rank, _count(node.batch_size), _count(node.tokens_per_second)]
        yield [*mine, *(_card_cells(node.cards[0]) if node.cards else ["no samples", "", "", "", ""])]
        for card in node.cards[1:]:
            yield ["", "", "", "", *_card_cells(card)]
    if found.metrics.tokens_per_second is not None:
        batch = sum(node.batch_size or 0 for node in found.nodes)
        yield ["together", "", _count(batch), _count(found.metrics.tokens_per_second), "", "", "", "", ""]


def _card_cells(card: CardUse) -> list[str]:
    return [
        card.name,
        _mean_and_max(card.utilization_mean_percent, card.utilization_max_percent, "%"),
        f"{_count(card.memory_peak_mib)} of {_count(card.memory_total_mib)} MiB",
        _mean_and_max(card.power_mean_watts, card.power_max_watts, "W"),
        f"{_count(card.temperature_max_celsius)} °C",
    ]


def _mean_and_max(mean: float | None, most: float | None, unit: str) -> str:
    return "-" if mean is None else f"{_count(mean)} {unit}, max {_count(most)} {unit}"


def _attempt_rows(found: Results) -> Iterator[list[str]]:
    for attempt in found.state.attempts:
        since = f"from {attempt.resume.checkpoint}" if attempt.resume else "from the beginning"
        lasted = duration(attempt.ended_at - attempt.began_at) if attempt.ended_at else "goes on"
        cause = attempt.cause.message.partition("\n")[0] if attempt.cause else ""
        yield [str(attempt.number), clock(attempt.began_at), lasted, ",".join(attempt.nodes), since, cause]


_CHECKPOINT_HEADS = ["name", "step", "size", "whole", "ranks", "nodes", "where"]


def _checkpoint_row(line: Kept) -> list[str]:
    whole = "no manifest tells" if line.whole is None else "yes" if line.whole else f"no: {line.missing}"
    return [
        line.name,
        "" if line.step is None else str(line.step),
        byte_size(line.bytes),
        whole,
        ",".join(map(str, line.ranks)),
        ",".join(line.nodes),
        line.path,
    ]


def _count(value: float | None) -> str:
    """As in 5,230 or 3.1; a dash where there is none."""
    return (
        "-"
        if value is None
        else f"{value:,.0f}"
        if abs(value) >= 10 or value == int(value)
        else f"{value:.2g}"
    )
