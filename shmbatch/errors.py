"""Every exception of this package.

::

    ShmbatchError
      ConfigError           a definition or an option is wrong       (also ValueError)
        LoadError           a user's file cannot be used
      InputError            a value does not fit its parameter
        InputTypeError                                               (also TypeError)
        InputValueError                                              (also ValueError)
      RingFull              no slot became free in time
      CallTimeout           the caller's timeout passed              (also TimeoutError)
      CallCancelled         the caller cancelled this call
      DeadlineExceeded      it was not launched by its deadline_ms   (also TimeoutError)
      BatchResultError      the function did not return one result per input
      ResultError           one result does not fit its declared type
      RemoteError           the function raised something this process cannot rebuild
      ExecutorNotFound      nobody serves that name                  (also LookupError)
      ExecutorClosed        the executor takes no more calls
      ExecutorGone          the executor died                        (also ConnectionError)
      HandshakeError        executor and producer do not fit together
        VersionMismatch     they run different versions
        SignatureMismatch   they have different signatures for the function
        UnknownFunction     the executor has no function of that name (also LookupError)
      NameTaken             another live executor serves that name
      ProtocolError         the peer broke the protocol: a bug, or memory overwritten

Names that end in ``Error`` are faults. The bare ones are conditions that a correct program
expects and handles, as with ``queue.Full``.
"""

from __future__ import annotations


class ShmbatchError(Exception):
    """Base of everything below; never raised itself."""


class ConfigError(ShmbatchError, ValueError):
    """A definition, an option or a setting is wrong; raised before anything runs."""


class LoadError(ConfigError):
    """A user's file is missing, fails to import, or does not hold what was asked of it."""


class InputError(ShmbatchError):
    """A value does not fit its parameter; refused in the producer, before it joins a batch."""


class InputTypeError(InputError, TypeError):
    """The value has the wrong type, dtype or device, or the call has the wrong arguments."""


class InputValueError(InputError, ValueError):
    """The value has the right type but the wrong shape or range."""


class RingFull(ShmbatchError):
    """Every slot was in use until the timeout passed."""


class CallTimeout(ShmbatchError, TimeoutError):
    """The caller's timeout passed before the result arrived."""


class CallCancelled(ShmbatchError):
    """The caller cancelled this call."""


class DeadlineExceeded(ShmbatchError, TimeoutError):
    """The call was not launched by its deadline; it never ran and never will."""


class BatchResultError(ShmbatchError):
    """The function did not return a list or a stack with one result per input."""


class ResultError(ShmbatchError):
    """One result does not fit the declared result; batch-mates are not affected."""


class RemoteError(ShmbatchError):
    """The function raised an exception whose class this process does not have."""


class ExecutorNotFound(ShmbatchError, LookupError):
    """No live executor serves that name."""


class ExecutorClosed(ShmbatchError):
    """The executor is draining or has stopped; this call never ran."""


class ExecutorGone(ShmbatchError, ConnectionError):
    """The executor died; calls that it had taken may or may not have run.

    If it could still say why, as after an illegal access on a GPU, the message has the cause.
    """


class HandshakeError(ShmbatchError):
    """Executor and producer do not fit together."""


class VersionMismatch(HandshakeError):
    """Executor and producer run different versions of the protocol."""


class SignatureMismatch(HandshakeError):
    """Executor and producer have different signatures for one function."""


class UnknownFunction(HandshakeError, LookupError):
    """The executor serves no function of that name."""


class NameTaken(ShmbatchError):
    """Another live executor serves that name."""


class ProtocolError(ShmbatchError):
    """The peer broke the protocol: a bug, or somebody overwrote the shared memory."""


def rebuilt(name: object, message: object, unknown: type[ShmbatchError]) -> ShmbatchError:
    """Return the error that another process reports; as *unknown* where it is none of these."""
    kind = globals().get(str(name))
    if not (isinstance(kind, type) and issubclass(kind, ShmbatchError)):
        kind = unknown
    return kind(str(message))
