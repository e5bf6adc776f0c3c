"""`connect`: a handle in a process that has neither the user's file nor its imports."""

from __future__ import annotations

from ..errors import ConfigError
from ..protocol.names import Address
from ..protocol.spinning import wait_mode
from .function import Function
from .results import ARRAYS


def connect(
    address: str,
    timeout: float | None = 10,
    *,
    arrays: str = "native",
    wait: str | None = None,
) -> Function:
    """Connect to a function that an executor serves, and return its handle.

    Args:
        address: ``"app.function"`` or ``"app.Class.method"``.
        timeout: seconds to wait for the name to be served; None for ever.
        arrays: ``"numpy"`` to get tensors as numpy arrays, without importing torch.
        wait: ``"auto"``, ``"spin"`` or ``"park"``; by default what SHMBATCH_WAIT says.

    Raises:
        ExecutorNotFound: nobody served the name in time.
        HandshakeError: the executor has another version, or no such function.
        ConfigError: an argument is wrong.
    """
    function = handle(address, arrays=arrays, wait=wait)
    function.connect(timeout, served=True)
    return function


def handle(address: str, *, arrays: str, wait: str | None) -> Function:
    """Return a handle that is not connected; arguments and errors as of `connect`."""
    if arrays not in ARRAYS:
        raise ConfigError(f"arrays is {arrays!r}; it must be one of {', '.join(ARRAYS)}")
    return Function(Address.parse(address), arrays=arrays, wait=wait_mode(wait))
