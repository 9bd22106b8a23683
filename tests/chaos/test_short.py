"""A few rounds of the chaos suite, which between them have the faults that matter most. See docs/chaos.md."""

import pytest

from tests.chaos.plans import draw
from tests.chaos.suite import Suite


# A round takes seconds. Its own patience must end first: that tells what it waits for.
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("seed", "faults"),
    [
        (92, ["agent-killed", "link-down"]),
        (201, ["rank-killed", "home-disk-full"]),  # and a restart
        (27, ["supervisor-killed", "quiet", "ignores-term"]),
        (67, ["node-rebooted", "terminal-closed"]),
        (176, ["host-key-changed", "home-read-only"]),
        (101, ["second-controller", "sshd-killed"]),
        (176, ["node-disk-full", "launch-killed"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else str(value),
)
def test_after_these_faults_all_is_as_promised(
    chaos: Suite, seed: int, faults: list[str]
) -> None:
    outcome = chaos.play(draw(seed, faults))
    assert outcome.violations == [], "\n".join(
        [
            *outcome.timeline,
            f"again: inv chaos --seed {seed} --rounds 1 --faults {','.join(faults)}",
        ]
    )


def test_after_all_of_them_a_launch_works(chaos: Suite) -> None:
    assert chaos.check_launch() == []
