"""Measure the network between the ranks, with the same backend as a training.

    torchrun --nproc-per-node 2 scripts/measure_allreduce.py

Rank 0 appends to $UGRO_OUTPUT_DIR/metrics.jsonl (default ./output) one {"kind": "allreduce"} over
all ranks and one {"kind": "pair", "ranks": [a, b]} a pair. An MB is 1e6 bytes. The bandwidth of the
bus is that of nccl-tests, size / seconds * 2 (n - 1) / n, for comparison with a link's own speed.
"""
# mypy: allow-untyped-decorators, disable-error-code="import-not-found"

import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

RANK = int(os.environ["RANK"])
WORLD_SIZE = int(os.environ["WORLD_SIZE"])
print(f"measure_allreduce: rank {RANK} of {WORLD_SIZE}, importing torch", flush=True)

import torch  # noqa: E402  (late on purpose: the line above shows the rank's start at once)
import torch.distributed as dist  # noqa: E402
from torch.distributed.elastic.multiprocessing.errors import record  # noqa: E402

ALLREDUCE_BYTES = 16 * 2**20
PAIR_BYTES = 4 * 2**20
FLOAT32_BYTES = 4
SMALL_ROUNDS = 50
LARGE_ROUNDS = 5
# For the rounds of a large message; a slow network gets fewer, at least one.
BUDGET_SECONDS = 1.0


def median_seconds(
    operation: Callable[[torch.Tensor], object], message: torch.Tensor
) -> float:
    """Return the median seconds of the operation, over the same number of rounds on all of its ranks."""

    def once() -> float:
        begin = time.perf_counter()
        operation(message)
        if message.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    # The first round opens connections, and is not counted.
    first = torch.tensor([once()], device=message.device)
    # All-reduced or sent to and fro, the figure is then the same on all of its ranks.
    operation(first)
    rounds = SMALL_ROUNDS
    if message.numel() > 1:
        within_budget = int(BUDGET_SECONDS / float(first))
        rounds = max(1, min(LARGE_ROUNDS, within_budget))
    return statistics.median(once() for _ in range(rounds))


def there_and_back(pair: tuple[int, int], message: torch.Tensor) -> None:
    """Send a message from the first rank of the pair to the second, and back."""
    for source, target in (pair, pair[::-1]):
        if source == RANK:
            dist.send(message, target)
        else:
            dist.recv(message, source)


def report(kind: str, line: str, **figures: Any) -> None:
    """Print the line and append the figures to metrics.jsonl, on rank 0."""
    if RANK != 0:
        return
    print(line, flush=True)
    path = Path(os.environ.get("UGRO_OUTPUT_DIR", "output")) / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"kind": kind, **figures, "time": time.time()}
    # One write: no reader sees half a line.
    with open(path, "ab", buffering=0) as metrics:
        metrics.write(json.dumps(entry).encode() + b"\n")


def measure(device: torch.device) -> None:
    hosts: list[Any] = [None] * WORLD_SIZE
    dist.all_gather_object(hosts, socket.gethostname())
    large = torch.zeros(ALLREDUCE_BYTES // FLOAT32_BYTES, device=device)
    one = large[:1]

    latency_us = median_seconds(dist.all_reduce, one) * 1e6
    seconds = median_seconds(dist.all_reduce, large)
    speed = ALLREDUCE_BYTES / seconds / 1e6
    bus = speed * 2 * (WORLD_SIZE - 1) / WORLD_SIZE
    backend = dist.get_backend()
    report(
        "allreduce",
        f"all-reduce over {WORLD_SIZE} ranks, {backend}: {latency_us:,.0f} us for 4 bytes,"
        f" {speed:,.0f} MB/s for 16 MiB, bus {bus:,.0f} MB/s",
        hosts=hosts,
        backend=backend,
        latency_us=round(latency_us, 1),
        bandwidth_mb_per_second=round(speed, 1),
        bus_bandwidth_mb_per_second=round(bus, 1),
    )

    for pair in combinations(range(WORLD_SIZE), 2):
        figures = torch.zeros(2, dtype=torch.float64, device=device)
        if RANK in pair:
            operation = partial(there_and_back, pair)
            figures[0] = median_seconds(operation, one)
            figures[1] = median_seconds(operation, large[: PAIR_BYTES // FLOAT32_BYTES])
        # Gives rank 0 the figures, and lets no pair start before the last has ended.
        dist.broadcast(figures, pair[0])
        ends = [hosts[rank] for rank in pair]
        round_trip_ms = float(figures[0]) * 1e3
        speed = 2 * PAIR_BYTES / float(figures[1]) / 1e6
        report(
            "pair",
            f"{' <-> '.join(ends)}: {round_trip_ms:.2f} ms there and back, {speed:,.0f} MB/s",
            ranks=pair,
            hosts=ends,
            round_trip_ms=round(round_trip_ms, 3),
            bandwidth_mb_per_second=round(speed, 1),
        )


@record
def main() -> None:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    use_cuda = torch.cuda.device_count() >= local_ranks
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    dist.init_process_group(
        "nccl" if use_cuda else "gloo",
        # Ranks without a connection within a minute have no network to measure.
        timeout=timedelta(minutes=1),
        device_id=device if use_cuda else None,
    )
    try:
        measure(device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
    # Without Python's own shutdown, in which a thread of gloo can abort the process (torch 2.13).
    sys.stdout.flush()
    os._exit(0)
