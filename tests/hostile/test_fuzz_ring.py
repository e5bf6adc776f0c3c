"""Decides whether a producer's writes can lead ring.h astray, by searching for ones that do.

The search is guided by coverage, and needs nothing but gcc: fuzz_driver.c describes it,
fuzz_ring.c what is searched and what must hold. The same seed searches in the same way every day;
the soak takes new ones. The planted bugs prove that a bug of their kind would be found.
"""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

import pytest

from tests.native.compiling import ADDRESS, PROTOCOL, path_of, require, run

HERE = Path(__file__).parent
SECONDS = 280

# About 15,000 inputs a second.
EVERYDAY, SLOW, SOAK = 2_000, 60_000, 2_000_000


def build(folder: Path, headers: Path = PROTOCOL, options: tuple[str, ...] = ()) -> Path:
    """Compile driver and target, the latter with what tells the driver where it has been."""
    require(ADDRESS, folder)
    command = [
        path_of("gcc"),
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        *ADDRESS,
        f"-I{headers}",
    ]
    objects = []
    for source, flags in (("fuzz_ring", ("-fsanitize-coverage=trace-pc",)), ("fuzz_driver", ())):
        objects.append(folder / f"{source}.o")
        line = [*command, *flags, *options, "-c", str(HERE / f"{source}.c"), "-o"]
        subprocess.run([*line, str(objects[-1])], check=True, timeout=SECONDS)
    program = folder / "fuzz"
    subprocess.run([*command, *map(str, objects), "-o", str(program)], check=True, timeout=SECONDS)
    return program


def finds_nothing(program: Path, seed: int, runs: int) -> None:
    done = run(program, seed, runs, seconds=SECONDS)
    assert done.returncode == 0, f"seed {seed}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    counts = {
        name: int(value) for name, value in (pair.split("=") for pair in done.stdout.split())
    }
    assert counts.pop("runs") == runs
    assert min(counts.values()) > 0, f"something was never reached: {counts}"
    assert counts["edges"] > 150, "it has not got far"


@pytest.mark.parametrize(
    "runs",
    [
        EVERYDAY,
        pytest.param(SLOW, marks=[pytest.mark.slow, pytest.mark.timeout(SECONDS)]),
    ],
)
def test_no_write_of_a_producer_leads_the_executors_end_astray(runs: int, tmp_path: Path) -> None:
    finds_nothing(build(tmp_path), 1, runs)


@pytest.mark.soak
@pytest.mark.timeout(2 * SECONDS)
def test_nor_does_one_that_nobody_has_tried_before(tmp_path: Path) -> None:
    finds_nothing(build(tmp_path), secrets.randbelow(1 << 32), SOAK)


PLANTED = {
    "any index": ("index >= executor->words.capacity ||", "", "heap-buffer-overflow"),
    "one index too many": (
        "index >= executor->words.capacity ||",
        "index > executor->words.capacity ||",
        "heap-buffer-overflow",
    ),
    "an index twice": ("|| executor->known[index] != RING_IDLE", "", "other calls wait"),
    "a stamp of tomorrow": (
        "published_ns < now_ns ? published_ns : now_ns",
        "published_ns",
        "in the fut",
    ),
    "any state is ready": (
        "if (ring_state(word) != RING_READY) {",
        "if (ring_state(word) == RING_DONE) {",
        "that is not ready",
    ),
    "any generation": ("ring_generation(word) != generation", "false", "not the one that was"),
    "what was swept still waits": ("executor->waiting_tail = kept;", "", "wait than are known"),
    "what was freed is still known": (
        "executor->known[index] = RING_IDLE;\n            executor->withdrawn++;",
        "executor->withdrawn++;",
        "other calls wait",
    ),
    "asleep though it rang": (
        "return atomic_compare_exchange_strong_explicit(&bell->word, &seen, seen | bit,",
        "seen = bell->word; return atomic_compare_exchange_strong_explicit(&bell->word, &seen, "
        "seen | bit,",
        "would sleep although",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTED)
def test_control_a_planted_bug_is_found(planted: str, tmp_path: Path) -> None:
    before, after, report = PLANTED[planted]
    text = (PROTOCOL / "ring.h").read_text()
    assert text.count(before) == 1
    (tmp_path / "ring.h").write_text(text.replace(before, after))
    program = build(tmp_path, tmp_path)
    for seed in range(1, 11):  # a rare one needs luck, which is the same every time
        done = run(program, seed, SLOW, seconds=SECONDS)
        if done.returncode != 0:
            break
    assert done.returncode != 0, done.stdout
    assert report in done.stdout + done.stderr
    # And what was found can be looked at again.
    found = done.stderr.rpartition("input: ")[2].split()[0]
    again = run(program, "replay", found)
    assert again.returncode != 0
    assert report in again.stdout + again.stderr
