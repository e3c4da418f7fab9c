"""Channels by name over any PubSub."""

from ._channels import Channels

__all__ = ["Channels"]
__version__ = "0.1.0"
