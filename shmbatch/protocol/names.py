"""What a name may look like, and which one an app goes by in this process."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass

from ..errors import ConfigError

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,40}")

# `run` serves an app under a private name, and tells its children so: "sums=run-1a2b,other=..."
PRIVATE_NAMES = "SHMBATCH_NAMES"
RUN = "run-"  # how each of these private names begins

MOST_SHOWN = 200  # characters, of what says which instance of a class is meant, in messages

_APP_PART, _CLASS_PART, _DIGEST_NBYTES = 16, 10, 6  # with two hyphens, 40 characters

_mutex = threading.RLock()


def _forget_after_fork() -> None:
    """In a forked child: no other thread is left to leave the mutex."""
    global _mutex
    _mutex = threading.RLock()


os.register_at_fork(after_in_child=_forget_after_fork)


def check_name(text: str, what: str) -> str:
    """Return *text* if it may be (a part of) a name, else raise `ConfigError` about *what*."""
    if not isinstance(text, str) or not NAME_PATTERN.fullmatch(text):
        raise ConfigError(
            f"{what} is {str(text)[:60]!r}; a name is 1 to 40 ASCII letters, digits, '_' or '-'"
        )
    return text


@dataclass(frozen=True, slots=True)
class Address:
    """What a producer connects to: the app's name, and ``function`` or ``Class.method``.

    Raises:
        ConfigError: a part is missing, is one too many, or is not a name.
    """

    app: str
    function: str
    instance: str = ""  # of a class: its parameters, as in "seed=3"; "" if all are the defaults

    def __post_init__(self) -> None:
        check_name(self.app, "app name")
        class_name, dot, function = self.function.rpartition(".")
        if dot:
            check_name(class_name, "class name")
        check_name(function, "function name")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``sums.batch_add`` or ``sums.Class.method``."""
        app, dot, function = text.partition(".")
        if not dot:
            raise ConfigError(
                f"address {text[:60]!r} names no function; "
                f"write 'app.function' or 'app.Class.method'"
            )
        return cls(app, function)

    def served_as(self) -> str:
        """Return the name that the executor is found by, from this process.

        Raises:
            ConfigError: as `resolve`.
        """
        app = resolve(self.app)
        if not self.instance:
            return app
        return instance_name(app, self.function.partition(".")[0], self.instance)

    def __str__(self) -> str:
        class_name, dot, function = self.function.rpartition(".")
        instance = f"({self.instance:.{MOST_SHOWN}})" if self.instance else ""
        return f"{self.app}.{class_name}{instance}{dot}{function}"


def instance_name(app: str, class_name: str, instance: str) -> str:
    """Return the name of the executor that serves one instance of a class of *app*.

    Readable as far as 40 characters allow, and with a digest of all of it, so that different
    instances have different names.
    """
    from hashlib import blake2b

    text = "\0".join((app, class_name, instance))
    digest = blake2b(text.encode(), digest_size=_DIGEST_NBYTES)
    return f"{app[:_APP_PART]}-{class_name[:_CLASS_PART]}-{digest.hexdigest()}"


def resolve(app: str) -> str:
    """Return the private name that *app* has in this process, else *app* itself.

    Raises:
        ConfigError: *app* is not a name, or SHMBATCH_NAMES is malformed.
    """
    return _read_private_names().get(check_name(app, "app name"), app)


def advertise(app: str, private: str) -> None:
    """Let *app* mean *private* here and in children started from now on."""
    check_name(app, "app name")
    check_name(private, "private name")
    with _mutex:
        _store_private_names({**_read_private_names(), app: private})


def withdraw(app: str) -> None:
    """Let *app* mean itself again; does nothing if it does already."""
    with _mutex:
        names = _read_private_names()
        if names.pop(app, None):
            _store_private_names(names)


def environment(app: str, private: str) -> dict[str, str]:
    """Return this process's environment, for a child in which *app* means *private*."""
    with _mutex:
        private_names = {**_read_private_names(), app: private}
    return {**os.environ, PRIVATE_NAMES: _written(private_names)}


def _read_private_names() -> dict[str, str]:
    names = {}
    for entry in filter(None, os.environ.get(PRIVATE_NAMES, "").split(",")):
        app, _, private = entry.partition("=")
        check_name(app, f"app name in {PRIVATE_NAMES}")
        names[app] = check_name(private, f"private name of {app!r} in {PRIVATE_NAMES}")
    return names


def _store_private_names(names: dict[str, str]) -> None:
    if names:
        os.environ[PRIVATE_NAMES] = _written(names)
    else:
        os.environ.pop(PRIVATE_NAMES, None)


def _written(names: dict[str, str]) -> str:
    return ",".join(f"{app}={names[app]}" for app in names)
