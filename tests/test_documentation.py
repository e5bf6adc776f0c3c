"""Every example in README.md and docs/ is run, in order, with what it says it prints.

A block of ``python`` begins with a comment that names the file it is. A block of ``console`` is
commands and their output; a command that ends in ``&`` goes on in the background. A block of
``pycon`` is a doctest. The blocks of one document share one folder and one session.
"""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import _report, bench_roundtrip, bench_throughput, readme_figures
from tests.programs import ran, started

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\b")
_LINK = re.compile(r"\]\(([^)#\s]+)")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def blocks(document: Path) -> Iterator[Block]:
    text = document.read_text()
    for found in _BLOCK.finditer(text):
        yield Block(found[1], found[2], text[: found.start()].count("\n") + 1)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_the_examples_of_a_document_do_what_it_says(document: Path, tmp_path: Path) -> None:
    session: dict[str, object] = {}
    with ExitStack() as background:
        for block in blocks(document):
            where = f"{name(document)}, line {block.line}"
            if block.language == "python":
                file = _FILE.match(block.text)
                assert file, f"{where}: the example names no file in its first line"
                (tmp_path / file[1]).write_text(block.text)
            elif block.language == "pycon":
                test = doctest.DocTestParser().get_doctest(
                    block.text, session, where, str(document), block.line
                )
                report: list[str] = []
                runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
                runner.run(test, out=report.append, clear_globs=False)
                session.update(test.globs)
                assert runner.summarize(verbose=False).failed == 0, "".join(report)
            elif block.language == "console":
                for command, output in _commands(block.text):
                    program, *arguments = shlex.split(command)
                    assert program == "shmbatch", f"{where}: nobody knows how to run {command!r}"
                    if arguments[-1] == "&":
                        process = background.enter_context(started(*arguments[:-1], cwd=tmp_path))
                        assert process.stderr is not None
                        assert "serves" in process.stderr.readline()
                    else:
                        result = ran(*arguments, cwd=tmp_path)
                        assert (result.stdout, result.stderr) == (output, ""), where
            else:
                assert block.language in ("", "text"), f"{where}: unknown kind of example"
        session.clear()


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console and what it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


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
    wanted = ["shmbatch.errors.", "pip install", readme_figures.BEGIN, "Do not use it"]
    places = [screen.find(each) for each in wanted]
    assert -1 not in places
    assert places == sorted(places)


def test_the_figures_in_the_readme_are_those_of_the_results() -> None:
    for name in ("roundtrip", "throughput"):
        assert (readme_figures.RESULTS / f"{name}.json").exists(), "run `make bench`"
    readme = readme_figures.README.read_text()
    assert readme == readme_figures.replaced(readme, readme_figures.fragment()), (
        "run `python -m benchmarks.readme_figures`"
    )


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
    ours, sockets = (bench_throughput.LABELS[name] for name in ("shmbatch", "sockets"))
    roundtrip = {
        "machine": machine,
        "systems": {auto: {"p50_us": spread(2.34).document()}},
        "ratios": [ratio("something else", 9), ratio(f"{pipe} / {auto}", 31.4)],
    }
    throughput = {
        "machine": machine,
        "works": {"tiny": {ours: {"calls_per_s": spread(281_499).document()}}},
        "ratios": [
            ratio(f"{work}, calls/s: {ours} / {sockets}", middle)
            for work, middle in (("tiny", 3.06), ("image", 2.94))
        ],
    }
    _report.write_json(folder / "roundtrip.json", roundtrip)
    _report.write_json(folder / "throughput.json", throughput)


def test_figures_are_written_from_results(tmp_path: Path) -> None:
    measured(tmp_path, runs=5)
    text = readme_figures.fragment(tmp_path)
    assert " ".join(text.split()) == (
        "A lone 16-byte call and its answer take 2.3 µs (p50), 31 times less than over a "
        "`multiprocessing.Pipe`; four producers with eight calls each in flight get 281,000 "
        "answers a second, 3.1 times what the best hand-written batching loop over UNIX sockets "
        "gives them (2.9 times for images of 602 KB) (A Processor, 2 CPUs, Linux 6.12, "
        "CPython 3.13.1, 2026-01-02; [method and all figures](benchmarks/README.md))."
    )
    assert len(text.splitlines()) <= 5

    readme = readme_figures.README.read_text()
    written = readme_figures.replaced(readme, text)
    assert written.count(text) == 1
    assert readme_figures.replaced(written, "other figures\n").count(text) == 0
    before, _, rest = readme.partition(readme_figures.BEGIN)
    assert written.startswith(before)
    assert written.endswith(rest.partition(readme_figures.END)[2])


def test_figures_that_are_not_there_are_not_invented(tmp_path: Path) -> None:
    assert "make bench" in readme_figures.fragment(tmp_path)
    measured(tmp_path, runs=1)
    (tmp_path / "throughput.json").unlink()
    assert "make bench" in readme_figures.fragment(tmp_path)
    with pytest.raises(SystemExit, match=r"README\.md has no place for figures"):
        readme_figures.replaced("# shmbatch\n", "nothing")


def test_every_example_has_a_test_here() -> None:
    assert [path.name for path in EXAMPLES] == ["digits.py", "sums.py"]


@pytest.mark.parametrize("arguments", [["run"], []], ids=["shmbatch run", "python"])
def test_sums(arguments: list[str]) -> None:
    file = ROOT / "docs" / "examples" / "sums.py"
    result = ran(*arguments, file, python=not arguments)
    assert result.stdout == "Sum: 301\nSum: 202\nSum: 103\n"
    assert (result.stderr, result.returncode) == ("", 0)


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


@pytest.mark.parametrize(
    ("check", "unmet"),
    [("TOLERANCE = 1e-4", "TOLERANCE = -1"), ("ACCURACY = 0.95", "ACCURACY = 1")],
    ids=["difference", "accuracy"],
)
def test_digits_that_are_not_as_they_must_be_are_a_failure(
    check: str, unmet: str, tmp_path: Path
) -> None:
    text = (ROOT / "docs" / "examples" / "digits.py").read_text()
    for setting, worse in ((check, unmet), ("ROUNDS = 20", "ROUNDS = 1")):
        assert setting in text
        text = text.replace(setting, worse)
    (tmp_path / "digits.py").write_text(text)
    result = ran("run", tmp_path / "digits.py")
    assert result.stderr == "error: a check failed\n"
    assert result.returncode == 1
