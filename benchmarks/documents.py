"""Which documents say what was measured: they are written anew from the committed results.

    python -m benchmarks.documents

Replaces what stands between the marks of each fragment; the tests hold documents against results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks import fragments
from benchmarks._report import HERE

README = HERE.parent / "README.md"
PAGE = HERE.parent / "docs" / "explanation" / "benchmarks.md"

WRITTEN: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"figures": fragments.sentence},
    PAGE: {
        "promises": fragments.promises,
        **{work: partial(fragments.rivals, work) for work in ("tiny", "image", "mlp", "embed")},
        "instructions": fragments.instructions,
        "waiting": partial(fragments.pictures, "waiting"),
        "tails": fragments.tails,
        "scale": partial(fragments.pictures, "scale"),
        "pipeline": partial(fragments.pictures, "pipeline"),
        "between": fragments.between,
    },
}


def marks(name: str) -> tuple[str, str]:
    """Return what begins a fragment, and what ends it; each is a line."""
    return (
        f"<!-- {name}: written by `python -m benchmarks.documents` -->\n",
        f"<!-- end of {name} -->\n",
    )


def replaced(path: Path, texts: Mapping[str, str]) -> str:
    """Return the document at *path* with these texts between their marks."""
    document = path.read_text()
    for name, text in texts.items():
        begin, end = marks(name)
        before, begun, rest = document.partition(begin)
        _, ended, after = rest.partition(end)
        if not (begun and ended):
            raise SystemExit(
                f"{path.name} has no place for {name}: {begin.strip()} ... {end.strip()}"
            )
        document = before + begin + text + end + after
    return document


def written(path: Path) -> str:
    """Return the document as the results would have it."""
    return replaced(path, {name: fragment() for name, fragment in WRITTEN[path].items()})


def main() -> None:
    for path in WRITTEN:
        path.write_text(written(path))


if __name__ == "__main__":
    main()
