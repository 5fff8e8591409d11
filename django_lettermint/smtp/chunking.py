"""BDAT (RFC 3030): a message in one write, except for the octets that complete it.

Messages that are safe to repeat follow each other unconfirmed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from django_lettermint.results import Phase

from .transaction import Command, MailTransaction

if TYPE_CHECKING:
    from .session import Session

#: The most that may be unconfirmed at a time.
WINDOW_MESSAGES = 50
WINDOW_OCTETS = 1024 * 1024

#: Octets at the end of a chunk that are written separately: they complete the chunk, as
#: the terminator completes the content after DATA.
FINAL_OCTETS = 2


def send(
    session: Session,
    transaction: MailTransaction,
    following: Sequence[MailTransaction],
) -> None:
    """Send a message, and as many of the following ones as may be unconfirmed."""
    if not transaction.pipelined and not _start_chunk(session, transaction):
        return
    octets = transaction.envelope.size
    for later in following[: WINDOW_MESSAGES - 1]:
        octets += later.envelope.size
        if not later.pipelined:
            # Of messages without a key, at most one may end as UNKNOWN.
            safe = transaction.repeatable and later.repeatable
            if not (safe and octets <= WINDOW_OCTETS and session.may_follow(later)):
                break
            transaction.followed = True
            complete = _start_chunk(session, later)
            later.pipelined = bool(later.started)
            if not complete:
                break
    session.read_replies(transaction)


def _start_chunk(session: Session, transaction: MailTransaction) -> bool:
    """Write a whole message; return whether its final reply is pending."""
    if not session.begin(transaction):
        return False
    if session.pending:
        # If the message before it is refused, its transaction may still be open.
        session.needs_rset = True
    bdat = Command(Phase.COMMIT, b"BDAT %d LAST\r\n" % transaction.envelope.size)
    # After idling the connection may be lost unnoticed. A message that cannot be
    # repeated waits for the replies to MAIL and RCPT before its end goes out. They are
    # not written together with BDAT: Exim would not reply before the chunk is complete.
    if transaction.after_idle and not transaction.repeatable:
        groups = [*session.groups(transaction), [bdat]]
    else:
        groups = session.groups(transaction, bdat)
    *before, last = groups
    for group in before:
        session.write(transaction, group)
        session.read_replies(transaction)
        if transaction.refused:
            session.needs_rset = True
            return False
    _write_chunk(session, transaction, last)
    return True


def _write_chunk(
    session: Session, transaction: MailTransaction, group: Sequence[Command]
) -> None:
    data = transaction.envelope.data
    transaction.phase = Phase.CONTENT
    session.write(transaction, group, content=data[:-FINAL_OCTETS])
    session.read_available_replies()
    if not transaction.refused:
        session.commit(transaction)
    # Even if the message is refused: the server waits for all octets of the chunk.
    session.write(transaction, content=data[-FINAL_OCTETS:])
