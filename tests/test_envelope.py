from __future__ import annotations

import base64
import json
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.envelope import Envelope, derived_key
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import Extras
from django_lettermint.mime import with_crlf

KEYS = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126))
ENVELOPES = st.builds(
    Envelope,
    mail_from=st.just("") | st.emails(),
    recipients=st.lists(st.emails(), max_size=3).map(tuple),
    header=st.text("ab\u00e9").map(lambda text: f"Subject: {text}\r\n".encode()),
    body=st.binary(max_size=300).map(with_crlf),
    message_id=st.text(max_size=40),
    idempotency_key=st.none() | KEYS.filter(lambda key: 0 < len(key) <= 255),
    smtputf8=st.booleans(),
)


def made(**changes: Any) -> Envelope:
    fields: dict[str, Any] = {
        "mail_from": "shop@example.com",
        "recipients": ("ann@example.com",),
        "header": b"Subject: Hi\r\n",
        "body": b"Hello\r\n",
        "message_id": "m-1",
        "idempotency_key": "k-1",
    }
    return Envelope(**fields | changes)


@given(ENVELOPES)
def test_an_envelope_survives_json_and_pickling(envelope: Envelope) -> None:
    assert Envelope.from_json(json.loads(json.dumps(envelope.to_json()))) == envelope
    assert pickle.loads(pickle.dumps(envelope)) == envelope


@pytest.mark.parametrize("version", [None, 0, 2, "1", [1]])
def test_another_version_of_the_json_form_is_refused(version: object) -> None:
    with pytest.raises(ValueError, match=r"an envelope of version .* reads version 1"):
        Envelope.from_json(made().to_json() | {"version": version})


@pytest.mark.parametrize("name", list(made().to_json()))
def test_a_json_form_without_a_field_is_refused(name: str) -> None:
    form = made().to_json()
    del form[name]
    with pytest.raises(ValueError, match="envelope"):
        Envelope.from_json(form)


@pytest.mark.parametrize(
    "change",
    [
        {"mail_from": None},
        {"mail_from": "a@example.com>\r\nRCPT TO:<eve@example.com"},
        {"mail_from": "a@example.com> SIZE=1"},
        {"recipients": "ann@example.com"},
        {"recipients": ["<ann@example.com>"]},
        {"recipients": ["ann@example.com\nRSET"]},
        {"content": "no base64!"},
        {"content": base64.b64encode(b"a\nb\r\n").decode()},
        {"content": base64.b64encode(b"no line end").decode()},
        {"idempotency_key": "a\r\nX-Evil: 1"},
        {"idempotency_key": "x" * 256},
        {"surplus": 1},
    ],
)
def test_a_json_form_that_was_tampered_with_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Envelope.from_json(made().to_json() | change)


# Encoded, a key could exceed Lettermint's 255 characters, and differ from the API's.
@pytest.mark.parametrize(
    ("key", "line"),
    [("=?utf-8?q?x?=", b"Idempotency-Key: =?utf-8?q?x?=\r\n"), (None, b"")],
)
def test_the_key_is_written_as_it_is_in_front_of_the_content(
    key: str | None, line: bytes
) -> None:
    envelope = made(idempotency_key=key)
    assert envelope.data == line + envelope.content
    assert envelope.size == len(envelope.data)


def test_up_to_fifty_recipients_are_one_part() -> None:
    envelope = made(recipients=tuple(f"{n}@example.com" for n in range(50)))
    assert envelope.parts() == [envelope]


@pytest.mark.parametrize("key", ["k-1", None])
def test_more_recipients_are_parts_with_keys_of_their_own(key: str | None) -> None:
    recipients = tuple(f"{n}@example.com" for n in range(101))
    envelope = made(recipients=recipients, idempotency_key=key)
    first, second, third = envelope.parts()
    assert (*first.recipients, *second.recipients, *third.recipients) == recipients
    assert len(first.recipients) == len(second.recipients) == 50
    keys = [each.idempotency_key for each in (first, second, third)]
    assert keys[0] == key
    assert len(set(keys)) == (3 if key else 1)
    assert first.content == second.content


def test_the_key_of_a_part_depends_on_its_recipients_and_not_on_its_number() -> None:
    envelope = made(recipients=("a@example.com", "b@example.com", "c@example.com"))
    two, three = envelope.recipients[:2], envelope.recipients[1:]
    assert envelope.part(1, two).idempotency_key == "k-1"
    part = envelope.part(2, two)
    assert envelope.part(3, two).idempotency_key == part.idempotency_key
    assert envelope.part(2, two[::-1]).idempotency_key == part.idempotency_key
    others = [envelope.part(2, three), part.part(2, two), envelope]
    assert part.idempotency_key not in {each.idempotency_key for each in others}


@pytest.mark.parametrize("length", [1, 222, 223, 255])
def test_derived_keys_keep_the_rule_for_keys(length: int) -> None:
    keys = [derived_key("x" * length, str(number)) for number in range(100)]
    assert len(set(keys)) == 100
    for key in keys:
        assert Extras(idempotency_key=key).idempotency_key == key
    assert derived_key("x" * length, "1") == keys[1]


def test_a_raw_header_of_8_bits_has_no_7_bit_form() -> None:
    envelope = made(header="Subject: Grüße\r\n".encode())
    with pytest.raises(LettermintInvalidMessage, match="header has raw 8-bit"):
        envelope.seven_bit()


def test_the_7_bit_form_keeps_everything_but_the_content() -> None:
    header = b"Content-Type: text/plain; charset=utf-8\r\n"
    envelope = made(header=header, body="Grüße\r\n".encode())
    seven = envelope.seven_bit()
    assert seven.content.isascii()
    assert replace(seven, header=header, body=envelope.body) == envelope
