"""One connection to a relay, from the look-up of its name to its last message."""

from __future__ import annotations

from .connect import connect, probe
from .relay_state import RelayState
from .replies import MAX_TEXT, Reply, ServerClosing
from .session import Session, Trace
from .stream import close_inherited
from .transaction import MailTransaction

__all__ = [
    "MAX_TEXT",
    "MailTransaction",
    "RelayState",
    "Reply",
    "ServerClosing",
    "Session",
    "Trace",
    "close_inherited",
    "connect",
    "probe",
]
