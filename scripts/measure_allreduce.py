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

RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
print(f"measure_allreduce: rank {RANK} of {WORLD_SIZE}, importing torch", flush=True)

import torch  # noqa: E402  (late on purpose: the line above shows the rank's start at once)
import torch.distributed as dist  # noqa: E402
from torch.distributed.elastic.multiprocessing.errors import record  # noqa: E402

ALLREDUCE_BYTES, PAIR_BYTES = 16 * 2**20, 4 * 2**20
SMALL_ROUNDS, LARGE_ROUNDS = 50, 5
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
    large = message.numel() > 1
    rounds = (
        min(LARGE_ROUNDS, int(BUDGET_SECONDS / float(first))) if large else SMALL_ROUNDS
    )
    return statistics.median(once() for _ in range(max(1, rounds)))


def there_and_back(pair: tuple[int, int], message: torch.Tensor) -> None:
    for source, target in (pair, pair[::-1]):
        if source == RANK:
            dist.send(message, target)
        else:
            dist.recv(message, source)


def tell(kind: str, line: str, **figures: Any) -> None:
    if RANK != 0:
        return
    print(line, flush=True)
    path = Path(os.environ.get("UGRO_OUTPUT_DIR", "output")) / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(
        path, "ab", buffering=0
    ) as metrics:  # one write: no reader meets half a line
        metrics.write(
            json.dumps({"kind": kind, **figures, "time": time.time()}).encode() + b"\n"
        )


def measure(device: torch.device) -> None:
    hosts: list[Any] = [None] * WORLD_SIZE
    dist.all_gather_object(hosts, socket.gethostname())
    large = torch.zeros(ALLREDUCE_BYTES // 4, device=device)

    latency_us = median_seconds(dist.all_reduce, large[:1]) * 1e6
    speed = ALLREDUCE_BYTES / median_seconds(dist.all_reduce, large) / 1e6
    bus = speed * 2 * (WORLD_SIZE - 1) / WORLD_SIZE
    backend = dist.get_backend()
    tell(
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
            for i, message in enumerate((large[:1], large[: PAIR_BYTES // 4])):
                figures[i] = median_seconds(partial(there_and_back, pair), message)
        # Gives rank 0 the figures, and lets no pair start before the last has ended.
        dist.broadcast(figures, pair[0])
        ends = [hosts[rank] for rank in pair]
        round_trip_ms, speed = (
            float(figures[0]) * 1e3,
            2 * PAIR_BYTES / float(figures[1]) / 1e6,
        )
        tell(
            "pair",
            f"{' <-> '.join(ends)}: {round_trip_ms:.2f} ms there and back, {speed:,.0f} MB/s",
            ranks=pair,
            hosts=ends,
            round_trip_ms=round(round_trip_ms, 3),
            bandwidth_mb_per_second=round(speed, 1),
        )


@record
def main() -> None:
    use_cuda = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = torch.device(
        f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if use_cuda else "cpu"
    )
    backend, device_id = ("nccl", device) if use_cuda else ("gloo", None)
    # Ranks without a connection within a minute have no network to measure.
    dist.init_process_group(backend, timeout=timedelta(minutes=1), device_id=device_id)
    try:
        measure(device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
    # Without Python's own shutdown, in which a thread of gloo can abort the process (torch 2.13).
    sys.stdout.flush()
    os._exit(0)
