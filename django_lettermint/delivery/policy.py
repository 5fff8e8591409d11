"""The decision after a failure: the table of docs/delivery.md.

Pure functions over plain data. A reply speaks of what it answers and no more, no mail
fails for our own optimisation, and a fresh connection is tried where it can help.
"""

from __future__ import annotations

import enum
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django_lettermint.results import Phase

if TYPE_CHECKING:
    from django_lettermint.smtp.replies import Reply

#: Seconds before the first retry; doubled for each further one, up to the maximum.
PAUSE = 0.1
MAX_PAUSE = 10.0
#: Seconds for which a relay that cannot be reached is tried again: for a single mail,
#: which may be sent by a web request, and for the mails of a list.
PATIENCE = 2.0
LIST_PATIENCE = 10.0
#: Retries that are made however long each one takes.
QUICK_RETRIES = 2
#: Tries on a fresh connection after a refusal that is about the session. The first one
#: decides, unless the relay accepts no further connection and an open one is used.
MAX_FRESH_TRIES = 3
#: Repeats of one unconfirmed message.
MAX_REPEATS = 10

_CONNECTING = (Phase.POOL, Phase.CONNECT, Phase.TLS, Phase.AUTH)
_MESSAGES = re.compile(
    r"\b(?:messages?|e?-?mails?|transactions?|sessions?)\b", re.IGNORECASE
)
_RECIPIENTS = re.compile(r"\b(?:recipients?|rcpts?|address(?:es)?)\b", re.IGNORECASE)


class Decision(enum.Enum):
    """What comes next for a message."""

    FINAL = "final"  #: the reply decides
    ALONE = "alone"  #: once more, not pipelined behind another message
    FRESH = "fresh"  #: once more, on a fresh connection; this one is not kept
    REPLACE = "replace"  #: at once on a fresh connection
    WAIT = "wait"  #: once more, on a connection that is open; this one is not kept
    RETRY = "retry"  #: after a growing pause, on a fresh connection
    REPEAT = "repeat"  #: byte for byte under its key, after a growing pause
    GIVE_UP = "give_up"  #: NOT_SENT
    UNKNOWN = "unknown"  #: the outcome stays unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A try that did not end with SENT: its step, its connection, and what is left."""

    #: The step that failed.
    phase: Phase
    #: The refusal; None if the connection was lost or never made.
    reply: Reply | None = None
    #: No further try can end otherwise: TLS is not verified, the message is too large.
    permanent: bool = False
    #: The relay may have the message, by this try or an earlier one.
    unconfirmed: bool = False
    #: Its commands went out behind the unconfirmed end of another message.
    pipelined: bool = False
    #: The connection has served before: it was idle in the pool, or carried a message.
    used: bool = False
    #: The content of another message has passed over the connection before.
    carried: bool = False
    #: MAX_FRESH_TRIES were planned after refusals of this kind.
    tried_fresh: bool = False
    #: The pool has other connections that could carry the message. It has not waited
    #: for them yet.
    others_open: bool = False
    #: A repeat is safe, and there is time for it.
    repeatable: bool = False
    #: `retries`, patience and deadline allow a further try.
    may_retry: bool = True


def decide(failure: Failure) -> Decision:
    """Return what comes next after a failure."""
    reply = failure.reply
    if failure.unconfirmed:
        # 5yz to a repeat (a conflict, for example) proves that the key was used, not
        # what became of the first try. 4yz may mean that it is still in progress.
        refused_for_good = reply is not None and reply.code >= 500
        final = failure.permanent or (
            refused_for_good and not speaks_of_session(failure)
        )
        again = failure.repeatable and not final
        return Decision.REPEAT if again else Decision.UNKNOWN
    if failure.permanent:
        return Decision.GIVE_UP
    if failure.phase in _CONNECTING:
        refused_for_good = reply is not None and reply.code >= 500
        retry = failure.may_retry and not refused_for_good
        return Decision.RETRY if retry else Decision.GIVE_UP
    if reply is None:
        if failure.used:
            return Decision.REPLACE
        if failure.may_retry:
            return Decision.RETRY
        return Decision.WAIT if failure.others_open else Decision.GIVE_UP
    if failure.pipelined and (proves_intolerance(reply) or not _about_content(failure)):
        return Decision.ALONE
    if speaks_of_session(failure) and not failure.tried_fresh:
        return Decision.FRESH
    if failure.others_open and _for_now_before_content(failure):
        return Decision.WAIT
    return Decision.FINAL


def _for_now_before_content(failure: Failure) -> bool:
    code = failure.reply.code if failure.reply else 0
    return failure.phase in (Phase.MAIL, Phase.DATA) and 400 <= code < 500


def _about_content(failure: Failure) -> bool:
    return failure.phase in (Phase.CONTENT, Phase.COMMIT)


def later_may_help(
    error: Exception | None, *, unconfirmed: bool, repeatable: bool, permanent: bool
) -> bool:
    """Return whether a queue tries again what ended with this error.

    `permanent`: the latest try was refused by 5yz, or cannot be sent at all. Without an
    error, some recipients were refused for now.
    """
    if unconfirmed:
        return repeatable and not permanent
    return error is None or bool(getattr(error, "transient", False))


def speaks_of_session(failure: Failure) -> bool:
    """Return whether a refusal may speak of the session, so that a new one would help.

    Only if the session has carried a message: a relay that limits sessions does not
    refuse the first message of each.
    """
    reply, phase = failure.reply, failure.phase
    if reply is None or not failure.carried:
        return False
    if phase is Phase.RCPT:
        return reply.code == 530 or limits_messages(reply)
    return _for_now_before_content(failure) or (
        phase in (Phase.MAIL, Phase.DATA) and reply.code == 530
    )


def limits_messages(reply: Reply) -> bool:
    """Return whether a 452 is about the number of messages, not of recipients."""
    return (
        reply.code == 452
        and _MESSAGES.search(reply.text) is not None
        and _RECIPIENTS.search(reply.text) is None
    )


def limits_recipients(reply: Reply) -> bool:
    """Return whether a reply to RCPT asks for a further transaction.

    RFC 5321 section 4.5.3.1.10 says 452, older servers say 552.
    """
    if (reply.enhanced_code or "?.5.3").partition(".")[2] != "5.3":
        return False
    return reply.code in (452, 552) and not limits_messages(reply)


def proves_intolerance(reply: Reply) -> bool:
    """Return whether the refusal of a pipelined command is due to the pipelining.

    503 says that a command came at the wrong time (RFC 5321 section 4.2.2).
    """
    return reply.code == 503


def may_retry(failures: int, retries: int, waited: float, patience: float) -> bool:
    """Return whether a relay is tried again after this number of failures in a row.

    `waited` are the seconds since the first one.
    """
    return failures <= retries and (failures <= QUICK_RETRIES or waited < patience)


def backoff(tries: int, *, most: float = float("inf")) -> float:
    """Return the seconds to wait, random so that processes do not act in step."""
    pause = min(MAX_PAUSE, PAUSE * 2.0 ** min(tries - 1, 10))
    return max(0.0, min(pause * random.uniform(0.75, 1.25), most))  # noqa: S311 - no secret
