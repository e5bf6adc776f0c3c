"""Everything that is promised about a GPU, measured in one command, in less than eight minutes.

::

    run_all --> pytest -m gpu tests/gpu            passed and failed go into the JSON
       |
       +-----> answers, copies, overlap, ...       one file and one question each, a process each
       |            table and promises --> stdout, and as a file back to run_all
       +-----> results/gpu.json                    written anew after each part

Needs torch with a CUDA device, what the package and its tests need, and nothing of a network.
A part that fails or takes too long is reported as such, and the next one begins; so the exit
status is 1. A missed floor is printed as such and is no error.

    $ python -m benchmarks.gpu.run_all              # results/gpu.json
    $ python -m benchmarks.gpu.run_all --quick      # smoke test; figures mean nothing
    $ python -m benchmarks.gpu.run_all --rehearse   # on the CPU: only that the scripts work
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks._report import HERE
from benchmarks.gpu._setting import Part, Setting

PARTS = ("answers", "copies", "overlap", "graphs", "served", "cost", "registration", "lone")
BUDGET_S = 465.0  # of everything
TESTS_S = 170.0  # at most; also the parts need their time
PART_S = 90.0
ROOT = HERE.parent


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.rehearse:
        return _rehearse(options.parts)
    refusal = _refusal()
    if refusal is not None:
        print(refusal, file=sys.stderr)
        return 1
    if options.part is not None:
        _measure_one(options.part, options.report, _setting(options.quick, options.report.parent))
        return 0
    return _measure_all(options)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.run_all", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="smoke test: checks answers, figures mean nothing"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="run every part on the CPU, with tiny sizes"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="only these (%(default)s)")
    parser.add_argument("--no-tests", action="store_true", help="leave tests/gpu out")
    parser.add_argument(
        "--out",
        type=Path,
        help="the JSON file (default results/gpu.json, none if --quick or not everything)",
    )
    # How run_all starts a part.
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    chosen = options.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"unknown parts {', '.join(unknown)}; known are {', '.join(PARTS)}")
    options.parts = [part for part in PARTS if part in chosen]
    everything = len(options.parts) == len(PARTS) and not options.no_tests
    if options.out is None and everything and not options.quick:
        options.out = HERE / "results" / "gpu.json"
    return options


def _refusal() -> str | None:
    """Say in one line why nothing can be measured here; None if it can."""
    try:
        import torch
    except ImportError:
        return "no torch is installed, so there is nothing to measure; use --rehearse on the CPU"
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} sees no CUDA device, so there is nothing to measure; "
            f"use --rehearse on the CPU"
        )
    return None


def _setting(quick: bool, folder: Path) -> Setting:
    return Setting(
        device="cuda:0",
        runs=2 if quick else 5,
        window_s=0.1 if quick else 0.4,
        warmup_s=0.1 if quick else 0.3,
        producers=max(1, min(8, len(os.sched_getaffinity(0)) // 2)),
        folder=folder,
    )


# ---- one part, in this process -----------------------------------------------------------------


def _measured(name: str, setting: Setting) -> Part:
    since = time.perf_counter()
    part: Part = importlib.import_module(f"benchmarks.gpu.{name}").measure(setting)
    part.seconds = time.perf_counter() - since
    return part


def _measure_one(name: str, report: Path, setting: Setting) -> None:
    part = _measured(name, setting)
    _show(name, part)
    _report.write_json(report, part.document())


def _show(name: str, part: Part) -> None:
    texts = [f"== {name}, {part.seconds:.1f} s", *part.tables]
    if part.promises:
        texts.append(_report.promises(part.promises))
    print("\n\n".join(texts) + "\n", flush=True)


def _rehearse(parts: Sequence[str]) -> int:
    """Run all parts on the CPU, one executor and one producer for all of them."""
    from benchmarks.gpu import functions
    from benchmarks.gpu._stand import Stand

    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        values: dict[str, Any] = {"device": "cpu", "runs": 1, "window_s": 0.05, "warmup_s": 0.01}
        values |= {"producers": 1, "folder": Path(folder)}
        Setting(**values).calibrate()
        with functions.app.run(device="cpu"):
            stand = Stand()
            try:
                for name in parts:
                    _show(name, _measured(name, Setting(**values, shared=stand)))
            finally:
                stand.close()
    print("rehearsed on the CPU: the figures mean nothing")
    return 0


# ---- all parts, each in a process --------------------------------------------------------------


def _measure_all(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + BUDGET_S
    facts = _report.machine_facts(datetime.now(UTC)) | _gpu_facts()
    print(_report.facts_line(facts))
    print(f"{facts['gpu']}, torch {facts['torch']}, CUDA {facts['cuda']}\n", flush=True)
    document: dict[str, Any] = {
        "benchmark": "gpu",
        "machine": facts,
        "quick": options.quick,
        "tests": None,
        "parts": {},
        "failed": {},
        "missed": [],
    }
    if not options.no_tests:
        document["tests"] = tests = _tests(min(TESTS_S, deadline - time.monotonic()))
        print(f"== tests: {tests}\n", flush=True)
        _write(options, document)
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        for name in options.parts:
            report = Path(folder) / f"{name}.json"
            seconds = min(PART_S, deadline - time.monotonic())
            failure = _part(name, report, options.quick, seconds)
            if failure is None:
                document["parts"][name] = part = json.loads(report.read_text())
                document["missed"] += [
                    each["what"] for each in part["promises"] if each["holds"] is False
                ]
            else:
                document["failed"][name] = failure
                print(f"== {name}: FAILED, {failure}\n", flush=True)
            _write(options, document)
        trace = Path(folder) / "trace.json"
        if options.out is not None and trace.exists():
            options.out.with_name(f"{options.out.stem}_trace.json").write_bytes(trace.read_bytes())
    missed, failed, tests = document["missed"], document["failed"], document["tests"]
    print(f"missed: {'; '.join(missed) or 'nothing'}")
    print(f"failed: {', '.join(failed) or 'nothing'}")
    print(f"took {BUDGET_S - (deadline - time.monotonic()):.0f} s")
    well = not failed and (tests is None or tests["status"] == 0)
    return 0 if well else 1


def _write(options: argparse.Namespace, document: dict[str, Any]) -> None:
    if options.out is not None:
        _report.write_json(options.out, document)


def _gpu_facts() -> dict[str, Any]:
    import torch

    # Of a process of its own, since this one shall have no context on the device.
    code = (
        "import json, torch; p = torch.cuda.get_device_properties(0); print(json.dumps("
        "{'gpu': p.name, 'gpu_gib': round(p.total_memory / 2**30), "
        "'multiprocessors': p.multi_processor_count}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    facts: dict[str, Any] = json.loads(found.stdout)
    return facts | {"torch": torch.__version__, "cuda": torch.version.cuda}


def _part(name: str, report: Path, quick: bool, seconds: float) -> str | None:
    """Measure one part in a process; return why that failed, else None."""
    if seconds < 10:
        return "no time left"
    module = "benchmarks.gpu.run_all"
    command = [sys.executable, "-m", module, "--part", name, "--report", str(report)]
    status = _ran([*command, *(["--quick"] if quick else [])], seconds)
    if status is None:
        return f"not done in {seconds:.0f} s"
    return None if status == 0 and report.exists() else f"exit status {status}"


def _ran(command: list[str], seconds: float) -> int | None:
    """Run a command; None if it took too long. Nothing of it is left behind."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def _tests(seconds: float) -> dict[str, Any]:
    """Run the tests that need a device; return how many did what."""
    with tempfile.TemporaryDirectory(prefix="gpu-tests-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-rfE"]
        status = _ran([*command, "-p", "no:cacheprovider", f"--junitxml={report}"], seconds)
        if not report.exists():
            why = "see above" if status is not None else f"not done in {seconds:.0f} s"
            return {"status": status, "why": why}
        return {"status": status, **_counts(report.read_text())}


def _counts(report: str) -> dict[str, Any]:
    """Read how many tests passed, were skipped or failed, and which, from JUnit's XML."""
    counts: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": 0, "which_failed": []}
    for case in ElementTree.fromstring(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
            counts["which_failed"].append(case.get("name"))
        elif case.find("skipped") is not None:
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return counts


if __name__ == "__main__":
    sys.exit(main())
