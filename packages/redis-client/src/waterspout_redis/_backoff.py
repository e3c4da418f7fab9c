"""How long to wait before trying again."""

from __future__ import annotations

import random
from typing import Final

FIRST_DELAY: Final = 0.1


class Backoff:
    """Doubles from 0.1 to `longest` seconds; each delay is somewhere in its upper half, so that clients that lost the
    same server at once do not all come back at once."""

    __slots__ = ("_failures", "_longest")

    def __init__(self, longest: float = 5.0) -> None:
        self._longest = longest
        self._failures = 0

    def next_delay(self) -> float:
        """Seconds to wait after one more failure."""
        # No power of two is worth computing beyond the cap.
        delay = min(self._longest, FIRST_DELAY * float(1 << min(self._failures, 16)))
        self._failures += 1
        return delay * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It works again."""
        self._failures = 0
