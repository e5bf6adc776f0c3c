"""A directory of sockets that no other test has."""

from tests.programs import logs, sockets

__all__ = ["logs", "sockets"]  # the latter is used by itself
