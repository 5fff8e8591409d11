"""From Django's message to the bytes of its content, ready for the wire but for dots."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from email.message import Message
from email.policy import EmailPolicy
from inspect import signature
from itertools import groupby
from typing import Any

from django.core.mail import EmailMessage

from . import mime, plain_text
from .exceptions import LettermintInvalidMessage
from .extras import FIELD_NAME, shown
from .headers import is_ours
from .parts import ADDRESS_HEADERS
from .transfer_encoding import check_lines, encode_bodies, is_transportable, with_crlf

#: The methods of Django that build a message.
_BUILDERS = {
    "message",
    "_add_bodies",
    "_add_attachments",
    "_add_attachment",
    "_set_list_header_if_not_empty",
    "_idna_encode_address_header_domains",
}

#: A line end that no blank follows.
_HEADER_END = re.compile(r"\r\n(?![ \t])|\r(?![\n \t])|(?<!\r)\n(?![ \t])")


def render(message: EmailMessage, *, utf8: bool = False) -> bytes:
    """Render a message once, ready for the wire but for the dots.

    With `utf8`, headers may hold raw UTF-8 (RFC 6532). Raises LettermintInvalidMessage
    for what cannot be sent correctly.
    """
    try:
        content, transportable = _join(_pieces(message, utf8=utf8))
        if not transportable:
            content = encode_bodies(content)
            check_lines(content)
    except LettermintInvalidMessage:
        raise
    except Exception as error:
        # Users' classes and parts raise anything.
        raise LettermintInvalidMessage(
            f"the message cannot be rendered: {error} ({type(error).__name__}); check "
            "its subject, headers, addresses and attachments"
        ) from error
    return content


def _pieces(message: EmailMessage, *, utf8: bool) -> list[mime.Piece]:
    plain = not utf8 and _takes_policy(EmailMessage.message) and _is_djangos(message)
    if plain and (text := plain_text.write(message)):
        return text
    part = _public(_mime(message, utf8=utf8))
    _check_headers(part)
    return mime.flatten(part, utf8=utf8)


def _join(pieces: list[mime.Piece]) -> tuple[bytes, bool]:
    """Return the whole, each line ended by CRLF, and whether it is transportable."""
    transportable = True
    whole: list[mime.Piece] = []
    for ready, run in groupby(pieces, lambda piece: type(piece) is memoryview):
        if ready:
            whole += run
        else:
            # Whatever is ready follows a line end.
            whole.append(with_crlf(b"".join(run)))
            transportable = transportable and is_transportable(bytes(whole[-1]))
    return b"".join(whole), transportable


def _mime(message: EmailMessage, *, utf8: bool) -> Message:
    # Django 6.0 renders by a policy; a subclass written for 5.2 may not take one.
    if _takes_policy(getattr(message.message, "__func__", message.message)):
        return message.message(policy=_policy(message, utf8=utf8))
    part = message.message()
    if utf8 and not isinstance(part.policy, EmailPolicy):
        _restore_addresses(message, part)
    return part


@functools.lru_cache(maxsize=256)
def _takes_policy(message_method: Callable[..., Message]) -> bool:
    return "policy" in signature(message_method).parameters


def _policy(message: EmailMessage, *, utf8: bool) -> EmailPolicy[Any]:
    if utf8:
        return mime.UTF8
    # An own message() may use header objects or payloads, which the fast policy does
    # not make.
    return mime.FAST if _is_djangos(message) else mime.CAREFUL


def _is_djangos(message: EmailMessage) -> bool:
    """Return whether nobody but Django builds a message and what is attached to it."""
    kind: Any = type(message)  # to mypy, classes are not hashable
    attached = (each[1] for each in message.attachments if isinstance(each, tuple))
    return (
        not _overrides(kind)
        and _BUILDERS.isdisjoint(vars(message))
        and all(
            _is_djangos(each) for each in attached if isinstance(each, EmailMessage)
        )
    )


@functools.lru_cache(maxsize=256)
def _overrides(kind: type[EmailMessage]) -> bool:
    """Return whether a class of messages has builders of its own."""
    others = (
        each for each in kind.__mro__ if each.__module__ != EmailMessage.__module__
    )
    return not all(_BUILDERS.isdisjoint(vars(each)) for each in others)


def _restore_addresses(message: EmailMessage, part: Message) -> None:
    """Undo what Django 5.2 does to non-ASCII characters before an @.

    It writes them as RFC 2047 words, which name another mailbox.
    """
    lists = {"To": message.to, "Cc": message.cc, "Reply-To": message.reply_to}
    given = {name: ",\r\n ".join(addresses) for name, addresses in lists.items()}
    given |= {"From": message.from_email, **message.extra_headers}
    for name, text in given.items():
        if name.lower() in ADDRESS_HEADERS and name in part and not text.isascii():
            # Surrogates stand for octets that compat32 policies write as they are.
            raw = text.encode().decode("ascii", "surrogateescape")
            part.replace_header(name, raw)


def _public(part: Message) -> Message:
    """Return what a message() made without blind recipients, in a copy.

    Our own headers stand elsewhere already, checked: a second one would contradict.
    """
    for name in part:
        if is_ours(name):
            raise LettermintInvalidMessage(
                f"header {shown(name)} of the class's own message() is refused: give it "
                "in `headers`, or as the message's attribute"
            )
    part = copy.copy(part)
    del part["Bcc"], part["Resent-Bcc"]
    return part


def _check_headers(message: Message) -> None:
    """Look for what would end a header early: not every Python's generators do."""
    for part in message.walk():
        for name, value in part.raw_items():
            if not FIELD_NAME.fullmatch(name) or _HEADER_END.search(str(value)):
                raise LettermintInvalidMessage(
                    f"header {shown(name)}: {shown(value)} is refused: it has a line "
                    "break that begins another header, or no proper name"
                )
