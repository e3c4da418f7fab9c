"""The protocol without any I/O: bytes in, events out, and who waits for which reply.

A session knows no socket, clock or event loop. Its owner writes commands to the server itself and tells the
session who waits for the reply (`expect`), then hands over whatever bytes arrive (`receive`) and gets events, in
the order of the stream:

- ``(slot, reply)``: a reply, with the slot that waited for it. Slots are opaque here; they are answered first in,
  first out, so a slot belongs to its command and not to the caller, who may have gone.
- ``list`` of `PubSubMessage`: messages that came one right after the other.
- ``Push``: any other thing the server said unasked.

Subscribing is the one place where the two RESP versions differ, and where replies and messages mix. Everything is
routed by its kind, never by when it came: see `expect_confirmations`.

Sources: the RESP3 specification (pushes); Redis' Pub/Sub documentation (RESP2's subscribed mode).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from hiredis import PushNotification, Reader

from ._errors import ProtocolError, ResponseError, response_error
from ._screen import Screen

Slot = TypeVar("Slot")


class PubSubMessage(NamedTuple):
    """One published message, as it came: `pattern` is the pattern it matched, None without one."""

    channel: bytes
    data: bytes
    pattern: bytes | None = None


@dataclass(frozen=True, slots=True)
class Push:
    """Something the server said unasked that is no message: its kind, such as b"invalidate", and the rest."""

    kind: bytes
    data: list[Any]


Event: TypeAlias = tuple[Slot, Any] | list[PubSubMessage] | Push

MAX_REPLY_BYTES: Final = 1 << 30

_INCOMPLETE: Final = object()
_MESSAGES: Final = frozenset({b"message", b"smessage"})
_PATTERN_MESSAGE: Final = b"pmessage"
_SHARD_CONFIRMATIONS: Final = frozenset({b"ssubscribe", b"sunsubscribe"})
_CONFIRMATIONS: Final = _SHARD_CONFIRMATIONS | {b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe"}
_RESP2_KINDS: Final = _CONFIRMATIONS | _MESSAGES | {_PATTERN_MESSAGE}

# NamedTuple's own __new__ is Python code and twice as slow; a message is made for every one received.
_new_tuple: Final = tuple.__new__


class _Confirmations(Generic[Slot]):
    """Stands in line for one (un)subscribe command: it is answered once per name."""

    __slots__ = ("kind", "names", "slot")

    def __init__(self, slot: Slot, kind: bytes, names: list[bytes]) -> None:
        self.slot, self.kind, self.names = slot, kind, names


class Session(Generic[Slot]):
    """One connection's worth of protocol. After a failure (`failure` is set) it is of no more use.

    ``max_reply_bytes`` bounds what is held of a reply that is not complete, as the server sends it (the objects made of
    it take more: 64 bytes for an empty list, which came in 4). The default, 1 GiB, is twice what Redis allows one
    value to have (``proto-max-bulk-len``).
    """

    __slots__ = (
        "_channels",
        "_max_reply_bytes",
        "_reader",
        "_screen",
        "_shard_channels",
        "_unfinished",
        "_waiting",
        "failure",
        "resp3",
    )

    def __init__(self, *, max_reply_bytes: int = MAX_REPLY_BYTES) -> None:
        self._reader = Reader(protocolError=ProtocolError, replyError=response_error, notEnoughData=_INCOMPLETE)
        self._screen = Screen(self._reader, max_reply_bytes)
        self._max_reply_bytes = max_reply_bytes
        self._unfinished = 0
        self._waiting: deque[Any] = deque()
        self._channels = self._shard_channels = 0
        """How many the server says are subscribed: it counts the two apart."""
        self.resp3 = False
        """Set it when HELLO 3 was answered: from then on an array is never a push."""
        self.failure: ProtocolError | None = None

    def __len__(self) -> int:
        """How many slots wait for a reply."""
        return len(self._waiting)

    def expect(self, slot: Slot) -> None:
        """One command was written: its reply belongs to `slot`."""
        self._waiting.append(slot)

    def expect_all(self, slots: Iterable[Slot]) -> None:
        """Commands were written: one reply for each of `slots`, in their order."""
        self._waiting.extend(slots)

    def expect_confirmations(self, slot: Slot, kind: bytes, names: Iterable[bytes]) -> None:
        """A command such as SUBSCRIBE was written: `kind` is its lower-case name, `names` its arguments.

        The server confirms each name by its own; `slot` is answered with the number of subscriptions that the
        last of them told, or with the server's error. Messages in between go their own way.
        """
        wanted = list(names)
        if kind not in _CONFIRMATIONS or not wanted:
            raise ValueError("a subscribe command, with its names, is needed")
        self._waiting.append(_Confirmations(slot, kind, wanted))

    def slots(self) -> list[Slot]:
        """The slots that wait for a reply, oldest first."""
        return [_owner(waiting) for waiting in self._waiting]

    def abandon(self) -> list[Slot]:
        """The connection is gone: the slots that will get no reply any more, in their order."""
        left = self.slots()
        self._waiting.clear()
        return left

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event[Slot]]:
        """Take bytes as they came and return what they complete. It does not raise.

        What is not RESP, or too much of it, ends the session: the events before it are still returned, and `failure`
        tells. A memoryview is copied first, which costs more than the slice of a bytearray.
        """
        events: list[Event[Slot]] = []
        if self.failure is not None or not data:
            return events
        if isinstance(data, memoryview):
            data = bytes(data)
        messages: list[PubSubMessage] | None = None
        gets, waiting, screen = self._reader.gets, self._waiting, self._screen
        try:
            for _ in screen.feed(data):
                while (reply := gets()) is not _INCOMPLETE:
                    kind = reply.__class__
                    if kind is PushNotification or (kind is list and not self.resp3 and self._is_push(reply)):
                        size = len(reply)
                        if size == 3 and reply[0] in _MESSAGES:
                            message = _new_tuple(PubSubMessage, (reply[1], reply[2], None))
                        elif size == 4 and reply[0] == _PATTERN_MESSAGE:
                            message = _new_tuple(PubSubMessage, (reply[2], reply[3], reply[1]))
                        else:
                            messages = None
                            event = self._unasked(reply)
                            if event is not None:
                                events.append(event)
                            continue
                        if messages is None:
                            messages = [message]
                            events.append(messages)
                        else:
                            messages.append(message)
                        continue
                    messages = None
                    slot = waiting.popleft()
                    if slot.__class__ is _Confirmations:
                        slot = self._refusal(slot, reply)
                    events.append((slot, reply))
        except ProtocolError as error:
            self.failure = error
        except IndexError:
            self.failure = ProtocolError("the server sent a reply that nothing had asked for")
        except MemoryError:
            self.failure = ProtocolError("the server announced a reply for which there is no memory")
        except (TypeError, ValueError) as error:
            # A map with a key that is a list or map: the reader is dead then.
            self.failure = ProtocolError(f"the server sent a reply that cannot be read: {error}")
        if events:
            self._unfinished = 0
            screen.announced = 0
        else:
            self._unfinished += len(data)
        if self._unfinished > self._max_reply_bytes and self.failure is None:
            self.failure = ProtocolError(
                f"the server sent {self._unfinished} bytes and no end of a reply, the limit is {self._max_reply_bytes}"
            )
        return events

    def _is_push(self, reply: list[Any]) -> bool:
        """RESP2 marks nothing: an array is a push by its kind, and only where pushes can be."""
        if not (
            self._channels or self._shard_channels or (self._waiting and self._waiting[0].__class__ is _Confirmations)
        ):
            return False
        return bool(reply) and isinstance(reply[0], bytes) and reply[0] in _RESP2_KINDS

    def _unasked(self, reply: list[Any]) -> Event[Slot] | None:
        """What is no message: a confirmation that its slot waits for, or news."""
        if not reply or not isinstance(reply[0], bytes):
            raise ProtocolError("the server sent a push without a kind")
        kind = reply[0]
        if kind not in _CONFIRMATIONS:
            return Push(kind, reply[1:])
        if len(reply) != 3 or not isinstance(reply[2], int):
            raise ProtocolError(f"the server sent a malformed confirmation of {kind!r:.40}")
        if kind in _SHARD_CONFIRMATIONS:
            self._shard_channels = reply[2]
        else:
            self._channels = reply[2]
        first = self._waiting[0] if self._waiting else None
        if first.__class__ is _Confirmations and first.kind == kind and reply[1] in first.names:
            first.names.remove(reply[1])
            if first.names:
                return None
            self._waiting.popleft()
            return (first.slot, reply[2])
        return Push(kind, reply[1:])

    def _refusal(self, confirmations: _Confirmations[Slot], reply: Any) -> Slot:
        if not isinstance(reply, ResponseError):
            raise ProtocolError(f"the server answered {confirmations.kind!r} with {type(reply).__name__}")
        return confirmations.slot


def _owner(waiting: Any) -> Any:
    return waiting.slot if waiting.__class__ is _Confirmations else waiting
