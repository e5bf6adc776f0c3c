"""What a process has of the things that must not grow."""

from __future__ import annotations

from pathlib import Path


def held(pid: int) -> dict[str, int]:
    resident_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return {
        "resident": resident_pages * 4096,
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
    }
