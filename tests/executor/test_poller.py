"""How the executor waits, on real time."""

from __future__ import annotations

from shmbatch.executor.batcher import NEVER_NS
from shmbatch.executor.poller import Poller
from shmbatch.protocol.clock import now_ns
from shmbatch.protocol.transport import executor_transport


def test_what_a_spin_has_not_brought_it_parks_for_next_time(transport: str) -> None:
    half = executor_transport(transport)
    poller = Poller(half, "auto")
    how, seen = poller._spinning, poller.bell.look()

    assert poller.spin(seen, NEVER_NS, 1) == seen
    assert how.spin_ns > 0
    assert poller.park(seen, now_ns() + 1_000_000, 1) == seen
    assert how.spin_ns == 0
    assert poller.spin(seen, NEVER_NS, 1) == seen
    assert how.vain == 1
    poller.park(seen, now_ns() + 1_000_000, 1)
    assert how.spin_ns > 0  # it tries again

    poller.close()
    half.close()
