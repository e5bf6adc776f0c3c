from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import recorded
from tests.programs import PATIENCE_S, ROOT, environment, ran, started, written

# A batch takes 2 ms whatever its size, and what the machine else does matters little.
SLEEPER = """
    import asyncio, os, signal, time
    import shmbatch

    app = shmbatch.App()
    print("loaded")

    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0, slots=500)
    def nap(xs: list[int], ys: list[float]) -> list[int]:
        time.sleep(0.002)
        return xs

    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    def shout(texts: list[str]) -> list[str]:
        return [text.upper() for text in texts]

    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    def divide(xs: list[int]) -> list[int]:
        return [1 // x for x in xs]

    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    def killed(xs: list[int]) -> list[int]:
        os.kill(os.getpid(), signal.SIGKILL)

    @app.cls()
    class Policy:
        @shmbatch.enter()
        async def load(self):
            self.lock = asyncio.Lock()

        @shmbatch.exit()
        def leave(self):
            with open("left", "a") as file:
                file.write("left\\n")

        @shmbatch.batched(max_batch_size=1, wait_ms=0)
        async def act(self, xs: list[int]) -> list[int]:
            async with self.lock:
                await asyncio.sleep(0.002)
            return xs

        @shmbatch.method()
        def refresh(self) -> int:
            return 1

    @app.cls()
    class Told:
        seed: int = shmbatch.parameter()

        @shmbatch.batched(max_batch_size=1, wait_ms=0)
        def act(self, xs: list[int]) -> list[int]:
            return xs
"""
QUICK = ("--max", "4", "--seconds", "0.1")


def tuned(folder: Path, target: str, *options: str) -> subprocess.CompletedProcess[str]:
    written(folder, "sleeper.py", SLEEPER)
    return ran("tune", f"sleeper.py::{target}", *options, cwd=folder)


def document(folder: Path, target: str, *options: str) -> dict[str, Any]:
    result = tuned(folder, target, "--target-ms", "50", "--json", *QUICK, *options)
    assert result.stderr.replace("loaded\n", "") == ""
    assert result.returncode == 0
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.slow
def test_tune_measures_proposes_expects_and_checks(tmp_path: Path) -> None:
    found = document(tmp_path, "nap", "--no-plot")
    assert (found["name"], found["device"], found["plot"]) == ("sleeper.nap", "cpu", None)
    assert [each["size"] for each in found["sizes"]] == [1, 2, 4]
    assert all(2 <= each["p50_ms"] <= each["p99_ms"] for each in found["sizes"])
    proposal = found["proposal"]
    assert (proposal["max_batch_size"], proposal["batch_sizes"]) == (4, None)
    assert 0 < proposal["wait_ms"] < 48
    wait = f"{proposal['wait_ms']:g}"
    assert proposal["decorator"] == (
        f"@shmbatch.batched(max_batch_size=4, wait_ms={wait}, slots=500)"
    )
    assert set(proposal["reasons"]) == {"max_batch_size", "wait_ms", "batch_sizes"}
    assert found["outstanding"] == 12
    assert [each["what"].split()[0] for each in found["checks"]] == [
        *("throughput", "p50", "p99", "p50", "p99")
    ]
    for check in found["checks"]:
        assert check["ratio"] == check["measured"] / check["expected"] > 0
    throughput = found["checks"][0]
    assert throughput["expected"] < 2000, "4 calls in 2 ms are all there can be"
    assert throughput["measured"] < 2000
    assert [at["rate"] for at in found["measured"]] == pytest.approx(
        [0.5 * throughput["expected"], 0.8 * throughput["expected"]]
    )
    for at in (*found["expected"], *found["measured"], *found["curve"]):
        assert 2 <= at["p50_ms"] <= at["p99_ms"]

    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    cells = re.findall(r"^\| (`.*?`) \|", page.partition("tune --json")[2], re.MULTILINE)
    assert [key for cell in cells for key in re.findall(r"`(\w+)`", cell)] == [*found]
    inner = {"overhead", "proposal"}.union(
        *(
            each.keys()
            for each in (
                *(found["overhead"], found["proposal"], found["sizes"][0], found["checks"][0]),
                found["measured"][0],
            )
        )
    )
    assert {key for key in inner if f"`{key}`" not in page} == set()


@pytest.mark.no_transport
@pytest.mark.slow
def test_tune_writes_and_draws_for_people(tmp_path: Path) -> None:
    (tmp_path / "numbers.json").write_text('{"ys": [0.5, 1.5], "xs": [1, 2]}')
    options = ("--target-ms", "50", "--rate", "300", "--input", "numbers.json", *QUICK)
    result = tuned(tmp_path, "nap", *options)
    assert result.returncode == 0
    assert result.stderr.replace("loaded\n", "") == "", "what the file prints is no result"
    text = result.stdout
    assert text.startswith("sleeper.nap on cpu, 2 inputs of numbers.json\n")
    assert re.search(r"^    @shmbatch\.batched\(max_batch_size=4, wait_ms=[\d.]+, slots=500\)$",
                     text, re.MULTILINE)  # fmt: skip
    assert re.search(r"^max_batch_size, 4: twice its .*; --max allows no more", text, re.MULTILINE)
    assert re.search(r"^p99 at 300 calls/s, ms +[\d.]+ +[\d.]+ +[\d.]+$", text, re.MULTILINE)
    assert text.endswith("curves: sleeper.nap.png\n")
    assert (tmp_path / "sleeper.nap.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.no_transport
@pytest.mark.slow
def test_a_method_of_a_class_is_tuned_on_an_object_that_was_entered(tmp_path: Path) -> None:
    found = document(tmp_path, "Policy.act", "--no-plot")
    assert found["name"] == "sleeper.Policy.act"
    assert found["sizes"][0]["p50_ms"] >= 2
    left = (tmp_path / "left").read_text().splitlines()
    assert len(left) == 3, "an object to time, and one each time that it was served"


@pytest.mark.no_transport
@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("nap", ("--target-ms", "1"), "sleeper.nap cannot meet 1 ms: a single call takes 2."),
        ("nothing", (), "app 'sleeper' has no function 'nothing'; it has 'nap', 'shout', "),
        ("", (), "app 'sleeper' has several functions, 'nap', 'shout', "),
        ("Policy.refresh", (), "sleeper.Policy.refresh is a plain method"),
        ("Told.act", (), "class sleeper.Told needs parameters .seed.; give each a default"),
        ("shout", (), "parameter 'texts' of sleeper.shout is a list[str], of which no example"),
        ("divide", (), "divide fails on a batch of 1, inputs made from the signature"),
        ("killed", (), "the executor ran a batch of 1 and was killed by SIGKILL"),
        ("nap", ("--input", "one.npz"), "lacks 'ys'; sleeper.nap takes 'xs', 'ys'"),
        ("nap", ("--input", "floats.npz"), "example 0 of .* must be an int, got float 0.5"),
        ("nap", ("--app", "other"), "has no app 'other'; it has 'sleeper'"),
    ],
)
def test_what_cannot_be_tuned_is_said_in_a_line(
    target: str, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    ones = np.ones(3, np.int64)
    np.savez(tmp_path / "one.npz", xs=ones)
    np.savez(tmp_path / "floats.npz", xs=ones / 2, ys=ones / 2)
    options = options if "--target-ms" in options else ("--target-ms", "50", *options)
    result = tuned(tmp_path, target, "--no-plot", *QUICK, *options)
    assert (result.stdout, result.returncode) == ("", 1)
    errors = [line for line in result.stderr.splitlines() if line != "loaded"]
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("error: ")
    assert re.search(message.replace("[", r"\[").replace("(", r"\("), errors[0]), errors[0]


@pytest.mark.no_transport
def test_a_file_that_is_not_there_is_said_in_a_line(tmp_path: Path) -> None:
    result = ran("tune", tmp_path / "x.py", "--target-ms", "5", "--no-plot")
    assert result.stderr == f"error: there is no file '{tmp_path / 'x.py'}'\n"
    assert (result.stdout, result.returncode) == ("", 1)


@pytest.mark.no_transport
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plot", "x.jpg"), "--plot is 'x.jpg'; use a file .png"),
        (("--plot", "nowhere/x.png"), "there is no folder"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = tuned(tmp_path, "nap", "--target-ms", "50", *options)
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "loaded" not in result.stderr
    assert (result.stdout, result.returncode) == ("", 1)


@pytest.mark.no_transport
def test_without_matplotlib_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'matplotlib'\", name='matplotlib')\n"
    )
    written(tmp_path, "sleeper.py", SLEEPER)
    arguments = ("tune", tmp_path / "sleeper.py", "--target-ms", "50")
    result = ran(*arguments, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert result.stderr == (
        "error: matplotlib is not installed; get it with `pip install 'shmbatch[tune]'`\n"
    )
    assert (result.stdout, result.returncode) == ("", 1)


@pytest.mark.no_transport
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--target-ms", "0"),
        ("--target-ms", "nan"),
        ("--target-ms", "5", "--rate", "0"),
        ("--target-ms", "5", "--max", "0"),
        ("--target-ms", "5", "--seconds", "0"),
        ("--target-ms", "5", "--plot", "x.png", "--no-plot"),
        ("--target-ms", "5", "--device", "gpu"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    result = tuned(tmp_path, "nap", *options)
    assert result.stderr.startswith("Usage: shmbatch tune")
    assert (result.stdout, result.returncode) == ("", 2)


@pytest.mark.no_transport
def test_who_is_interrupted_leaves_no_process_behind(tmp_path: Path) -> None:
    file = written(tmp_path, "sleeper.py", SLEEPER)
    others = recorded()
    with started("tune", f"{file}::nap", "--target-ms", "50", "--no-plot") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loaded\n"
        before = recorded() - others
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (output, errors.strip(), process.returncode) == ("", "Aborted!", 1)
    assert len(before) >= 2, "the command, and its executor"
    assert [pid for pid in before if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.slow  # as long as the model takes to load, several times
@pytest.mark.timeout(600)
@pytest.mark.no_transport
@pytest.mark.parametrize(("target", "target_ms"), [("digits.py::classify", 20), ("embed.py", 300)])
def test_the_throughput_to_expect_of_a_model_is_what_comes(
    target: str, target_ms: int, tmp_path: Path
) -> None:
    texts = [f"{who} likes {what}." for who in ("Nobody", "My cat") for what in ("tea", "rain")]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    command = [sys.executable, "-m", "shmbatch", "tune", f"{ROOT}/docs/examples/{target}"]
    command += ["--target-ms", str(target_ms), "--no-plot", "--json"]
    if target == "embed.py":
        command += ["--input", "texts.json"]
    ratios = []
    for _ in range(3):  # others may use the machine
        result = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=300
        )
        assert (result.stderr, result.returncode) == ("", 0)
        ratios.append(json.loads(result.stdout)["checks"][0]["ratio"])
        if 0.8 <= ratios[-1] <= 1.25:
            return
    pytest.fail(f"measured / expected is {ratios}")
