"""Line breaks in header fields: refused as Django refuses them."""

from __future__ import annotations

from typing import Any

import django
import pytest
from django.core import mail
from django.core.mail import EmailMessage
from django.utils.functional import lazystr

from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import InvalidHeader, LettermintInvalidMessage
from django_lettermint.message import LettermintMessage

FIELDS: dict[str, dict[str, Any]] = {
    "subject": {"subject": "Hello\n"},
    "subject with another header": {"subject": "Hello\r\nBcc: eve@example.com"},
    "lazy subject": {"subject": lazystr("Hello\n")},
    "from_email": {"from_email": "Shop\n <us@example.com>"},
    "from_email's end": {"from_email": "us@example.com\n"},
    "lazy from_email": {"from_email": lazystr("us@example.com\n")},
    "to": {"to": ["ann@example.com\n"]},
    "to with a name": {"to": ["Ann\r <ann@example.com>"]},
    "cc": {"cc": ["ann@example.com\nBcc: eve@example.com"]},
    "bcc": {"bcc": ["ann@example.com\r\n"]},
    "reply_to": {"reply_to": ["help@example.com\n"]},
    "header": {"headers": {"X-Campaign": "a\nb"}},
    "header name": {"headers": {"X-Campaign\n": "a"}},
    "From header": {"headers": {"From": "us@example.com\n"}},
    "To header": {"headers": {"To": "ann@example.com\n"}},
    "tag header": {"headers": {"X-LM-Tag": "a\nb"}},
    "tag": {"tag": "a\nb"},
    "metadata": {"metadata": {"order": "1\n2"}},
}


def fails(fields: dict[str, Any]) -> Exception:
    message = LettermintMessage(
        **{
            "subject": "Hi",
            "from_email": "us@example.com",
            "to": ["ann@example.com"],
            **fields,
        }
    )
    with pytest.raises(LettermintInvalidMessage) as raised:
        EmailBackend(api_token="lm_unused").send_messages([message])
    return raised.value


@pytest.mark.parametrize("field", FIELDS)
def test_a_line_break_in_a_header_field_is_djangos_error(field: str) -> None:
    error = fails(FIELDS[field])

    assert isinstance(error, InvalidHeader)
    # From Django 6.0 on, it raises a ValueError.
    kind = mail.BadHeaderError if django.VERSION < (6, 0) else ValueError
    assert isinstance(error, kind)


@pytest.mark.parametrize(
    "fields",
    [
        {"subject": "Hello\x00"},
        {"to": ["no address"]},
        {"from_email": 7},
        {"headers": {"Bcc": "eve@example.com"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_is_wrong_otherwise_is_not(fields: dict[str, Any]) -> None:
    assert not isinstance(fails(fields), InvalidHeader)


def test_the_view_of_djangos_documentation_answers() -> None:
    kind = mail.BadHeaderError if django.VERSION < (6, 0) else ValueError
    message = EmailMessage("Hello\n", "", "us@example.com", ["ann@example.com"])

    answer = "Thanks."
    try:
        EmailBackend(api_token="lm_unused").send_messages([message])
    except kind:
        answer = "Invalid header found."

    assert answer == "Invalid header found."
