"""How hypothesis is asked for an example that fails, and what is told of the one it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..app.extras import needed
from ..contract.checking import check_count
from ..errors import ConfigError
from .drawing import Strategy

_EXAMPLES_MAX = 1_000_000


def search(
    check: Callable[[Any], None], strategy: Strategy, *, max_examples: int, seed: int | None
) -> None:
    """Try *check* on values of a strategy; raise what the simplest that fails raises.

    Args:
        check: raises AssertionError where an example fails; any other error ends the search.
        max_examples: values that are tried; failing ones are made simpler beyond that.
        seed: of the values; None for others each time.

    Raises:
        AssertionError: as *check*, with that message alone.
        ConfigError: an argument is wrong, or hypothesis is not installed.
    """
    __tracebackhide__ = True
    hypothesis = needed("testing", "hypothesis")
    check_count("max_examples", max_examples, _EXAMPLES_MAX)
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise ConfigError(f"seed is {seed!r:.100}; use an int, or None for other values each time")
    failures: list[str] = []

    def example(value: Any) -> None:
        try:
            check(value)
        except AssertionError as error:
            failures.append(str(error))
            raise

    trial = hypothesis.given(strategy)(example)
    trial = hypothesis.settings(
        max_examples=max_examples,
        database=None,  # its examples would be of whichever function was checked last
        deadline=None,
        derandomize=False,  # that is the seed's business
        print_blob=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],  # explaining takes longest
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )(trial)
    if seed is not None:
        trial = hypothesis.seed(seed)(trial)
    try:
        trial()
    except AssertionError as error:
        # Without what hypothesis notes: the message says what the example is.
        raise AssertionError(str(error)) from None
    except hypothesis.errors.Flaky:
        # The function keeps something: the same example does not fail again.
        raise AssertionError(f"{failures[-1]}\n\nThe same example does not always fail.") from None
