"""What each received mail becomes in Anymail's terms, whatever strangers wrote into it."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from anymail.inbound import AnymailInboundMessage
from anymail.signals import EventType
from hypothesis import example, given
from hypothesis import strategies as st

from django_lettermint.webhooks.events import INBOUND, read_event
from django_lettermint.webhooks.inbound import inbound_event
from tests.webhooks.payloads import DATA, JSON, payload


def received(**changes: Any) -> AnymailInboundMessage:
    event = inbound_event(read_event(payload(INBOUND, **changes)))
    message: AnymailInboundMessage = event.message
    return message


def with_header(name: str, value: str) -> AnymailInboundMessage:
    return received(headers=[{"name": name, "value": value}])


def with_attachment(**changes: Any) -> Any:
    """Return the only attachment of a mail."""
    attachment = {
        "filename": "a.bin",
        "content": b64encode(b"\x00\xff").decode(),
        "content_type": "application/pdf",
        "content_id": None,
    }
    [part] = received(attachments=[attachment | changes]).attachments
    return part


# A usual mail


def test_a_received_mail_is_an_inbound_event() -> None:
    event = inbound_event(read_event(payload(INBOUND)))

    assert event.event_type == EventType.INBOUND
    assert event.event_id == "54d7e8c9-1195-4ba0-9d3f-b9af92305add"
    assert event.timestamp.year == 2026
    assert event.esp_event == payload(INBOUND)


def test_headers_are_kept_and_missing_ones_are_those_of_the_json() -> None:
    message = received()

    assert message["Message-ID"] == "<abc@sender.example>"
    assert message.get_all("Received") == ["from a by b", "from c by d"]
    assert message.get_all("Subject") == ["Grüße"]
    assert str(message.from_email) == '"Kim \\"K\\" Lee" <kim@sender.example>'
    assert [str(to) for to in message.to] == [
        "support+42@acme.example",
        "Sales <sales@acme.example>",
    ]
    assert [str(cc) for cc in message.cc] == ["boss@acme.example"]
    assert message["Reply-To"] == "kim@private.example"


@pytest.mark.parametrize(
    ("date", "header", "expected"),
    [
        ("2026-02-08T20:14:00.000Z", None, "2026-02-08T20:14:00+00:00"),
        ("Sun, 08 Feb 2026 21:14:00 +0100", None, "2026-02-08T21:14:00+01:00"),
        ("yesterday", "Sun, 08 Feb 2026 10:14:00 GMT", "2026-02-08T10:14:00+00:00"),
        ("yesterday", None, None),
        (7, None, None),
    ],
)
def test_the_date_is_that_of_the_headers_or_of_the_json(
    date: object, header: str | None, expected: str | None
) -> None:
    headers = [{"name": "date", "value": header}] if header else []
    found = received(date=date, headers=headers).date

    assert (found and found.isoformat()) == expected


def test_a_received_mail_has_text_html_attachments_and_inline_images() -> None:
    message = received()

    assert message.text == "Hallo, da\n"
    assert message.html == "<p>Hallo, da</p>"
    [note] = message.attachments
    assert (note.get_filename(), note.get_content_text()) == ("note.txt", "hello")
    [logo] = message.content_id_map.values()
    assert logo.get_content_bytes() == b"\x89PNG"
    # The structure is ours, not that of the headers.
    assert message.get_all("Content-Type") == ["multipart/mixed"]


def test_a_received_mail_has_its_envelope_and_spam_verdict() -> None:
    message = received()

    assert message.envelope_sender == "bounces@sender.example"
    assert message.envelope_recipient == "support+42@acme.example"
    assert (message.spam_detected, message.spam_score) == (False, 1.5)
    other = received(envelope={"from": "a@b.example"}, spam_score=True, is_spam=1)
    assert other.envelope_sender == "a@b.example"
    assert (other.spam_detected, other.spam_score) == (None, None)


def test_a_received_mail_may_be_empty() -> None:
    message = inbound_event(read_event(payload(INBOUND) | {"data": []})).message

    assert (message.from_email, message.to, message.text) == (None, [], None)
    assert (message.spam_detected, message.spam_score) == (None, None)


# Headers


@given(st.text(st.characters(categories=["L", "N", "S"]), max_size=200))
@example("Grüße, (bis) morgen, 日本語 の 件名")
@example("🎉" * 80)
def test_any_text_of_a_header_is_read_and_written(text: str) -> None:
    message = with_header("Subject", f"a {text} b")

    again = AnymailInboundMessage.parse_raw_mime_bytes(message.as_bytes())
    assert message.subject == again.subject
    if "=?" not in text:
        assert message.subject == f"a {text} b"


@pytest.mark.parametrize("quoting", ['"Jürgen Müller"', "Jürgen Müller"])
def test_a_name_outside_of_ascii_leaves_its_address_alone(quoting: str) -> None:
    message = with_header("To", f"{quoting} <j@example.com>, b@example.com")

    assert [to.addr_spec for to in message.to] == ["j@example.com", "b@example.com"]
    assert message.to[0].display_name == "Jürgen Müller"


@pytest.mark.parametrize("name", ["Subject", "To"])
@pytest.mark.parametrize(
    "value",
    ["é" + "x" * 10**6, "é" * 10**6, "é " * 10**6, "é,x " * 10**5],
    ids=["ascii at the end", "one word", "words", "mixed"],
)
def test_a_very_long_header_does_not_keep_a_process_busy(name: str, value: str) -> None:
    # Takes a second at most; in quadratic time it would take hours.
    assert name in with_header(name, value)


def test_a_header_cannot_add_another_one() -> None:
    headers = [
        {"name": "X-A", "value": "b\r\nBcc: victim@example.com\x85X-C: d"},
        {"name": "X-Bad\nBcc", "value": "victim@example.com"},
        {"name": "", "value": "x"},
        "no object",
    ]
    message = received(headers=headers)

    assert message["X-A"] == "b Bcc: victim@example.com X-C: d"
    assert message["Bcc"] is None


@pytest.mark.parametrize("place", ["headers", "json", "both"])
@pytest.mark.parametrize(
    ("value", "name", "address"),
    [
        ("[Shop] News <n@example.com>", "[Shop] News", "n@example.com"),
        ("Last, First <a@example.com>", "Last, First", "a@example.com"),
        ("=?utf-8?q?Gr=C3=BC=C3=9Fe=2C?= B <a@b.example>", "Grüße, B", "a@b.example"),
        ("Shop: News <mailto:n@example.com>", "Shop: News", "n@example.com"),
        ("=?utf-8?b?x?=, B <a@b.c>", "=?utf-8?b?x?=, B", "a@b.c"),
        ("<<a@example.com>>", "", "a@example.com"),
        ("a;b@example.com", "", "b@example.com"),
        ("a..b@example.com", "", "a..b@example.com"),
        ("=?utf-8?q?a=0d=0ab?= <a@example.com>", "a b", "a@example.com"),
        *(
            (sender, None, None)
            for sender in (
                *("MAILER-DAEMON (Mail Delivery System)", "undisclosed-recipients:;"),
                *("<>", "a@", "a@b@c", "[", '"', "\x00", "1.:", "Grüße"),
                *("=?utf-8?q?=0a?=", "=?x?q?a?="),
            )
        ),
    ],
)
def test_an_odd_sender_has_the_address_that_is_found_in_it_or_none(
    value: str, name: str | None, address: str | None, place: str
) -> None:
    header = [{"name": "From", "value": value}] if place != "json" else []
    field = {"email": value, "name": None} if place != "headers" else None
    message = received(**{"headers": header, "from": field})

    sender = message.from_email
    assert (sender and sender.display_name, sender and sender.addr_spec) == (
        name,
        address,
    )
    assert (address or "") in str(message["From"])
    assert message.as_bytes()


def test_the_addresses_of_an_odd_field_are_all_found() -> None:
    message = with_header("To", "Last, First <a@example.com>, b@example.com, (c")

    assert [to.addr_spec for to in message.to] == ["a@example.com", "b@example.com"]


@given(
    name=st.sampled_from(["To", "Cc", "Bcc", "Reply-To", "Message-ID", "Date"]),
    value=st.text(alphabet='aü@.<>"\\()[],;: =?utf-8?q?0', max_size=24),
)
def test_any_field_can_be_read(name: str, value: str) -> None:
    message = with_header(name, value)

    for addresses in (message.to, message.cc, message.bcc):
        assert isinstance(addresses, list)
    assert message.get_address_header("Reply-To") is not None
    assert message.date is None or message.date
    assert [str(text) for _, text in message.items()]
    assert message.as_bytes()


# Attachments


def test_an_attachment_that_comes_as_a_link_is_left_out() -> None:
    linked = {"filename": "a", "content": None, "url": "https://files.example/1"}

    assert received(attachments=[linked]).attachments == []


@pytest.mark.parametrize(
    ("content_type", "content", "expected"),
    [
        ("text/plain; charset=iso-8859-1", b"\xe9", "é"),
        ("TEXT/PLAIN ;\tCHARSET = utf-8; format=flowed", b"\xc3\xa9", "é"),
        ('text/csv; header=present; charset="windows-1252"', b"\x80", "€"),
        ("text/plain; charset=utf-16", "é".encode("utf-16"), "é"),
        # A charset that cannot be read is dropped.
        *(
            (f"text/plain; charset={charset}", b"h", "h")
            for charset in ("", "x-none", "hex", "idna", "a b", "a\r\nBcc: x", "é")
        ),
    ],
)
def test_a_text_attachment_can_be_read(
    content_type: str, content: bytes, expected: str
) -> None:
    encoded = b64encode(content).decode()
    part = with_attachment(content=encoded, content_type=content_type)

    assert part.get_content_text() == expected


@pytest.mark.parametrize("content_type", [None, "", "odd", "multipart/mixed", "a/b\nc"])
def test_an_odd_attachment_type_is_a_file_of_bytes(content_type: str | None) -> None:
    part = with_attachment(content_type=content_type)

    assert part.get_content_type() == "application/octet-stream"
    assert part.get_content_bytes() == b"\x00\xff"


def test_a_forwarded_mail_is_a_mail_if_it_is_text() -> None:
    forwarded = (
        "From: [Shop] News <n@example.com>\r\nMessage-ID: <a,@b\r\n\r\nGrüße\r\n"
    )
    mail, octets = (
        with_attachment(
            content=b64encode(forwarded.encode(charset)).decode(),
            content_type="message/rfc822",
        )
        for charset in ("utf-8", "latin-1")
    )

    [inner] = mail.get_payload()
    assert str(inner.from_email) == '"[Shop] News" <n@example.com>'
    assert inner["Message-ID"] == "<a,@b"
    assert octets.get_content_bytes() == forwarded.encode("latin-1")


@pytest.mark.parametrize(
    ("content_id", "found"),
    [
        ("<a@b>", ["a@b"]),
        ("a@b", ["a@b"]),
        ("<>", []),
        ("a b", []),
        ("a\r\nBcc: x", []),
        (7, []),
    ],
)
def test_a_content_id_makes_an_inline_part(
    content_id: object, found: list[str]
) -> None:
    image = {"content": "aA==", "content_type": "image/png", "content_id": content_id}
    message = received(attachments=[image])

    assert list(message.content_id_map) == found
    assert len(message.attachments) == 1 - len(found)


@pytest.mark.parametrize("content", ["a", "é", 7, ["x"]])
def test_an_attachment_that_is_not_base64_is_refused(content: object) -> None:
    with pytest.raises(ValueError, match="attachment_invalid"):
        with_attachment(content=content)


# Anything


@given(st.dictionaries(st.sampled_from([*sorted(DATA[INBOUND]), "raw"]), JSON))
def test_any_received_mail_can_be_written_and_read(data: dict[str, Any]) -> None:
    try:
        message = inbound_event(read_event(payload(INBOUND) | {"data": data})).message
    except ValueError:
        return
    assert message.as_bytes()


@given(
    st.lists(st.fixed_dictionaries({"name": st.text(), "value": st.text()})),
    st.lists(
        st.fixed_dictionaries(
            {
                "filename": st.text(),
                "content": st.binary().map(lambda raw: b64encode(raw).decode()),
                "content_type": st.text()
                | st.sampled_from(["text/plain", "message/rfc822", "message/partial"])
                | st.text().map("text/plain; charset={}".format),
                "content_id": st.none() | st.text(),
            }
        ),
        max_size=2,
    ),
)
def test_no_headers_or_attachments_of_strangers_make_it_fail(
    headers: list[dict[str, str]], attachments: list[dict[str, Any]]
) -> None:
    message = received(headers=headers, attachments=attachments)

    assert message.get_content_type() == "multipart/mixed"
