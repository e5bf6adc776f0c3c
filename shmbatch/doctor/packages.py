"""Whether the packages fit together, from what is installed and without importing it."""

from __future__ import annotations

from collections.abc import Mapping

from .finding import Finding, ok, warning

PACKAGES, GPU = "packages", "GPU"


def versions(python: str, installed: Mapping[str, str]) -> Finding:
    shown = ", ".join(f"{name} {version}" for name, version in installed.items())
    return ok(PACKAGES, f"Python {python}, {shown}")


def gpu(torch: str | None, driver: str | None, device: str) -> Finding:
    """Look at whether torch could use the GPU that there is.

    Args:
        torch: its version; None if it is not installed.
        driver: the NVIDIA driver's version; None if there is none.
        device: what executors are told to use.
    """
    if driver is None:
        if device.startswith("cuda"):
            return warning(
                GPU,
                f"executors are told to use {device}, and there is no NVIDIA driver",
                "install it, run the container with its GPUs, or unset SHMBATCH_DEVICE",
            )
        return ok(GPU, "no NVIDIA driver; functions run on the CPU")
    if torch is None:
        return ok(GPU, f"NVIDIA driver {driver}; no torch")
    if "+cpu" in torch:
        return warning(
            GPU,
            f"NVIDIA driver {driver}, but torch {torch} is built for the CPU alone",
            "install a build of torch for CUDA",
        )
    return ok(GPU, f"NVIDIA driver {driver}, torch {torch}")
