"""A directory of sockets that no other test has."""

from tests.programs import sockets

__all__ = ["sockets"]  # used by itself
