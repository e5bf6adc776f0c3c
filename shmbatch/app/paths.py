"""Where a path leads that a user gives."""

from __future__ import annotations

from pathlib import Path

from ..errors import LoadError


def resolved(path: Path) -> Path:
    """Return *path* made absolute, symbolic links followed.

    Raises:
        LoadError: it is relative, and the working directory has been removed.
    """
    try:
        return path.resolve()
    except FileNotFoundError:
        raise LoadError(
            f"the working directory is gone, from which '{path}' was to be taken; "
            f"change to another, or give an absolute path"
        ) from None
