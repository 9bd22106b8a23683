"""Holds estimates against a card of 8 GiB of which some is free, and says what a rank would say.

Run by the training environment's Python: a line of JSON in, with a device, the estimate and what is free, in MiB, and
the settings as a launch sends them; a line out.
"""
# mypy: disable-error-code="import-not-found"

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))


def main() -> None:
    from training.faults import Fault
    from training.memory import refuse_if_too_large
    from training.ranks import Ranks
    from training.settings import read

    torch.cuda.get_device_name = lambda _device: "RTX"
    for line in sys.stdin:
        device, needed_mib, free_mib, sent = json.loads(line)
        free = (free_mib << 20, 8192 << 20)
        torch.cuda.mem_get_info = lambda _device, free=free: free
        settings, _ = read([], {"UGRO_SETTINGS": sent})
        ranks = Ranks(0, 1, SimpleNamespace(type=device), "gpu1")
        try:
            print(refuse_if_too_large(needed_mib, settings, 2, ranks))
        except Fault as fault:
            print(f"Fault: {fault}")


if __name__ == "__main__":
    main()
