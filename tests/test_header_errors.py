"""Line breaks in header fields: refused as Django refuses them."""

from __future__ import annotations

from typing import Any

import django
import pytest
from django.core import mail
from django.utils.functional import lazystr

from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import InvalidHeader, LettermintInvalidMessage
from django_lettermint.message import LettermintMessage

#: What the view of Django's documentation catches.
DJANGOS = mail.BadHeaderError if django.VERSION < (6, 0) else ValueError


def error_of(fields: dict[str, Any]) -> Exception:
    message = {"from_email": "us@example.com", "to": ["ann@example.com"]}
    with pytest.raises(LettermintInvalidMessage) as raised:
        EmailBackend(api_token="lm_unused").send_messages(
            [LettermintMessage(**message | fields)]
        )
    return raised.value


@pytest.mark.parametrize(
    "fields",
    [
        {"subject": "Hello\r\nBcc: eve@example.com"},
        {"subject": lazystr("Hello\n")},
        {"from_email": "Shop\n <us@example.com>"},
        {"from_email": lazystr("us@example.com\n")},
        {"to": ["Ann\r <ann@example.com>"]},
        {"cc": ["ann@example.com\nBcc: eve@example.com"]},
        {"bcc": ["ann@example.com\r\n"]},
        {"reply_to": ["help@example.com\n"]},
        {"headers": {"X-Campaign": "a\nb"}},
        {"headers": {"X-Campaign\n": "a"}},
        {"headers": {"From": "us@example.com\n"}},
        {"headers": {"To": "ann@example.com\n"}},
        {"headers": {"X-LM-Tag": "a\nb"}},
        {"tag": "a\nb"},
        {"metadata": {"order": "1\n2"}},
    ],
)
def test_a_line_break_in_a_header_field_is_djangos_error(
    fields: dict[str, Any],
) -> None:
    error = error_of(fields)
    assert isinstance(error, InvalidHeader)
    assert isinstance(error, DJANGOS)


@pytest.mark.parametrize(
    "fields",
    [
        {"subject": "Hello\x00"},
        {"to": ["no address"]},
        {"from_email": 7},
        {"headers": {"Bcc": "eve@example.com"}},
    ],
)
def test_what_is_wrong_otherwise_is_not(fields: dict[str, Any]) -> None:
    assert not isinstance(error_of(fields), InvalidHeader)
