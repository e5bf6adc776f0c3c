"""What a process is told that may open no more descriptors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ConfigError, ShmbatchError


def shortage(what: str, error: BaseException | None) -> ConfigError | None:
    """Return what to say instead of *error* if it is that; None if it is something else.

    Args:
        what: what cannot be done for want of a descriptor, as in ``"connect to 'sums'"``.
    """
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return ConfigError(f"cannot {what}: {error.strerror}; raise the limit, see `ulimit -n`")
    return None


@contextmanager
def needed(what: str) -> Iterator[None]:
    """Turn a want of descriptors within, and an error whose cause it is, into a `ConfigError`."""
    try:
        yield
    except (OSError, ShmbatchError) as error:
        told = shortage(what, error) or shortage(what, error.__cause__)
        if told is None or isinstance(error, ConfigError):  # which says so itself
            raise
        raise told from error
