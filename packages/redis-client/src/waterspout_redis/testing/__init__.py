"""For tests against real servers, of this package and of those that build on it."""

from .proxy import FaultProxy, Faults
from .servers import HOW_TO_GET_ONE, RunningServer, ServerBinary, find_servers
from .waiting import eventually, run

__all__ = [
    "HOW_TO_GET_ONE",
    "FaultProxy",
    "Faults",
    "RunningServer",
    "ServerBinary",
    "eventually",
    "find_servers",
    "run",
]
