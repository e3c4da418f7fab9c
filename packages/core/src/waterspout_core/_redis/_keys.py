"""What the keys of a channel with history, and of those who wait for a lease, are called in Redis."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_OWN_TAG: Final = re.compile(r"[^{]*\{[^}]+\}", re.DOTALL).match


@lru_cache(10_000)
def keys_of(topic: str) -> tuple[str, str]:
    """The names in Redis of a channel's meta key and its log, which is a stream.

    They are in the cluster slot of the channel's own name. (Not for `{a}`, which would be taken for `a` then.)

    >>> keys_of("news")
    ('waterspout:meta:{news}', 'waterspout:log:{news}')
    >>> keys_of("of{eu}rope")
    ('waterspout:meta:of{eu}rope', 'waterspout:log:of{eu}rope')

    Raises UnicodeEncodeError for a name that cannot be one.
    """
    topic.encode()
    name = _tagged(topic)
    return f"waterspout:meta:{name}", f"waterspout:log:{name}"


def idempotency_key(topic: str, key: str) -> str:
    """The name in Redis of the idempotency key `key` for a channel. Names of channels have no white space."""
    return f"waterspout:key:{_tagged(topic)} {key}"


def line_of(name: str) -> str:
    """The name in Redis of the key that says who waits for the lease whose key is `name`."""
    return f"waterspout:line:{_tagged(name)}"


def _tagged(topic: str) -> str:
    own = _OWN_TAG(topic) and not (topic[0] == "{" and topic[-1] == "}")
    return topic if own else f"{{{topic}}}"
