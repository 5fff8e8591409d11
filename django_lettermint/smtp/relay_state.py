"""What the connections of one pool have learnt about their relay."""

from __future__ import annotations


class RelayState:
    """Shared by all connections of a pool."""
