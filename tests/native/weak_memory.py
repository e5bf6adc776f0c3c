"""Decides what a model checker of weak memory says of ring.h; as a program, writes it down.

The model checker is GenMC, which few machines have. What it said is in weak_memory.json, and
test_weak_memory.py holds that against ring.h as it is now. To say it anew, where there is one::

    python -m tests.native.weak_memory
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

from tests.model.ring_orders import RING_H, WEAKER, Site, ring_orders, weakened

SOURCE = Path(__file__).with_name("weak_memory.c")
REPORT = Path(__file__).with_name("weak_memory.json")
SCENARIOS = re.findall(r"SCENARIO_(\w+)\)\n/\*", SOURCE.read_text(encoding="utf-8"))
SECONDS = 100


class Explored(TypedDict):
    """How many executions there are of a scenario."""

    complete: int
    blocked: int  # that would have to wait


class Report(TypedDict):
    """What was found out about which orders."""

    tool: str
    model: str
    orders: dict[str, str]  # of ring.h, as it was then
    scenarios: dict[str, Explored]
    noticed: dict[str, list[str]]  # by a weaker order, the scenarios that fail with it


def weaker_orders() -> list[tuple[Site, str]]:
    """Return every order of ring.h with what is weaker.

    Not those of a compare-and-swap that fails: GenMC takes that of one which succeeds.
    """
    return [
        (site, weaker)
        for site, order in ring_orders().items()
        if not site.failure
        for weaker in WEAKER.get(order, ())
    ]


def run(genmc: str, scenario: str, header: Path) -> Explored | str:
    """Explore a scenario with this ring.h; return what was counted, or the first error."""
    command = [genmc, "--disable-estimation", "--rc11", "--", "-std=c11", "-w"]
    done = subprocess.run(
        [*command, f"-DSCENARIO_{scenario}", f"-I{header.parent}", str(SOURCE)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    text = done.stdout + done.stderr
    if done.returncode == 0 and "No errors were detected" in text:
        counts = dict(re.findall(r"(complete|blocked) executions (?:explored|seen): (\d+)", text))
        return {"complete": int(counts["complete"]), "blocked": int(counts.get("blocked", 0))}
    error = re.search(r"Error(?: detected)?: (.*)", text)
    assert error is not None, text
    return error[1]


def noticing(genmc: str, site: Site, weaker: str) -> list[str]:
    """Return the scenarios that fail with a weaker order."""
    with TemporaryDirectory() as folder:
        header = Path(folder, "ring.h")
        text = weakened(RING_H.read_text(encoding="utf-8"), site, weaker)
        header.write_text(text, encoding="utf-8")
        return [name for name in SCENARIOS if isinstance(run(genmc, name, header), str)]


def report(genmc: str) -> Report:
    """Explore every scenario, and again with every weaker order. Takes half a minute."""
    version = subprocess.run([genmc, "--version"], capture_output=True, text=True).stdout
    tool = re.search(r"GenMC v[\d.]+", version)
    scenarios: dict[str, Explored] = {}
    for name in SCENARIOS:
        found = run(genmc, name, RING_H)
        assert not isinstance(found, str), f"{name}: {found}"
        scenarios[name] = found
    with ThreadPoolExecutor(2) as pool:
        weaker = weaker_orders()
        noticed = pool.map(lambda each: noticing(genmc, *each), weaker)
        return {
            "tool": tool[0] if tool else "GenMC",
            "model": "RC11",
            "orders": {str(site): order for site, order in ring_orders().items()},
            "scenarios": scenarios,
            "noticed": {
                f"{site} {order}": names
                for (site, order), names in zip(weaker, noticed, strict=True)
            },
        }


if __name__ == "__main__":
    genmc = shutil.which("genmc")
    assert genmc is not None, "there is no genmc to run"
    REPORT.write_text(json.dumps(report(genmc), indent=1) + "\n", encoding="utf-8")
