"""Advice on a refusal: by the reply first, then by the step at which it came."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django_lettermint.results import Phase

if TYPE_CHECKING:
    from django_lettermint.smtp import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """A subject that a reply shows by its code, its enhanced code or its words.

    A detail is an enhanced code (RFC 3463) without its class.
    """

    advice: str
    codes: Collection[int] = ()
    details: Collection[str] = ()
    words: str = "(?!)"

    def matches(self, reply: Reply) -> bool:
        detail = (reply.enhanced_code or "").partition(".")[2]
        return (
            reply.code in self.codes
            or detail in self.details
            or re.search(self.words, reply.text, re.IGNORECASE) is not None
        )


#: The first one that matches counts.
_SUBJECTS = (
    _Subject(
        advice="the relay does not accept this machine's name at EHLO: set the option "
        "`local_hostname` to a full host name",
        words=r"\b(?:helo|ehlo)\b|fully.qualified",
    ),
    _Subject(
        advice="the relay no longer accepts the login: check the token and `username`",
        codes=(530, 535),
        details=("7.8",),
        words=r"\bauthenticat(?:ion|e)\b.*\brequired\b",
    ),
    _Subject(
        advice="the relay blocks what the message contains: correct its content",
        words=r"\b(?:message|content|attachment) (?:was |is |has been )?blocked\b",
    ),
    _Subject(
        advice="the relay blocks this machine or network: ask the relay's support",
        words=r"\bblock(?:ed| ?list)|\bblack ?list|\bdeny ?list|\bspamhaus\b|\b(?:dns|r)bl\b"
        r"|\breputation\b|\bbanned\b|\bclient host\b",
    ),
    _Subject(
        advice="a quota is used up: the recipient's mailbox, or the account's; raise it, "
        "or send again when there is room",
        details=("2.2",),
        words=r"\bquota|\bmailbox (?:is )?full\b|\bstorage\b",
    ),
    _Subject(
        advice="the message is too large: send large files as links",
        codes=(552,),
        details=("2.3", "3.4"),
        words=r"\btoo (?:large|big)\b|\bmessage size\b",
    ),
    _Subject(
        advice="the relay limits how much is sent: send less at once, and this again later",
        words=r"\brate\b|\btoo (?:many|much|fast)\b|\bthrottl|\blimit",
    ),
)
_ADDRESS = _Subject(
    advice="correct the address",
    codes=(501, 551, 553),
    details=("1.0", "1.1", "1.2", "1.3", "1.4", "1.6", "1.9", "1.10", "2.1"),
    words=r"\b(?:user|mailbox|address|recipient|account)\b",
)


def advise(reply: Reply, phase: Phase, *, has_caller_key: bool = False) -> str:
    """Return what to do about a refusal at a step of a mail transaction."""
    for subject in _SUBJECTS:
        if subject.matches(reply):
            return subject.advice
    if reply.code < 500:
        return "send it again later"
    if phase is Phase.MAIL:
        return "is the domain verified in the Lettermint dashboard?"
    if phase is Phase.RCPT:
        bare = reply.code == 550 and reply.enhanced_code is None
        if bare or _ADDRESS.matches(reply):
            return _ADDRESS.advice
        return "the reply says why; sending the same again will not help"
    if has_caller_key:
        return (
            "its idempotency key is your own: if it was used before, the message may "
            "have been sent then"
        )
    return "correct the message, sending it as it is will not help"
