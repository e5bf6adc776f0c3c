"""What people are told of what was found."""

from __future__ import annotations

import pytest

from shmbatch.errors import ConfigError
from shmbatch.tuning.report import At


@pytest.mark.parametrize(
    ("rate", "text"), [(0.5, "0.5"), (1.25, "1.2"), (10, "10"), (1234.5, "1,234")]
)
def test_a_low_rate_is_not_rounded_to_nothing(rate: float, text: str) -> None:
    assert At.of(rate, [1e6]).calls_per_s == text


def test_a_rate_at_which_no_call_came_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no call came at 0\.01 calls/s; give a higher --rate"):
        At.of(0.01, [])
