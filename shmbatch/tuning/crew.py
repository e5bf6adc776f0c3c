"""Producers that load an executor together, and what came of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

from ..client.asking import statistics
from ..protocol.clock import now_ns
from ..protocol.cpus import usable_cpus
from .child import Child
from .service import Loaded
from .variants import Parameters

_MOST_PRODUCERS = 4
_WARM_UP_NS = 100_000_000  # and three batches
_LOADS = "made calls"
_SERVES = "served"


@dataclass(frozen=True)
class Saturated:
    """A run with always enough calls outstanding."""

    calls_per_s: float
    loaded: Loaded


class Crew:
    """Context manager: some producers, as many as there are CPUs for them, and at least two.

    Args:
        input_file: where their inputs are from; as of `examples_for`.
    """

    def __init__(self, input_file: str | None) -> None:
        count = max(2, min(_MOST_PRODUCERS, usable_cpus() - 1))
        self._producers = [Child("producer", input=input_file, seed=seed) for seed in range(count)]
        self._stack = ExitStack()
        self._name = ""
        self._variants: Mapping[str, Parameters] = {}
        self._slots: dict[str, int] = {}

    def __enter__(self) -> Self:
        with ExitStack() as undone:
            for producer in self._producers:
                undone.enter_context(producer)
            self._stack = undone.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @contextmanager
    def served(self, executor: Child, variants: Mapping[str, Parameters]) -> Iterator[None]:
        """Have *executor* serve its function with several parameters, by a name each."""
        self._name = f"tune-{secrets.token_hex(6)}"
        self._variants = variants
        told = {name: asdict(parameters) for name, parameters in variants.items()}
        executor.asked(_SERVES, serve=self._name, variants=told)
        try:
            answers = self._all(connect=[self._address(name) for name in variants])
            self._slots = dict(zip(variants, answers[0]["slots"], strict=True))
            yield
        finally:
            executor.interrupt()
        executor.answer(_SERVES)

    def lone(self, variant: str, seconds: float) -> list[int]:
        """Return how long single calls take, in nanoseconds, where nobody else calls."""
        until_ns = now_ns() + int(seconds * 1e9)
        answer = self._producers[0].asked(_LOADS, lone=self._address(variant), until_ns=until_ns)
        latencies: list[int] = answer["latencies_ns"]
        return latencies

    def outstanding(self, variant: str) -> int:
        """Return how many calls `saturated` keeps outstanding."""
        return self._each(variant) * len(self._producers)

    def saturated(self, variant: str, seconds: float, batch_ns: float) -> Saturated:
        """Keep calls outstanding for full batches, two beside the one that runs.

        Args:
            batch_ns: how long a batch takes, about.
        """
        before = self._counted(variant)
        begin_ns, end_ns = _schedule(seconds, batch_ns)
        answers = self._all(
            full=self._address(variant),
            outstanding=self._each(variant),
            begin_ns=begin_ns,
            end_ns=end_ns,
        )
        after = self._counted(variant)
        calls_per_s = sum(answer["calls_per_s"] for answer in answers)
        size = (_calls(after) - _calls(before)) / (after["batches"] - before["batches"])
        running, earlier = after["latency_us"]["running"], before["latency_us"]["running"]
        count = running["count"] - earlier["count"]
        total_us = running["count"] * running["mean"]
        if earlier["count"]:
            total_us -= earlier["count"] * earlier["mean"]
        loaded = Loaded(size, size / calls_per_s * 1e9, total_us * 1e3 / count)
        return Saturated(calls_per_s, loaded)

    def at_rate(
        self, variant: str, rate: float, seconds: float, batch_ns: float, nap_ns: int
    ) -> tuple[list[float], float]:
        """Have calls come at random times, *rate* a second.

        Returns how long they took, and how late the producer was that was the latest, half of
        the time; nanoseconds.

        Args:
            nap_ns: how late calls may be made.
        """
        begin_ns, end_ns = _schedule(seconds, batch_ns)
        for seed, producer in enumerate(self._producers):
            producer.tell(
                open=self._address(variant),
                rate=rate / len(self._producers),
                seed=seed,
                nap_ns=nap_ns,
                begin_ns=begin_ns,
                end_ns=end_ns,
            )
        answers = [producer.answer(_LOADS) for producer in self._producers]
        latencies = [float(each) for answer in answers for each in answer["latencies_ns"]]
        return latencies, max(answer["late_ns"] for answer in answers)

    def _address(self, variant: str) -> str:
        return f"{self._name}.{variant}"

    def _each(self, variant: str) -> int:
        wanted = -(-3 * self._variants[variant].max_batch_size // len(self._producers))
        return min(wanted, self._slots[variant])

    def _all(self, **command: Any) -> Sequence[dict[str, Any]]:
        for producer in self._producers:
            producer.tell(**command)
        return [producer.answer(_LOADS) for producer in self._producers]

    def _counted(self, variant: str) -> dict[str, Any]:
        functions: dict[str, dict[str, Any]] = statistics(self._name)["functions"]
        return functions[variant]


def _schedule(seconds: float, batch_ns: float) -> tuple[int, int]:
    begin_ns = now_ns() + _WARM_UP_NS + int(3 * batch_ns)
    return begin_ns, begin_ns + int(seconds * 1e9)


def _calls(counted: dict[str, Any]) -> int:
    """Return how many calls ran in batches."""
    return sum(int(size) * n for size, n in counted["batch_sizes"].items())
