"""What a message is made of, checked before Django renders it: headers, attachments.

Django checks some of it, differently in each version, and its errors name no field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from email.message import Message
from email.utils import format_datetime, parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from anymail.utils import UNSET, force_non_lazy, merge_dicts_one_level
from django.core.mail import EmailAlternative, EmailMessage
from django.core.mail.message import DEFAULT_ATTACHMENT_MIME_TYPE

from .exceptions import LettermintInvalidMessage
from .extras import CONTROL, invalid, shown
from .header_policy import ADDRESS_LISTS

if TYPE_CHECKING:
    from .addresses import Mailbox

#: Headers that Django looks up under exactly these names.
_LOOKED_UP = {name: name.title() for name in ADDRESS_LISTS}
ADDRESS_HEADERS = {
    *ADDRESS_LISTS,
    "sender",
    "resent-from",
    "resent-sender",
    "resent-to",
}
_DATES = {"date", "orig-date", "resent-date"}
#: Headers that must not be given, and what does their job.
_REFUSED = {
    "bcc": "it would show the hidden recipients; use the message's `bcc`",
    "resent-bcc": "it would show the hidden recipients; use the message's `bcc`",
    "subject": "use the message's `subject`",
    "mime-version": "Django writes it",
    "content-type": "use the message's `content_subtype` or attach_alternative()",
    "content-transfer-encoding": "Django chooses it",
}
#: RFC 2045 section 5.1: type/subtype; parameters may follow.
_MIME_TYPE = re.compile(
    r"[!#-'*+.0-9A-Z^_`a-z{|}~-]+/[!#-'*+.0-9A-Z^_`a-z{|}~-]+(?: *;.*)?"
)


def overlay(
    below: Mapping[str, str],
    own: Mapping[str, object],
    parse: Callable[[str, str], list[Mailbox]],
) -> dict[str, str]:
    """Lay headers over others of the same names, in any letter case.

    `parse` is called with what holds addresses that are not ASCII.
    """
    names = {name.lower() for name in own}
    kept = {name: value for name, value in below.items() if name.lower() not in names}
    return kept | {
        _LOOKED_UP.get(name.lower(), name): _header_text(name, value, parse)
        for name, value in own.items()
    }


def _header_text(
    name: str, value: object, parse: Callable[[str, str], list[Mailbox]]
) -> str:
    field = f"header {shown(name)}"
    if rule := _REFUSED.get(name.lower()):
        raise LettermintInvalidMessage(f"{field} is refused: {rule}.")
    if isinstance(value, datetime):
        return format_datetime(value)
    if not isinstance(value, str):
        raise invalid(field, value, "give it as text")
    if name.lower() in _DATES and not _is_date(value):
        raise invalid(field, value, "give a datetime, or write it as RFC 5322 does")
    if name.lower() == "message-id" and not value.isascii():
        raise invalid(field, value, "write <left@right> in ASCII (RFC 5322)")
    if name.lower() not in ADDRESS_HEADERS or value.isascii():
        return value
    # Django would encode domains by IDNA 2003, which leads elsewhere.
    return ", ".join(mailbox.header for mailbox in parse(field, value))


def _is_date(text: str) -> bool:
    # Django 6.x would send an empty header of anything else.
    with suppress(ValueError, OverflowError):
        parsedate_to_datetime(text)
        return True
    return False


def for_each(field: str) -> Callable[..., Any]:
    """Return the function that merges mappings of recipients to what they alone have."""

    def combine(*layers: Any) -> Any:
        for layer in layers:
            if layer is UNSET or layer is None:
                continue
            values = layer.values() if isinstance(layer, Mapping) else [layer]
            if not all(isinstance(value, Mapping) for value in values):
                raise invalid(field, layer, "use a mapping of addresses to mappings")
        return merge_dicts_one_level(*layers)

    return combine


def line_text(field: str, value: object) -> str:
    """Return the text of what must fit on one line, however long that is."""
    text = str(value)
    if CONTROL.search(text.replace("\t", " ")):
        rule = "it has a line break, control character or lone surrogate"
        raise LettermintInvalidMessage(f"{field}: {shown(value)} is refused: {rule}.")
    return text


def alternative(content: Any, mimetype: object) -> EmailAlternative:
    """Return an alternative body, its type checked."""
    kind = _mime_type("alternative's type", mimetype)
    return EmailAlternative(force_non_lazy(content), kind)


def attach(message: EmailMessage, attachment: Any) -> None:
    """Add an attachment to a message, its name and type checked."""
    if isinstance(attachment, Message):
        message.attachments.append(attachment)
        return
    name, content, mimetype, *_ = map(force_non_lazy, (*attachment, None, None))
    if mimetype:
        mimetype = _mime_type("attachment's type", mimetype)
    if name:
        name = line_text("attachment's name", name)
    else:  # Django would guess by it, and write it as a parameter without a value
        name, mimetype = None, mimetype or DEFAULT_ATTACHMENT_MIME_TYPE
    # Not the message's own method, which may do more when it is called again.
    EmailMessage.attach(message, name, content, mimetype)


def _mime_type(field: str, value: object) -> str:
    text = line_text(field, value)
    if not _MIME_TYPE.fullmatch(text):
        raise invalid(field, value, "write type/subtype (RFC 2045)")
    return text
