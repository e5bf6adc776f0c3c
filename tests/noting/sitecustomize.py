"""Python imports this by itself when it starts: each process of a test session notes its number,
so that what it leaves in /dev/shm can be told from what other sessions leave."""

import os


def note(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    os.write(fd, f"{os.getpid()}\n".encode())
    os.close(fd)


if path := os.environ.get("SHMBATCH_TEST_PIDS"):
    note(path)
    os.register_at_fork(after_in_child=lambda: note(path))
