"""Decides whether ring.h is right on any hardware that C11 runs on, by a model checker of its C.

weak_memory.c says what is run. Few machines have the model checker, so what it said is kept in
weak_memory.json, and has to be said anew when an order in ring.h changes. That the orders are
enough is checked everywhere, over a restatement of ring.h, by tests/model/test_weak_ring.py; here
it is held against what the model checker found in ring.h itself.
"""

from __future__ import annotations

import json
import shutil

import pytest

from tests.model import test_weak_ring
from tests.model.ring_orders import ring_orders
from tests.native.weak_memory import REPORT, SCENARIOS, Report, report, weaker_orders


@pytest.fixture(scope="module")
def said() -> Report:
    kept: Report = json.loads(REPORT.read_text(encoding="utf-8"))
    return kept


def test_the_report_is_about_the_orders_that_ring_h_has(said: Report) -> None:
    orders = {str(site): order for site, order in ring_orders().items()}
    assert said["orders"] == orders, "run: python -m tests.native.weak_memory"


def test_the_report_has_every_scenario_and_those_of_the_model(said: Report) -> None:
    assert list(said["scenarios"]) == SCENARIOS == list(test_weak_ring.SCENARIOS)
    assert all(each["complete"] for each in said["scenarios"].values())


def test_the_model_checker_and_the_model_notice_the_same_weaker_orders(said: Report) -> None:
    """But for one: with the order of success weakened, GenMC weakens that of failure, too."""
    for site, weaker in weaker_orders():
        expected = test_weak_ring.noticing(site, weaker)
        if (site.function, site.number, weaker) == ("ring_withdraw", 1, "release"):
            expected = test_weak_ring.noticing(site._replace(failure=True), "relaxed")
        assert said["noticed"][f"{site} {weaker}"] == expected, f"{site} {weaker}"


@pytest.mark.slow
def test_the_model_checker_still_says_so(said: Report) -> None:
    genmc = shutil.which("genmc")
    if genmc is None:
        pytest.skip("there is no genmc; it has to be built from source")
    now = report(genmc)
    # Another version of it may count executions otherwise.
    assert (now["orders"], now["noticed"]) == (said["orders"], said["noticed"])
