"""All misfortunes."""

from __future__ import annotations

from contextlib import nullcontext

from tests.preflight.cards import CARDS
from tests.preflight.logins import LOGINS
from tests.preflight.machine import MACHINE
from tests.preflight.network import NETWORK
from tests.preflight.software import SOFTWARE
from tests.preflight.stage import Misfortune

NOTHING = Misfortune(
    key="nothing", words="nothing is wrong", make=lambda _: nullcontext()
)
PARTS = {
    "": [NOTHING], "network": NETWORK, "software": SOFTWARE, "GPU": CARDS, "machine": MACHINE, "login": LOGINS,
}  # fmt: skip
MISFORTUNES: list[Misfortune] = [
    misfortune for part in PARTS.values() for misfortune in part
]
HARMLESS = [misfortune for misfortune in MISFORTUNES if not misfortune.named]
