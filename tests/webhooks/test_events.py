"""What each payload becomes in Anymail's terms."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from anymail.inbound import AnymailInboundMessage
from anymail.signals import AnymailTrackingEvent, EventType, RejectReason
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.webhooks.events import (
    INBOUND,
    SUPPRESSION_REASONS,
    TEST,
    TRACKING_EVENTS,
    read_event,
    tracking_event,
)
from django_lettermint.webhooks.inbound import inbound_event

from .payloads import DATA, LETTERMINT_ID, OUR_ID, RECIPIENT, payload

DOCS = Path(__file__).parents[2] / "docs" / "webhooks.md"

#: Everything that JSON can hold.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
#: An object that has some of these keys, with anything in them.
MAIL_KEYS = [*sorted(DATA[INBOUND]), "raw"]


def tracked(
    event_type: str, *, key: str | None = "django_message_id", **changes: Any
) -> AnymailTrackingEvent:
    event = read_event(payload(event_type, **changes))
    return tracking_event(event, correlation_key=key)


def received(**changes: Any) -> AnymailInboundMessage:
    message: AnymailInboundMessage = inbound_event(
        read_event(payload(INBOUND, **changes))
    ).message
    return message


def attachment(**changes: Any) -> dict[str, Any]:
    return {
        "filename": "a.bin",
        "content": base64.b64encode(b"\x00\xff").decode(),
        "content_type": "application/pdf",
        "size": 2,
        "content_id": None,
        **changes,
    }


def test_every_event_type_has_a_payload_and_a_meaning() -> None:
    assert set(DATA) == {*TRACKING_EVENTS, INBOUND, TEST}
    assert len(DATA) == 21


@pytest.mark.parametrize("event_type", sorted(TRACKING_EVENTS))
def test_each_event_is_mapped_as_in_the_table(event_type: str) -> None:
    event = tracked(event_type)
    mapped, reason = TRACKING_EVENTS[event_type]
    if event_type == "message.suppressed":
        reason = RejectReason.BOUNCED  # by the payload's own reason
    assert (event.event_type, event.reject_reason) == (mapped, reason)


@pytest.mark.parametrize(
    "event_type", sorted(name for name in TRACKING_EVENTS if name.startswith("message"))
)
def test_each_message_event_brings_our_id_and_no_trace_of_its_key(
    event_type: str,
) -> None:
    event = tracked(event_type)
    assert event.message_id == OUR_ID
    assert event.metadata == {"user": "123"}
    assert event.tags == ["welcome", "campaign=spring"]
    assert event.event_id == "54d7e8c9-1195-4ba0-9d3f-b9af92305add"
    assert event.timestamp == datetime(2026, 2, 8, 20, 14, 0, 123000, tzinfo=UTC)


def test_the_payload_itself_stays_as_it_came() -> None:
    event = tracked("message.delivered")
    assert event.esp_event == payload("message.delivered")
    assert event.esp_event["data"]["message_id"] == LETTERMINT_ID


def test_a_bounce_tells_recipient_and_reply() -> None:
    event = tracked("message.hard_bounced")
    assert (event.recipient, event.mta_response) == (RECIPIENT, "User unknown")


def test_a_failure_tells_its_reason() -> None:
    assert tracked("message.failed").description == "Internal processing error"


def test_a_failure_with_no_more_than_a_code_tells_that() -> None:
    event = tracked("message.failed", reason=None, reason_code="enforced_tls_failed")
    assert event.description == "enforced_tls_failed"


def test_a_click_tells_where_it_went_and_by_what() -> None:
    event = tracked("message.clicked")
    assert event.click_url == "https://acme.example/start?a=1"
    assert event.user_agent == "Mozilla/5.0"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        *SUPPRESSION_REASONS.items(),
        ("manual", RejectReason.BLOCKED),
        (None, RejectReason.BLOCKED),
        (["hard_bounce"], RejectReason.BLOCKED),
    ],
)
def test_a_suppression_is_explained_by_its_reason(
    reason: object, expected: str
) -> None:
    assert tracked("message.suppressed", reason=reason).reject_reason == expected


def test_an_event_type_that_is_not_known_yet_is_unknown() -> None:
    event = tracked("message.teleported", recipient=RECIPIENT)
    assert event.event_type == EventType.UNKNOWN
    assert event.recipient == RECIPIENT


@pytest.mark.parametrize("metadata", [[], {}, None, "x", {"user": "1"}])
def test_without_our_id_the_event_has_lettermints(metadata: object) -> None:
    event = tracked("message.delivered", metadata=metadata)
    assert event.message_id == LETTERMINT_ID
    assert event.metadata == (metadata if isinstance(metadata, dict) else {})


def test_without_correlation_metadata_is_left_alone() -> None:
    event = tracked("message.delivered", key=None)
    assert event.message_id == LETTERMINT_ID
    assert event.metadata == {"django_message_id": OUR_ID, "user": "123"}


def test_the_correlation_key_can_be_another() -> None:
    event = tracked("message.delivered", key="ref", metadata={"ref": "r1", "a": "b"})
    assert (event.message_id, event.metadata) == ("r1", {"a": "b"})


def test_an_id_that_is_no_text_is_no_id() -> None:
    event = tracked("message.delivered", metadata={"django_message_id": 7})
    assert event.message_id == LETTERMINT_ID


@pytest.mark.parametrize(
    ("tag", "tags", "expected"),
    [
        (None, None, []),
        ("a", [], ["a"]),
        ("b", ["a", "b"], ["b", "a"]),
        (None, [{"name": "__lettermint_tag", "value": "a b"}], ["a b"]),
        ("a", [{"name": "__lettermint_tag", "value": "a"}], ["a"]),
        ("a", [{"name": "c", "value": "a"}], ["a", "c=a"]),
        (None, ["a", 3, None, ["b"], {"name": "c"}, {}], ["a"]),
        (None, [{"value": "a"}, {"name": 1, "value": "b"}], ["a", "b"]),
        (None, [{"name": "c", "value": ["d"]}], []),
        (None, {"name": "c", "value": "d"}, []),
    ],
)
def test_tags_are_texts_and_each_there_once(
    tag: object, tags: object, expected: list[str]
) -> None:
    assert tracked("message.sent", tag=tag, tags=tags).tags == expected


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        ("2026-02-08T20:14:00.000Z", datetime(2026, 2, 8, 20, 14, tzinfo=UTC)),
        ("2026-02-08T22:14:00+02:00", datetime(2026, 2, 8, 20, 14, tzinfo=UTC)),
        ("2026-02-08T20:14:00", datetime(2026, 2, 8, 20, 14, tzinfo=UTC)),
    ],
)
def test_a_timestamp_is_aware_and_utc(stamp: str, expected: datetime) -> None:
    event = read_event(payload("message.sent") | {"timestamp": stamp})
    assert event.timestamp == expected
    assert event.timestamp.tzinfo is UTC


def test_the_older_name_of_the_timestamp_is_read() -> None:
    content = payload("message.sent")
    content["created_at"] = content.pop("timestamp")
    assert read_event(content).timestamp.year == 2026


def test_the_older_name_of_the_timestamp_is_read_beside_an_empty_new_one() -> None:
    content = payload("message.sent")
    content["created_at"], content["timestamp"] = content["timestamp"], None
    assert read_event(content).timestamp.year == 2026


def test_empty_data_may_come_as_a_list() -> None:
    assert read_event(payload("message.sent") | {"data": []}).data == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", None),
        ("id", ""),
        ("id", 7),
        ("id", "a b"),
        ("id", "é"),
        ("id", "line\nbreak"),
        ("id", "x" * 129),
        ("event", None),
        ("event", ""),
        ("event", ["message.sent"]),
        ("data", None),
        ("data", ["x"]),
        ("data", "x"),
        ("timestamp", None),
        ("timestamp", ""),
        ("timestamp", 1770581640),
        ("timestamp", "yesterday"),
        ("timestamp", "9" * 5000),
        ("timestamp", "2026-02-30T00:00:00Z"),
        ("timestamp", "0001-01-01T00:00:00+23:00"),
    ],
)
def test_an_odd_envelope_names_its_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}_invalid$"):
        read_event(payload("message.sent") | {field: value})


@pytest.mark.parametrize("field", ["id", "event", "data", "timestamp"])
def test_an_envelope_lacks_no_field(field: str) -> None:
    content = payload("message.sent")
    del content[field]
    with pytest.raises(ValueError, match=f"^{field}_invalid$"):
        read_event(content)


@given(st.dictionaries(st.sampled_from(["id", "event", "data", "timestamp"]), JSON))
def test_any_envelope_is_read_or_refused(changes: dict[str, Any]) -> None:
    try:
        event = read_event(payload("message.sent") | changes)
    except ValueError:
        return
    assert tracking_event(event, correlation_key="k").event_id == event.id


@given(st.sampled_from(sorted(TRACKING_EVENTS)), st.dictionaries(st.text(), JSON))
def test_any_data_becomes_an_event(event_type: str, data: dict[str, Any]) -> None:
    content = payload(event_type) | {"data": data}
    event = tracking_event(read_event(content), correlation_key="k")
    assert event.event_type == TRACKING_EVENTS[event_type][0]


def test_a_received_mail_has_its_headers_in_order() -> None:
    message = received()
    assert message["Message-ID"] == "<abc@sender.example>"
    assert message.get_all("Received") == ["from a by b", "from c by d"]
    assert message.subject == "Grüße"
    assert message.get_all("Subject") == ["Grüße"]


def test_a_received_mail_has_addresses_without_a_header_for_them() -> None:
    message = received()
    assert message.from_email.addr_spec == "kim@sender.example"
    assert message.from_email.display_name == 'Kim "K" Lee'
    assert [to.addr_spec for to in message.to] == [
        "support+42@acme.example",
        "sales@acme.example",
    ]
    assert message.to[1].display_name == "Sales"
    assert [cc.addr_spec for cc in message.cc] == ["boss@acme.example"]
    assert message["Reply-To"] == "kim@private.example"


@pytest.mark.parametrize(
    "date", ["2026-02-08T20:14:00.000Z", "Sun, 08 Feb 2026 21:14:00 +0100"]
)
def test_a_received_mail_has_a_date_without_a_header_for_it(date: str) -> None:
    assert received(date=date).date == datetime(2026, 2, 8, 20, 14, tzinfo=UTC)


@pytest.mark.parametrize("date", [None, 7, "yesterday"])
def test_an_odd_date_is_none(date: object) -> None:
    assert received(date=date).date is None


def test_the_date_of_the_headers_counts() -> None:
    header = {"name": "date", "value": "Sat, 07 Feb 2026 10:00:00 +0000"}
    assert received(headers=[header]).date == datetime(2026, 2, 7, 10, tzinfo=UTC)


def test_a_received_mail_has_text_and_html() -> None:
    message = received()
    assert message.text == "Hallo, da\n"
    assert message.html == "<p>Hallo, da</p>"


def test_a_received_mail_has_attachments_and_inline_images() -> None:
    message = received()
    [note] = message.attachments
    assert (note.get_filename(), note.get_content_text()) == ("note.txt", "hello")
    [logo] = message.content_id_map.values()
    assert logo.get_content_bytes() == b"\x89PNG"


def test_a_received_mail_has_its_envelope_and_spam_verdict() -> None:
    message = received()
    assert message.envelope_sender == "bounces@sender.example"
    assert message.envelope_recipient == "support+42@acme.example"
    assert (message.spam_detected, message.spam_score) == (False, 1.5)


def test_a_received_mail_is_an_inbound_event() -> None:
    event = inbound_event(read_event(payload(INBOUND)))
    assert event.event_type == EventType.INBOUND
    assert event.event_id == "54d7e8c9-1195-4ba0-9d3f-b9af92305add"
    assert event.timestamp.year == 2026
    assert event.esp_event == payload(INBOUND)


def test_a_received_mail_may_consist_of_nothing() -> None:
    message = inbound_event(read_event(payload(INBOUND) | {"data": []})).message
    assert (message.from_email, message.to, message.text) == (None, [], None)
    assert (message.spam_detected, message.spam_score) == (None, None)


def test_the_original_structure_does_not_replace_ours() -> None:
    message = received()
    assert message.get_content_type() == "multipart/mixed"
    assert message.get_all("Content-Type") == ["multipart/mixed"]


@pytest.mark.parametrize(
    "value",
    [
        "Grüße",
        "Grüße aus Köln",
        "Re: Grüße, (bis) morgen",
        "Bücher,Filme,Café",
        "日本語 の 件名",
        "plain",
        "🎉" * 80,
        "=?utf-8?q?Gr=C3=BC=C3=9Fe?=",
    ],
)
def test_a_header_outside_of_ascii_is_read_and_written(value: str) -> None:
    message = received(headers=[{"name": "Subject", "value": value}])
    expected = "Grüße" if value.startswith("=?") else value
    assert message.subject == expected
    again = AnymailInboundMessage.parse_raw_mime_bytes(message.as_bytes())
    assert again.subject == expected


@pytest.mark.parametrize("quoting", ['"Jürgen Müller"', "Jürgen Müller"])
def test_a_name_outside_of_ascii_leaves_its_address_alone(quoting: str) -> None:
    value = f"{quoting} <j@example.com>, b@example.com"
    message = received(headers=[{"name": "To", "value": value}])
    assert [to.addr_spec for to in message.to] == ["j@example.com", "b@example.com"]
    assert message.to[0].display_name == "Jürgen Müller"


@given(st.text(st.characters(categories=["L", "N", "S"]), max_size=200))
def test_any_text_of_a_header_is_read_and_written(text: str) -> None:
    message = received(headers=[{"name": "X-A", "value": f"a {text} b"}])
    if "=?" not in text:
        assert message["X-A"] == f"a {text} b"
    assert message.as_bytes()


@pytest.mark.parametrize("name", ["Subject", "To"])
@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, "é" + "x" * 10**6, "é" * 10**6, "é " * 10**6, "é,x " * 10**5],
    ids=["ascii", "ascii at the end", "one word", "words", "mixed"],
)
def test_a_very_long_header_does_not_keep_a_process_busy(name: str, value: str) -> None:
    # A second at most. What takes the square of it takes hours, and this test's minute.
    message = received(headers=[{"name": name, "value": value}])
    assert name in message


def test_a_header_cannot_bring_another_one() -> None:
    headers = [
        {"name": "X-A", "value": "b\r\nBcc: victim@example.com\x85X-C: d"},
        {"name": "X-Bad\nBcc", "value": "victim@example.com"},
        {"name": "", "value": "x"},
        "no object",
    ]
    message = received(headers=headers)
    assert message["X-A"] == "b Bcc: victim@example.com X-C: d"
    assert message["Bcc"] is None


def test_a_linked_attachment_is_left_to_the_receiver() -> None:
    linked = attachment(content=None, url="https://files.example/1")
    assert received(attachments=[linked]).attachments == []


@pytest.mark.parametrize(
    ("content_type", "content", "expected"),
    [
        ("text/plain; charset=iso-8859-1", b"\xe9", "é"),
        ("TEXT/PLAIN ;\tCHARSET = utf-8; format=flowed", b"\xc3\xa9", "é"),
        ('text/csv; header=present; charset="windows-1252"', b"\x80", "€"),
        ("text/plain; charset=utf-16", "é".encode("utf-16"), "é"),
    ],
)
def test_a_text_attachment_keeps_its_charset(
    content_type: str, content: bytes, expected: str
) -> None:
    encoded = base64.b64encode(content).decode()
    note = attachment(content=encoded, content_type=content_type)
    [part] = received(attachments=[note]).attachments
    assert part.get_content_text() == expected


@pytest.mark.parametrize(
    "charset", ["", "x-none", "hex", "idna", "a b", "a\r\nBcc: x", "é", "a" * 65]
)
def test_a_charset_that_cannot_be_read_is_none(charset: str) -> None:
    note = attachment(content_type=f"text/plain; charset={charset}", content="aA==")
    [part] = received(attachments=[note]).attachments
    assert part["Content-Type"].params.keys() == {"name"}
    assert part.get_content_text() == "h"


@pytest.mark.parametrize("content_type", [None, "", "odd", "multipart/mixed", "a/b\nc"])
def test_an_odd_attachment_type_is_a_file_of_bytes(content_type: str | None) -> None:
    [part] = received(attachments=[attachment(content_type=content_type)]).attachments
    assert part.get_content_type() == "application/octet-stream"
    assert part.get_content_bytes() == b"\x00\xff"


def test_a_forwarded_mail_is_a_mail() -> None:
    content = base64.b64encode("Subject: Grüße\n\nHallo\n".encode()).decode()
    forwarded = attachment(content=content, content_type="message/rfc822")
    [part] = received(attachments=[forwarded]).attachments
    assert part.get_content_type() == "message/rfc822"


def test_a_forwarded_mail_in_another_charset_keeps_its_bytes() -> None:
    original = "Subject: Grüße\n\nHallo\n".encode("latin-1")
    content = base64.b64encode(original).decode()
    forwarded = attachment(content=content, content_type="message/rfc822")
    [part] = received(attachments=[forwarded]).attachments
    assert part.get_content_bytes() == original


@pytest.mark.parametrize("content_id", ["<a@b>", "a@b"])
def test_a_content_id_makes_an_inline_part(content_id: str) -> None:
    message = received(attachments=[attachment(content_id=content_id)])
    assert list(message.content_id_map) == ["a@b"]


@pytest.mark.parametrize("content_id", ["a b", "a\r\nBcc: x", "<>", 7])
def test_an_odd_content_id_is_none(content_id: object) -> None:
    message = received(attachments=[attachment(content_id=content_id)])
    assert len(message.attachments) == 1


@pytest.mark.parametrize("content", ["a", "é", 7, ["x"]])
def test_an_attachment_that_is_not_base64_is_refused(content: object) -> None:
    with pytest.raises(ValueError, match="attachment_invalid"):
        received(attachments=[attachment(content=content)])


@given(st.dictionaries(st.sampled_from(MAIL_KEYS), JSON))
def test_any_received_mail_can_be_written_and_read(data: dict[str, Any]) -> None:
    content = payload(INBOUND) | {"data": data}
    try:
        message = inbound_event(read_event(content)).message
    except ValueError:
        return
    assert message.as_bytes()


@given(
    st.lists(st.fixed_dictionaries({"name": st.text(), "value": st.text()})),
    st.lists(
        st.fixed_dictionaries(
            {
                "filename": st.text(),
                "content": st.binary().map(lambda raw: base64.b64encode(raw).decode()),
                "content_type": st.text()
                | st.sampled_from(["text/plain", "message/rfc822", "message/partial"])
                | st.text().map("text/plain; charset={}".format),
                "content_id": st.none() | st.text(),
            }
        ),
        max_size=2,
    ),
)
def test_no_headers_and_attachments_of_strangers_make_it_fail(
    headers: list[dict[str, str]], attachments: list[dict[str, Any]]
) -> None:
    message = received(headers=headers, attachments=attachments)
    assert message.get_content_type() == "multipart/mixed"


ODD_SENDERS = [
    ("[Shop] News <n@example.com>", "[Shop] News", "n@example.com"),
    ("Last, First <a@example.com>", "Last, First", "a@example.com"),
    ("=?utf-8?q?Gr=C3=BC=C3=9Fe=2C?= B <a@example.com>", "Grüße, B", "a@example.com"),
    ("Shop: News <mailto:n@example.com>", "Shop: News", "n@example.com"),
    ("=?utf-8?b?x?=, B <a@b.c>", "=?utf-8?b?x?=, B", "a@b.c"),
    ("<<a@example.com>>", "", "a@example.com"),
    ("a;b@example.com", "", "b@example.com"),
    ("a..b@example.com", "", "a..b@example.com"),
    ("=?utf-8?q?a=0d=0ab?= <a@example.com>", "a b", "a@example.com"),
]
NO_SENDERS = [
    "MAILER-DAEMON (Mail Delivery System)",
    *("<>", "a@", "@", "a@b@c", "undisclosed-recipients:;", "a:", "[", '"'),
    *('"\\', "(", "=?utf-8?q?=0a?=", "=?x?q?a?=", ";", "Grüße", "\x00", "1.:"),
]


def places(value: str) -> dict[str, dict[str, Any]]:
    """Return a mail with this From among the headers, in the JSON, and in both."""
    header = {"headers": [{"name": "From", "value": value}]}
    field = {"from": {"email": value, "name": None}}
    return {"headers": header | {"from": None}, "json": field, "both": header | field}


@pytest.mark.parametrize("place", places(""))
@pytest.mark.parametrize(("value", "name", "address"), ODD_SENDERS)
def test_an_odd_sender_has_the_address_that_is_found_in_it(
    value: str, name: str, address: str, place: str
) -> None:
    message = received(**{"headers": [], **places(value)[place]})
    assert message.from_email.display_name == name
    assert message.from_email.addr_spec == address
    assert address in str(message["From"])
    assert message.as_bytes()


@pytest.mark.parametrize("place", places(""))
@pytest.mark.parametrize("value", NO_SENDERS)
def test_a_sender_without_an_address_is_none(value: str, place: str) -> None:
    message = received(**{"headers": [], **places(value)[place]})
    assert message.from_email is None
    assert isinstance(message["From"], str)
    assert message.as_bytes()


@pytest.mark.parametrize("name", ["To", "Cc", "Bcc", "Reply-To", "Message-ID", "Date"])
@given(value=st.text(alphabet='aü@.<>"\\()[],;: =?utf-8?q?0', max_size=24))
def test_any_field_can_be_read(name: str, value: str) -> None:
    message = received(headers=[{"name": name, "value": value}])
    assert message.to is not None
    assert message.cc is not None
    assert message.bcc is not None
    assert message.get_address_header("Reply-To") is not None
    assert message.date is None or message.date
    assert [str(text) for _, text in message.items()]
    assert message.as_bytes()


def test_the_addresses_of_an_odd_field_are_all_found() -> None:
    value = "Last, First <a@example.com>, b@example.com, (c"
    message = received(headers=[{"name": "To", "value": value}])
    assert [to.addr_spec for to in message.to] == ["a@example.com", "b@example.com"]


def test_a_forwarded_mail_of_an_odd_sender_can_be_read() -> None:
    forwarded = b"From: [Shop] News <n@example.com>\r\nMessage-ID: <\r\n\r\nHi\r\n"
    content = base64.b64encode(forwarded).decode()
    message = received(
        attachments=[{"content": content, "content_type": "message/rfc822"}]
    )
    [inner] = message.attachments[0].get_payload()
    assert str(inner.from_email) == '"[Shop] News" <n@example.com>'
    assert inner["Message-ID"] == "<"


def test_the_documented_table_is_the_mapping() -> None:
    rows = re.findall(
        r"^\| `(\S+)` \| (\w+) \| (\S+) \|", DOCS.read_text(), re.MULTILINE
    )
    documented = {
        event: (mapped.lower(), reason.lower() if reason.isupper() else None)
        for event, mapped, reason in rows
    }
    assert documented == dict(TRACKING_EVENTS)
