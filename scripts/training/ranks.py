"""The ranks of a run: this rank's place among them, and their agreements."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .faults import Fault

# One rank may have to download a model while the others wait.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This rank and its connection to all others."""

    rank: int
    world_size: int
    device: torch.device
    name: str  # of the node

    @classmethod
    def join(cls) -> Ranks:
        """Wait for all ranks and return this one; with plain python, it is alone.

        Raises Fault on all ranks if only some have a GPU.
        """
        rank = int(os.environ.get("RANK", "0"))
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # CUDA_VISIBLE_DEVICES="" asks for the CPU.
        use_cuda = torch.cuda.device_count() >= local_world_size
        device = torch.device("cpu")
        if use_cuda:
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        name = os.environ.get("UGRO_NODE") or socket.gethostname()
        ranks = cls(rank, world_size, device, name)
        if "RANK" in os.environ:
            store, *_ = next(dist.rendezvous("env://", timeout=PATIENCE))
            _refuse_mixed(store, rank, world_size, device)
            dist.init_process_group(
                "nccl" if use_cuda else "gloo",
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=PATIENCE,
                device_id=device if use_cuda else None,
            )
        if not use_cuda:
            ranks._share_cores()
        return ranks

    @property
    def have_group(self) -> bool:
        """Tell whether there is a process group, even of one rank."""
        return dist.is_initialized()

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks."""
        if not self.have_group:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def sum(self, values: list[float | torch.Tensor]) -> list[float]:
        """Sum each number over all ranks, with one message."""
        numbers = [
            torch.as_tensor(value, dtype=torch.float64, device=self.device)
            for value in values
        ]
        total = torch.stack(numbers)
        if self.have_group:
            dist.all_reduce(total)
        return [float(number) for number in total.tolist()]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.have_group:
            dist.barrier()

    def all_or_none(self, step: Callable[[], Any]) -> Any:
        """Return the result of `step` if it worked on every rank.

        Otherwise raise Fault on all of them, with the message of the first faulty rank. So no rank waits for one
        already gone.
        """
        result = None
        own_fault = None
        try:
            result = step()
        except Fault as error:
            own_fault = str(error)
        faults = self.all_gather(own_fault)
        faulty_ranks = [rank for rank, fault in enumerate(faults) if fault]
        if not faulty_ranks:
            return result
        first = faulty_ranks[0]
        if len(set(faults)) == 1:
            raise Fault(faults[first])
        raise Fault(f"rank {first}: {faults[first]}")

    def require_same(self, value: str, what: str) -> None:
        """Raise Fault on all ranks unless `value` is the same everywhere."""
        answers = self.all_gather((value, self.name))
        first_value, first_name = answers[0]
        different = []
        for rank, (other, name) in enumerate(answers):
            if other != first_value:
                different.append(f"rank {rank} ({name})")
        if different:
            raise Fault(
                f"{what} of {', '.join(different)} is another than that of rank 0 ({first_name})"
            )

    def _share_cores(self) -> None:
        """Limit torch to this rank's part of the machine's cores, unless OMP_NUM_THREADS is set."""
        if "OMP_NUM_THREADS" in os.environ:
            return
        # Namespaces and containers of one machine have host names of their own, but one boot id.
        boot_id = Path("/proc/sys/kernel/random/boot_id")
        machine = boot_id.read_text() if boot_id.exists() else socket.gethostname()
        cores = os.cpu_count() or 1
        if hasattr(os, "sched_getaffinity"):
            cores = len(os.sched_getaffinity(0))
        ranks_here = self.all_gather(machine).count(machine)
        threads = max(1, cores // ranks_here)
        torch.set_num_threads(threads)
        # Otherwise accelerate decides once more, and warns.
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _refuse_mixed(store: Any, rank: int, world_size: int, device: torch.device) -> None:
    """Raise Fault on all ranks if only some have a GPU: their backends would wait for each other."""
    store.set(f"device_of_{rank}", device.type)
    kinds = [store.get(f"device_of_{other}").decode() for other in range(world_size)]
    if len(set(kinds)) > 1:
        without = [str(other) for other, kind in enumerate(kinds) if kind == "cpu"]
        raise Fault(
            f"rank {', '.join(without)} found no GPU, but the others did; leave those nodes out, or hide all GPUs with "
            '--env CUDA_VISIBLE_DEVICES=""'
        )
