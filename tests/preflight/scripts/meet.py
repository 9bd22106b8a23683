"""Three ranks find each other and add up a number: what a training needs of its machines, and nothing else."""

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed

OPEN_FILES = 300  # as the workers of a data loader have

parser = argparse.ArgumentParser()
for flag in (
    "--model-name",
    "--dataset-name",
    "--num-epochs",
    "--learning-rate",
    "--job-id",
):
    parser.add_argument(flag)
parser.parse_args()

held = [os.open(os.devnull, os.O_RDONLY) for _ in range(OPEN_FILES)]
torch.distributed.init_process_group("gloo")
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
total = torch.full((1 << 16,), float(rank + 1))  # more than one packet
torch.distributed.all_reduce(total)
print(f"rank {rank} of {world}: the sum is {total[-1]:g}", flush=True)
if "UGRO_OUTPUT_DIR" in os.environ:
    Path(os.environ["UGRO_OUTPUT_DIR"], "sum").write_text(f"{total[-1]:g}\n")
torch.distributed.barrier()
sys.stdout.flush()
os._exit(0)  # gloo may abort while the interpreter shuts down
