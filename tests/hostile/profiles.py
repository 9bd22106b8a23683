"""Hypothesis for the whole suite: the same examples in each run, and many new ones with --hypothesis-profile=thorough.

Loaded as a plugin of pytest, because a profile must be there before the command line names it.
"""

from hypothesis import HealthCheck, settings

# Nothing here is timed, and a fixture that lives through all examples of a test is meant to.
COMMON = settings(
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("default", COMMON)
settings.register_profile("thorough", COMMON, max_examples=1000, derandomize=False)
settings.load_profile("default")


def examples(count: int) -> settings:
    """So many examples of a test by default, in proportion more with another profile."""
    return settings(max_examples=max(1, count * settings().max_examples // 100))
