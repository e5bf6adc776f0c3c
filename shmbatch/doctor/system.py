"""Whether the kernel has what is needed, and whether a setting of it makes calls slow."""

from __future__ import annotations

from collections.abc import Sequence

from .finding import Finding, nbytes, ok, problem, warning

KERNEL, CORE, CLOCK, HUGE_PAGES = "kernel", "native core", "clock", "huge pages"
OVERCOMMIT, QUEUE = "overcommit", "queue of sockets"

# Read without a system call; others take about a microsecond, several times a call.
_SLOW_CLOCKS = {"hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit"}

_QUEUE_WANTED = 512  # what an executor asks for
_QUEUE_SMALL = 128


def kernel(release: str, missing: Sequence[str], *, peer_pidfd: bool) -> Finding:
    """Look at what the kernel offers.

    Args:
        missing: what it lacks of that which nothing works without.
        peer_pidfd: whether a socket tells its peer's pidfd.
    """
    if missing:
        return problem(
            KERNEL,
            f"Linux {release} has no {', no '.join(missing)}",
            "use Linux 5.3 or newer, and a sandbox that allows these calls",
        )
    if not peer_pidfd:
        return warning(
            KERNEL,
            f"Linux {release} does not say who is at the other end of a socket, but for a number; "
            f"who dies just while it connects may be taken for another",
            "use Linux 6.5 or newer",
        )
    return ok(KERNEL, f"Linux {release} has sealed memfds, pidfds and SO_PEERPIDFD")


def core(error: str | None) -> Finding:
    if error is not None:
        return problem(
            CORE,
            f"cannot be loaded: {error}",
            "install shmbatch anew with a C compiler: pip install --force-reinstall shmbatch",
        )
    return ok(CORE, "is built and loads")


def clock(current: str) -> Finding:
    if current in _SLOW_CLOCKS:
        return warning(
            CLOCK,
            f"the kernel's clock source is {current!r}; reading it takes a system call and a "
            f"microsecond, and a call reads it several times",
            "find out with `dmesg | grep -i clocksource` why the machine distrusts its tsc",
        )
    return ok(CLOCK, f"clock source {current or 'unknown'}")


def huge_pages(shmem_enabled: str) -> Finding:
    """Args: shmem_enabled: what the kernel's file of that name says, the choice in brackets."""
    chosen = shmem_enabled.partition("[")[2].partition("]")[0]
    if chosen in ("always", "force"):
        return warning(
            HUGE_PAGES,
            f"shared memory has huge pages {chosen}: even a small segment takes 2 MiB",
            "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        )
    return ok(HUGE_PAGES, f"of shared memory: {chosen or 'not in this kernel'}")


def overcommit(mode: int, limit: int, committed: int) -> Finding:
    """Look at whether memory is promised strictly.

    Args:
        mode: of vm.overcommit_memory; 2 is strict.
        limit, committed: bytes that may be and that are promised.
    """
    if mode != 2:
        return ok(OVERCOMMIT, f"vm.overcommit_memory is {mode}: only what is used counts")
    left = max(0, limit - committed)
    return warning(
        OVERCOMMIT,
        f"vm.overcommit_memory is 2, and {nbytes(left)} of {nbytes(limit)} can still be promised; "
        f"segments count, and so does what torch reserves and never uses",
        "sysctl vm.overcommit_memory=0, or a larger vm.overcommit_ratio",
    )


def queue(somaxconn: int) -> Finding:
    if somaxconn < _QUEUE_SMALL:
        return warning(
            QUEUE,
            f"net.core.somaxconn is {somaxconn}: of producers that connect at the same moment "
            f"more than that are turned away, and try again",
            f"sysctl net.core.somaxconn={_QUEUE_WANTED}",
        )
    return ok(QUEUE, f"net.core.somaxconn is {somaxconn}")
