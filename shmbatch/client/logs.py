"""What a producer logs: few things, and only if its program logs at all.

``logging`` takes 10 ms to import. A program that has not imported it listens to nothing that is
said here, all of which is below WARNING, so there it is not imported.
"""

from __future__ import annotations

import sys

DEBUG = 10
INFO = 20


def say(level: int, message: str, *arguments: object) -> None:
    """Log *message* as ``shmbatch.client``."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger("shmbatch.client").log(level, message, *arguments)
