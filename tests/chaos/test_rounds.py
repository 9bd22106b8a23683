"""The rounds of two hundred seeds. They take long: `bin/ugro test --all` runs some, which the commit draws."""

import pytest

from tests.chaos.plans import draw
from tests.chaos.suite import Suite

SEEDS = range(1000, 1200)


# A round takes seconds. Its own patience must end first: that tells what it waits for.
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_round_breaks_no_promise(chaos: Suite, seed: int) -> None:
    outcome = chaos.play(draw(seed))
    again = f"again: bin/ugro chaos --seed {seed} --rounds 1"
    assert outcome.violations == [], "\n".join([*outcome.timeline, again])
