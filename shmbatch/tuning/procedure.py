"""The steps of tuning: time the function, calibrate, propose, expect, and check under load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..app.paths import resolved
from ..contract.batching import MAX_BATCH_SIZE
from ..contract.device import device_name
from ..errors import ConfigError
from .child import Child
from .crew import Crew, Saturated
from .proposal import Proposal, feasible, proposed, stepped_sizes, with_sizes
from .report import At, Report
from .service import Loaded, Overhead, Service, Timings, overhead, typical
from .simulation import latencies_ns, throughput
from .variants import Parameters

_LOADING = "was loading the file"
_TIMED = 0.1  # of --seconds, for each size, at first
_SWEEPS = 2  # more over all sizes, so that what disturbs some of it does not stand for a size
_SWEEP = 0.05
_STEP = 0.02
_LONE = 0.25
_CALIBRATION = 0.125  # for each run
_CHECK = 0.25
_GAIN = 1.03  # of throughput, for which another doubling is worth it
_CALIBRATION_WAIT_MS = 100.0  # calls do come; batches are to be full
_FEW, _MANY = 3, 6  # rounds of runs under load, each with all sizes, for the same reason
_BATCHES = 6  # of a run under load, at least ...
_LONGEST_S = 20.0  # ... unless that takes longer
_NAP = 0.01  # of the target: how late calls may be made
_EXPECTED_CALLS = 20_000
_CURVE = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.97)
_CURVE_CALLS = 6_000
_CURVE_BATCHES = 30  # at least
_RATES = (0.5, 0.8)  # of saturation, where none is given


@dataclass(frozen=True)
class Wanted:
    """What is to be tuned, and for what."""

    file: Path
    function: str | None
    target_ms: float
    app: str | None = None
    device: str | None = None
    input_file: Path | None = None
    rate: float | None = None
    seconds: float = 2.0
    max_size: int = MAX_BATCH_SIZE


def tune(wanted: Wanted, tell: Callable[[str], None] = lambda doing: None) -> Report:
    """Measure a function, and return which batching parameters to give it and what to expect.

    Starts processes, and keeps two CPUs busy for ten to thirty seconds, longer where the function
    is slow.

    Args:
        tell: told what is being done.

    Raises:
        ConfigError: the target cannot be met, an example does not fit, or the function fails.
        LoadError: there is no such file or function.
    """
    tell(f"loading {wanted.file}")
    with _executor(wanted) as executor:
        about = executor.answer(_LOADING)
        with Crew(_input_file(wanted)) as crew:
            return _Tuning(wanted, executor, crew, about, tell).report()


def _executor(wanted: Wanted) -> Child:
    return Child(
        "executor",
        file=str(resolved(wanted.file)),
        app=wanted.app,
        function=wanted.function,
        device=device_name(wanted.device),
        input=_input_file(wanted),
    )


def _input_file(wanted: Wanted) -> str | None:
    return None if wanted.input_file is None else str(resolved(wanted.input_file))


class _Tuning:
    """One function being tuned: what is known of it so far."""

    def __init__(
        self,
        wanted: Wanted,
        executor: Child,
        crew: Crew,
        about: dict[str, Any],
        tell: Callable[[str], None],
    ) -> None:
        self._wanted = wanted
        self._executor = executor
        self._crew = crew
        self._about = about
        self._tell = tell
        self._name = f"{about['app']}.{about['function']}"
        self._target_ns = wanted.target_ms * 1e6
        self._timings = Timings()
        self._way_ns: list[float] = []  # of lone calls, there and back
        self._limit = ""  # why no larger sizes were timed, but for the target

    def report(self) -> Report:
        """Do all the steps."""
        sizes = self._time_sizes()
        alone = Service(self._timings, Overhead())
        rough = self._proposed(alone, sizes).parameters.max_batch_size
        steps = self._time_steps(rough)
        service = Service(self._timings, self._calibrate(rough))
        proposal = self._proposed(service, sizes)
        proposal = with_sizes(proposal, steps, self._about["graphs"], self._about["arrays"])
        return self._checked(proposal, service, sizes)

    def _proposed(self, service: Service, sizes: list[int]) -> Proposal:
        return proposed(service, sizes, self._target_ns, self._name, self._limit)

    # ---- alone ---------------------------------------------------------------------------

    def _time_sizes(self) -> list[int]:
        """Time 1, 2, 4, ... calls a batch; return the sizes for which there is memory."""
        sizes: list[int] = []
        gainless = 0
        size = 1
        while self._time(size, _TIMED):
            sizes.append(size)
            alone = Service(self._timings, Overhead())
            if not feasible(alone, size, self._target_ns):
                break  # one beyond, to show
            if size == self._wanted.max_size:
                self._limit = f"--max allows no more than {size}"
                break
            if size > 1:
                timed = self._timings.by_size
                gain = timed[size].calls_per_s / timed[sizes[-2]].calls_per_s
                gainless = gainless + 1 if gain < _GAIN else 0
            if gainless == 2:
                break
            size = min(2 * size, self._wanted.max_size)
        for _ in range(_SWEEPS):
            for size in sizes:
                self._time(size, _SWEEP)
        return sizes

    def _time_steps(self, largest: int) -> Timings:
        """Time sizes between powers of two, where it may be better to avoid them, and those."""
        steps = Timings()
        if self._about["arrays"] and not self._about["graphs"]:
            for _ in range(_SWEEPS):
                for size in stepped_sizes(largest):
                    self._time(size, _STEP, steps)
        return steps

    def _time(self, size: int, part: float, into: Timings | None = None) -> bool:
        """Time batches of one size for *part* of --seconds; False if there is no memory."""
        seconds = part * self._wanted.seconds
        self._tell(f"timing batches of {size}")
        answer = self._executor.asked(f"ran a batch of {size}", time=size, seconds=seconds)
        if "too_large" in answer:
            if size == 1:
                raise ConfigError(f"{self._name} cannot run at all: {answer['too_large']}")
            self._limit = answer["too_large"]
            return False
        timings = self._timings if into is None else into
        timings.add(size, answer["total_ns"], answer["function_ns"])
        return True

    # ---- under load ----------------------------------------------------------------------

    def _calibrate(self, largest: int) -> Overhead:
        """Load the executor with batches smaller than *largest*, to see what load adds."""
        self._tell("calibrating under load")
        smaller = _smaller(largest)
        with self._served({"single": Parameters(1, 0), **smaller}):
            lone_ns = self._crew.lone("single", _LONE * self._wanted.seconds)
            alone_ns = self._timings.total_ns(1)
            self._way_ns = [max(0.0, each - alone_ns) for each in lone_ns]
            runs = [self._saturated_all(smaller) for _ in range(_FEW)]
        return self._overhead(runs)

    def _checked(self, proposal: Proposal, service: Service, sizes: list[int]) -> Report:
        """Say what to expect of the proposal, and measure the same under load.

        What load adds is found out once more, between the runs that check it: a machine changes.
        """
        parameters = proposal.parameters
        checked = {"whole": parameters}
        smaller = _smaller(parameters.max_batch_size)
        with self._served({**smaller, **checked}):
            self._tell("measuring under load")
            runs, rates_per_s = [], []
            for _ in range(_MANY):
                runs.append(self._saturated_all(smaller))
                run = self._saturated("whole", parameters, _CHECK * self._wanted.seconds)
                rates_per_s.append(run.calls_per_s)
            service = Service(self._timings, self._overhead(runs), parameters.batch_sizes)
            outstanding = self._crew.outstanding("whole")
            expected_per_s = throughput(
                parameters.checked(), outstanding, service.drawing(1), service.overhead.way_p50_ns
            )
            given = self._wanted.rate
            rates = [given] if given is not None else [part * expected_per_s for part in _RATES]
            measured = [self._at_rate(parameters, rate) for rate in rates]
        self._tell("simulating")
        curve_calls = max(_CURVE_CALLS, _CURVE_BATCHES * parameters.max_batch_size)
        return Report(
            name=self._name,
            file=str(self._wanted.file),
            device=self._about["device"],
            examples=self._about["examples"],
            target_ms=self._wanted.target_ms,
            timings=[self._timings.by_size[size] for size in sizes],
            proposal=proposal,
            options=self._about["options"],
            service=service,
            outstanding=outstanding,
            expected_per_s=expected_per_s,
            measured_per_s=median(rates_per_s),
            expected=[_expected(parameters, service, rate, _EXPECTED_CALLS) for rate in rates],
            measured=measured,
            curve=[
                _expected(parameters, service, part * expected_per_s, curve_calls)
                for part in _CURVE
            ],
        )

    def _overhead(self, rounds: list[list[Loaded]]) -> Overhead:
        runs = [typical(of_one_size) for of_one_size in zip(*rounds, strict=True)]
        return overhead(self._timings, runs, self._way_ns, self._about["device"] == "cpu")

    def _saturated_all(self, variants: Mapping[str, Parameters]) -> list[Loaded]:
        seconds = _CALIBRATION * self._wanted.seconds
        return [self._saturated(name, each, seconds).loaded for name, each in variants.items()]

    def _saturated(self, variant: str, parameters: Parameters, seconds: float) -> Saturated:
        batch_ns = self._timings.total_ns(parameters.max_batch_size)
        return self._crew.saturated(variant, _stretch(seconds, batch_ns), batch_ns)

    def _at_rate(self, parameters: Parameters, rate: float) -> At:
        size = parameters.max_batch_size
        seconds = _stretch(self._wanted.seconds, size / rate * 1e9)
        batch_ns = self._timings.total_ns(size)
        nap_ns = int(self._target_ns * _NAP)
        return At.of(rate, *self._crew.at_rate("whole", rate, seconds, batch_ns, nap_ns))

    @contextmanager
    def _served(self, variants: Mapping[str, Parameters]) -> Iterator[None]:
        if not self._about["is_async"]:
            with self._crew.served(self._executor, variants):
                yield
            return
        # What an async function keeps belongs to one event loop, and each executor has its own.
        with _executor(self._wanted) as executor:
            executor.answer(_LOADING)
            with self._crew.served(executor, variants):
                yield


def _smaller(largest: int) -> dict[str, Parameters]:
    """Return parameters to calibrate with: batches of a half and of a quarter."""
    sizes = {"half": max(1, largest // 2), "quarter": max(1, largest // 4)}
    if sizes["half"] == sizes["quarter"]:
        del sizes["quarter"]
    return {name: Parameters(size, _CALIBRATION_WAIT_MS) for name, size in sizes.items()}


def _expected(parameters: Parameters, service: Service, rate: float, calls: int) -> At:
    way_ns = service.overhead.way_ns
    drawing = service.drawing(2)
    return At.of(rate, latencies_ns(parameters.checked(), rate, calls, drawing, way_ns, seed=3))


def _stretch(seconds: float, batch_ns: float) -> float:
    """Return how long to load it: at least for some batches."""
    return min(max(seconds, _BATCHES * batch_ns / 1e9), max(seconds, _LONGEST_S))
