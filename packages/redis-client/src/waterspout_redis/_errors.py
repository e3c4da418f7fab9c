"""Every error this package raises, and which of them may leave a command executed.

::

    RedisError                      .maybe_executed: was the command sent without its answer being known?
    ├── BadAddress (ValueError)     the URL or the options make no sense
    ├── ConnectError                no connection could be made; nothing was sent
    ├── ConnectionLost              the connection ended before the answer came
    ├── CallTimeout (TimeoutError)  the answer did not come in time
    ├── ClosedError                 the client was closed by its owner
    ├── PoolTimeout (TimeoutError)  no connection of a pool became free in time
    ├── UsageError (ValueError)     the command cannot be used like this on this connection
    ├── WatchError                  a watched key was changed: the transaction was not executed
    ├── ProtocolError               the server sent something that is not RESP; the connection is given up
    └── ResponseError               the server answered with an error; .code is its first word
        ├── AskError                ASK: cluster, the slot is on its way to another node
        ├── AuthenticationError     NOAUTH: log in first
        │   └── WrongPasswordError  WRONGPASS: unknown user or wrong password
        ├── BusyError               BUSY: a script or function is running
        ├── BusyGroupError          BUSYGROUP: the consumer group exists already
        ├── ClusterDownError        CLUSTERDOWN: the cluster cannot serve
        ├── CrossSlotError          CROSSSLOT: the keys live in different slots
        ├── ExecAbortError          EXECABORT: a queued command was refused, nothing was executed
        ├── LoadingError            LOADING: the server is reading its data set
        ├── MasterDownError         MASTERDOWN: the replica has lost its master
        ├── MovedError              MOVED: cluster, the slot lives on another node
        ├── NoPermissionError       NOPERM: the ACL user may not do this
        ├── NoScriptError           NOSCRIPT: no script with that digest
        ├── OutOfMemoryError        OOM: the server is above its maxmemory
        ├── ReadOnlyError           READONLY: a write was sent to a replica
        ├── TryAgainError           TRYAGAIN: cluster, the keys are being moved
        ├── UnknownProtocolError    NOPROTO: the server does not speak the wanted RESP version
        └── WrongTypeError          WRONGTYPE: the key holds another kind of value

A wrong argument is a plain ``TypeError`` (see `_encoding`), raised before anything is sent.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any, Final


class RedisError(Exception):
    """The base of every error of this package."""

    maybe_executed: bool = False
    """True where the command was sent and its answer never came: the server may have executed it, or not."""

    replies: Sequence[Any] = ()
    """Of a pipeline: those that came before this error."""


class BadAddress(RedisError, ValueError):
    """The URL or the options make no sense. The message never holds the password."""


class ConnectError(RedisError):
    """No connection could be made; no command was sent.

    ``address`` is where to (printed without its password), ``step`` is what failed ("connect" for name lookup and TCP,
    "TLS", else the command of the handshake), ``cause`` is why. ``hopeless`` tells that it takes somebody to change
    something: a wrong password, database or certificate does not get right by trying again.
    """

    def __init__(self, address: object, step: str, cause: BaseException) -> None:
        reason = cause.reason if isinstance(cause, ConnectionLost) else str(cause) or type(cause).__name__
        super().__init__(f"cannot connect to {address}: {step} failed: {reason}")
        self.address, self.step, self.cause = address, step, cause
        self.hopeless = step == "SELECT" or isinstance(
            cause, AuthenticationError | NoPermissionError | ssl.SSLCertVerificationError
        )

    def again(self) -> ConnectError:
        """The same for one more who waits: each raises an error of its own."""
        return ConnectError(self.address, self.step, self.cause)


class ConnectionLost(RedisError):
    """The connection ended, for `reason`, before the answer came.

    Raised by a call, `maybe_executed` is True. As the news of a client's link it belongs to no command, and is False.
    """

    def __init__(self, reason: str, *, maybe_executed: bool) -> None:
        super().__init__(f"{reason}; the command may have been executed" if maybe_executed else reason)
        self.reason, self.maybe_executed = reason, maybe_executed


class CallTimeout(RedisError, TimeoutError):
    """The answer did not come within `seconds`; `maybe_executed` tells whether the command was sent.

    ``reason`` is why there is no connection, if there is none.
    """

    def __init__(self, seconds: float, *, maybe_executed: bool, reason: ConnectError | None = None) -> None:
        verdict = "the command may have been executed" if maybe_executed else "the command was not sent"
        super().__init__(f"no answer within {seconds:g} s; {verdict}{f': {reason}' if reason else ''}")
        self.seconds, self.maybe_executed = seconds, maybe_executed
        self.__cause__ = reason


class ClosedError(RedisError):
    """The client was closed by its owner, before or after this command was sent."""

    def __init__(self, reason: str = "the client is closed", *, maybe_executed: bool = False) -> None:
        super().__init__(f"{reason}; the command may have been executed" if maybe_executed else reason)
        self.reason, self.maybe_executed = reason, maybe_executed


class PoolTimeout(RedisError, TimeoutError):
    """Every connection that there may be is in use, and none was given back within `seconds`. Nothing was sent."""

    def __init__(self, seconds: float, size: int) -> None:
        super().__init__(f"none of the {size} connections was given back within {seconds:g} s; nothing was sent")
        self.seconds, self.size = seconds, size


class UsageError(RedisError, ValueError):
    """The client cannot be used like this; the message says what to do instead. Nothing was sent."""


class WatchError(RedisError):
    """A key that is watched was changed by somebody else, so nothing of the transaction was executed."""

    def __init__(self) -> None:
        super().__init__("a watched key was changed: nothing of the transaction was executed, read again and retry")


class ProtocolError(RedisError):
    """The server sent something that is not RESP, or more than was asked for."""


class ResponseError(RedisError):
    """The server answered with an error. ``code`` is its first word, such as "ERR" or "WRONGTYPE"."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class AskError(ResponseError):
    """ASK: the slot is on its way to another node."""


class AuthenticationError(ResponseError):
    """NOAUTH: the server wants a log-in first."""


class WrongPasswordError(AuthenticationError):
    """WRONGPASS: unknown user or wrong password."""


class BusyError(ResponseError):
    """BUSY: a script or function is running."""


class BusyGroupError(ResponseError):
    """BUSYGROUP: the consumer group exists already."""


class ClusterDownError(ResponseError):
    """CLUSTERDOWN: the cluster cannot serve the slot."""


class CrossSlotError(ResponseError):
    """CROSSSLOT: the keys of one command live in different slots."""


class ExecAbortError(ResponseError):
    """EXECABORT: a queued command was refused, so nothing of the transaction was executed."""


class LoadingError(ResponseError):
    """LOADING: the server is still reading its data set."""


class MasterDownError(ResponseError):
    """MASTERDOWN: the replica has lost its master and may not serve stale data."""


class MovedError(ResponseError):
    """MOVED: the slot lives on another node."""


class NoPermissionError(ResponseError):
    """NOPERM: the ACL user may not run the command, or not on that key or channel."""


class NoScriptError(ResponseError):
    """NOSCRIPT: the server holds no script with that digest."""


class OutOfMemoryError(ResponseError):
    """OOM: the server is above its maxmemory."""


class ReadOnlyError(ResponseError):
    """READONLY: a write was sent to a replica."""


class TryAgainError(ResponseError):
    """TRYAGAIN: the keys of one command are being moved between nodes."""


class UnknownProtocolError(ResponseError):
    """NOPROTO: the server does not speak the wanted version of RESP."""


class WrongTypeError(ResponseError):
    """WRONGTYPE: the key holds another kind of value."""


_BY_CODE: Final[dict[str, type[ResponseError]]] = {
    "ASK": AskError,
    "BUSY": BusyError,
    "BUSYGROUP": BusyGroupError,
    "CLUSTERDOWN": ClusterDownError,
    "CROSSSLOT": CrossSlotError,
    "EXECABORT": ExecAbortError,
    "LOADING": LoadingError,
    "MASTERDOWN": MasterDownError,
    "MOVED": MovedError,
    "NOAUTH": AuthenticationError,
    "NOPERM": NoPermissionError,
    "NOPROTO": UnknownProtocolError,
    "NOSCRIPT": NoScriptError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
    "TRYAGAIN": TryAgainError,
    "WRONGPASS": WrongPasswordError,
    "WRONGTYPE": WrongTypeError,
}


def response_error(message: str) -> ResponseError:
    """The exception for one RESP error reply.

    A plain function on purpose: hiredis never lets go of a bound method given as its ``replyError``.
    """
    return _BY_CODE.get(message.partition(" ")[0], ResponseError)(message)


def unanswered(error: RedisError, *, maybe_executed: bool) -> RedisError:
    """What to tell one command whose connection ended with `error`: an error of its own, raised by it alone."""
    if isinstance(error, ClosedError):
        return ClosedError(error.reason, maybe_executed=maybe_executed)
    lost = ConnectionLost(
        error.reason if isinstance(error, ConnectionLost) else str(error), maybe_executed=maybe_executed
    )
    lost.__cause__ = None if isinstance(error, ConnectionLost) else error
    return lost
