"""Misfortunes of the GPU, with a stand-in nvidia-smi and a stand-in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.hosts.helpers import login_runs, made_python
from tests.preflight.stage import Misfortune, Named, Stage

SEES_CARDS = (
    "import os\nclass cuda:\n    @staticmethod\n    def is_available():\n"
    "        return os.environ.get('CUDA_VISIBLE_DEVICES', '0') == '0'\n"
)
NO_CARD = "needs a card"


def promised(
    recording: str, model: str = "RTX 4070", vram_gb: int = 8, login: str = ":"
) -> Callable[[Stage], AbstractContextManager[None]]:
    """A misfortune of the card that the cluster file promises of lab0."""

    @contextmanager
    def make(stage: Stage) -> Iterator[None]:
        stage.hosts[0].nvidia_smi(recording)
        stage.nodes[0]["hardware"] = {"gpu_model": model, "vram_gb": vram_gb}
        stage.document["environment"]["python"] = str(
            made_python(stage.folder / "env", SEES_CARDS)
        )
        with login_runs(stage.hosts[0], login):
            yield

    return make


CARDS = [
    Misfortune(
        key="gpu-used",
        words="somebody else's program uses the GPU",
        make=promised("vram_held"),
        named=Named(
            "lab0", "vram", "/usr/bin/blender (pid 4127) holds 6130 MiB", "kill 4127"
        ),
        not_bare=NO_CARD,
    ),
    Misfortune(
        key="gpu-gone",
        words="the GPU fell off the bus",
        make=promised("fallen_off_bus"),
        named=Named("lab0", "gpu", "Unable to determine the device handle", "reboot"),
        not_bare=NO_CARD,
    ),
    Misfortune(
        key="gpu-driver",
        words="the driver of the GPU is not loaded",
        make=promised("driver_not_loaded"),
        named=Named(
            "lab0",
            "gpu",
            "couldn't communicate with the NVIDIA driver",
            "a missing driver with its package",
        ),
        not_bare=NO_CARD,
    ),
    Misfortune(
        key="gpu-ecc",
        words="the GPU counts memory errors that ECC could not correct",
        make=promised("ecc_errors", "RTX 4000 Ada", 20),
        named=Named(
            "lab0", "gpu errors", "3 memory errors", "sudo dmesg | grep -i xid"
        ),
        not_bare=NO_CARD,
    ),
    Misfortune(
        key="gpu-xid",
        words="the GPU hangs after an Xid: [GPU requires reset]",
        make=promised("reset_required"),
        named=Named("lab0", "gpu errors", "[GPU requires reset]", "--gpu-reset -i 0"),
        not_bare=NO_CARD,
    ),
    Misfortune(
        key="gpu-hidden",
        words="CUDA_VISIBLE_DEVICES of old in the login environment",
        make=promised("rtx4070", login="export CUDA_VISIBLE_DEVICES=3"),
        named=Named(
            "lab0", "cuda", "torch built for CUDA 12.8", "CUDA_VISIBLE_DEVICES=3"
        ),
        not_bare=NO_CARD,
    ),
]
