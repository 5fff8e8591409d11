"""Messages, and records as the relay makes them, without a relay."""

from __future__ import annotations

from dataclasses import asdict
from email.message import EmailMessage
from email.policy import SMTP
from typing import TYPE_CHECKING, Any

from django_lettermint.testing import ReceivedMessage, Refusal
from django_lettermint.testing.parsed_headers import parse_headers

if TYPE_CHECKING:
    from collections.abc import Mapping

SHOP = "shop@example.com"
ADA = "ada@example.com"


def message(
    subject: str = "Hi",
    text: str = "Hello Ada.\n",
    headers: Mapping[str, str] | None = None,
    *,
    html: str = "",
) -> EmailMessage:
    mail = EmailMessage(policy=SMTP)
    mail["From"] = f"Mint Shop <{SHOP}>"
    mail["To"] = f"Ada Lovelace <{ADA}>"
    mail["Subject"] = subject
    for name, value in (headers or {}).items():
        mail[name] = value
    if text:
        mail.set_content(text)
    if html:
        mail.add_alternative(html, subtype="html")
    return mail


def received(
    content: EmailMessage | bytes = b"Subject: Hi\r\n\r\n", **others: Any
) -> ReceivedMessage:
    octets = content if isinstance(content, bytes) else content.as_bytes()
    fields: dict[str, Any] = {
        "mail_from": SHOP,
        "recipients": (ADA,),
        **asdict(parse_headers(octets)),
        "smtputf8": False,
        "body_8bit": False,
        "chunked": False,
        "connection": 1,
        "security": "tls",
        "tls": "TLSv1.3 CIPHER",
        "token": "lm_test_token",
    }
    return ReceivedMessage(content=octets, **fields | others)


def refused(command: str, address: str = "", *, content: bytes = b"") -> Refusal:
    return Refusal(
        command=command,
        address=address,
        code=550,
        text="5.6.0 The tag is invalid",
        mail_from=SHOP,
        recipients=(ADA,) if content else (),
        content=content,
        connection=1,
        security="tls",
        tls="",
    )
