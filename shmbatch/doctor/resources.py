"""Whether descriptors, CPUs and memory suffice, and for how many producers."""

from __future__ import annotations

from .finding import Finding, nbytes, ok, problem, warning

DESCRIPTORS, CPUS, MEMORY, SHM = "descriptors", "CPUs", "memory", "/dev/shm"

_PRODUCERS_FEW, _PRODUCERS_MANY = 64, 256
_LITTLE, _SOME = 64 << 20, 512 << 20


def descriptors(soft: int, hard: int, producers: int, wanted: int) -> Finding:
    """Look at how many producers an executor that is started from here can have.

    Args:
        soft, hard: the limits.
        producers: how many fit into the soft one.
        wanted: a soft limit that 256 fit into.
    """
    found = (
        f"`ulimit -n` is {soft}, so an executor can have {producers} producers, "
        f"each counted once for every function that it calls"
    )
    if producers >= _PRODUCERS_MANY:
        return ok(DESCRIPTORS, found)
    remedy = f"`ulimit -n {wanted}`, or LimitNOFILE={wanted} in its unit"
    if hard < wanted:
        remedy = f"have the hard limit raised, which is {hard}; then {remedy}"
    if producers >= _PRODUCERS_FEW:
        return warning(DESCRIPTORS, found, remedy)
    return problem(DESCRIPTORS, found, remedy)


def cpus(usable: int, affinity: int, online: int) -> Finding:
    """Look at whether executor and producers can run at the same time.

    Args:
        usable: how many CPUs mask and cgroup leave; the mask alone leaves *affinity*.
        online: how many the machine has.
    """
    limits = []
    if affinity < online:
        limits.append(f"the mask leaves {affinity}")
    if usable < affinity:
        limits.append(f"the quota of a cgroup leaves {usable}")
    why = f" ({', '.join(limits)})" if limits else ""
    found = f"{usable} of {online} can be used{why}"
    if usable == 1:
        return warning(
            CPUS,
            f"{found}; where two have to take turns, a lone call takes two wake-ups",
            "give executor and producers two CPUs, if a tenth of a millisecond matters",
        )
    return ok(CPUS, f"{found}; waiting `auto` spins as long as that pays")


def memory(available: int, total: int, machine: int) -> Finding:
    """Look at how much memory there is for segments.

    Args:
        available, total: bytes, as this process may use them.
        machine: bytes that the machine has.
    """
    by = ", which is what its cgroup allows" if total < machine else ""
    found = f"{nbytes(available)} of {nbytes(total)}{by} are free"
    if available < _LITTLE:
        return problem(
            MEMORY, f"{found}; executors refuse producers", "free some, or allow the cgroup more"
        )
    if available < _SOME:
        return warning(
            MEMORY,
            f"{found}; an executor refuses a producer whose slots do not fit",
            "free some, allow the cgroup more, or give functions fewer slots=",
        )
    return ok(MEMORY, found)


def shm(transport: str, room: tuple[int, int] | None) -> Finding:
    """Look at /dev/shm, which transport posix needs, and torch's DataLoader.

    Args:
        transport: the one that is used here.
        room: bytes of it that are free, and all; None if it is not there.
    """
    found = "is not there"
    if room is not None:
        found = f"{nbytes(room[0])} of {nbytes(room[1])} are free"
    if transport != "posix":
        return ok(SHM, f"{found}; transport {transport} does not use it")
    remedy = "enlarge it (of a container with --shm-size), or use transport linux"
    if room is None or room[0] < 1 << 20:
        return problem(SHM, f"{found}, and transport posix has its segments there", remedy)
    if room[0] < _LITTLE:
        return warning(SHM, f"{found}, and transport posix has its segments there", remedy)
    return ok(SHM, found)
