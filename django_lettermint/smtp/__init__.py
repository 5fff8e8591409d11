"""One connection to a relay, from the look-up of its name to the end of its last message."""

from __future__ import annotations

from .connect import connect, probe
from .relay_state import RelayState
from .replies import Reply, ServerClosing
from .session import Session, Trace
from .transaction import MailTransaction

__all__ = [
    "MailTransaction",
    "RelayState",
    "Reply",
    "ServerClosing",
    "Session",
    "Trace",
    "connect",
    "probe",
]
