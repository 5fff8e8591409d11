"""What each payload about sent mail becomes in Anymail's terms."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.webhooks.events import (
    TRACKING_EVENTS,
    read_event,
    tracking_event,
)
from tests.snippets import DOCS
from tests.webhooks.payloads import (
    DATA,
    JSON,
    LETTERMINT_ID,
    OUR_ID,
    RECIPIENT,
    payload,
)

if TYPE_CHECKING:
    from anymail.signals import AnymailTrackingEvent

KEY = "django_message_id"
#: The table of the documentation, as (event, event type, reject reason or a dash).
DOCUMENTED = re.findall(
    r"^\| `(\S+)` \| (\w+) \| (\S+) \|",
    (DOCS / "webhooks.md").read_text(),
    re.MULTILINE,
)


def tracked(
    event_type: str, *, key: str | None = KEY, **changes: Any
) -> AnymailTrackingEvent:
    event = read_event(payload(event_type, **changes))
    return tracking_event(event, correlation_key=key)


@pytest.mark.parametrize(("event_type", "mapped", "reason"), DOCUMENTED)
def test_each_event_is_as_documented(event_type: str, mapped: str, reason: str) -> None:
    # Without a reason: the one of a suppression would replace the table's.
    event = tracked(event_type, reason=None)

    assert event.event_type == mapped.lower()
    assert event.reject_reason == (reason.lower() if reason.isupper() else None)


def test_every_event_is_documented() -> None:
    assert {event_type for event_type, *_ in DOCUMENTED} == {*TRACKING_EVENTS}


def test_an_event_has_our_id_and_no_trace_of_its_key() -> None:
    event = tracked("message.delivered")

    assert event.message_id == OUR_ID
    assert event.metadata == {"user": "123"}
    assert event.tags == ["welcome", "campaign=spring"]
    assert event.event_id == "54d7e8c9-1195-4ba0-9d3f-b9af92305add"
    assert event.timestamp == datetime(2026, 2, 8, 20, 14, 0, 123000, tzinfo=UTC)
    assert event.esp_event == payload("message.delivered")


@pytest.mark.parametrize(
    ("event_type", "changes", "field", "expected"),
    [
        ("hard_bounced", {}, "recipient", RECIPIENT),
        ("hard_bounced", {}, "mta_response", "User unknown"),
        ("failed", {}, "description", "Internal processing error"),
        ("failed", {"reason": None, "reason_code": "tls"}, "description", "tls"),
        ("clicked", {}, "click_url", "https://acme.example/start?a=1"),
        ("clicked", {}, "user_agent", "Mozilla/5.0"),
        ("teleported", {}, "event_type", "unknown"),
        ("suppressed", {"reason": "hard_bounce"}, "reject_reason", "bounced"),
        ("suppressed", {"reason": "spam_complaint"}, "reject_reason", "spam"),
        ("suppressed", {"reason": "unsubscribe"}, "reject_reason", "unsubscribed"),
        ("suppressed", {"reason": "manual"}, "reject_reason", "blocked"),
        ("suppressed", {"reason": ["spam"]}, "reject_reason", "blocked"),
    ],
)
def test_an_event_has_what_its_data_tell(
    event_type: str, changes: dict[str, Any], field: str, expected: str
) -> None:
    assert getattr(tracked(f"message.{event_type}", **changes), field) == expected


@pytest.mark.parametrize(
    ("key", "metadata", "message_id", "others"),
    [
        (KEY, [], LETTERMINT_ID, {}),
        (KEY, None, LETTERMINT_ID, {}),
        (KEY, {"user": "1"}, LETTERMINT_ID, {"user": "1"}),
        (KEY, {KEY: 7}, LETTERMINT_ID, {}),
        (None, {KEY: OUR_ID}, LETTERMINT_ID, {KEY: OUR_ID}),
        ("ref", {"ref": "r1", "a": "b"}, "r1", {"a": "b"}),
    ],
)
def test_the_id_is_taken_out_of_the_metadata(
    key: str | None, metadata: object, message_id: str, others: dict[str, str]
) -> None:
    event = tracked("message.delivered", key=key, metadata=metadata)

    assert (event.message_id, event.metadata) == (message_id, others)


@pytest.mark.parametrize(
    ("tag", "tags", "expected"),
    [
        (None, None, []),
        ("b", ["a", "b"], ["b", "a"]),
        ("a", [{"name": "__lettermint_tag", "value": "a"}], ["a"]),
        ("a", [{"name": "c", "value": "a"}], ["a", "c=a"]),
        (None, ["a", 3, None, ["b"], {"name": "c"}, {}], ["a"]),
        (None, [{"value": "a"}, {"name": 1, "value": "b"}], ["a", "b"]),
        (None, [{"name": "c", "value": ["d"]}], []),
        (None, {"name": "c", "value": "d"}, []),
    ],
)
def test_tags_are_strings_without_duplicates(
    tag: object, tags: object, expected: list[str]
) -> None:
    assert tracked("message.sent", tag=tag, tags=tags).tags == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"timestamp": "2026-02-08T22:14:00+02:00"},
        {"timestamp": "2026-02-08T20:14:00"},
        {"timestamp": None, "created_at": "2026-02-08T20:14:00Z"},
    ],
)
def test_a_timestamp_is_aware_and_utc(fields: dict[str, object]) -> None:
    event = read_event(payload("message.sent") | fields)

    assert event.timestamp == datetime(2026, 2, 8, 20, 14, tzinfo=UTC)
    assert event.timestamp.tzinfo is UTC


def test_empty_data_may_come_as_a_list() -> None:
    assert read_event(payload("message.sent") | {"data": []}).data == {}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("id", ["", 7, "a b", "é", "line\nbreak", "x" * 129]),
        ("event", ["", ["message.sent"]]),
        ("data", [["x"], "x"]),
        ("timestamp", ["", 1770581640, "yesterday", "9" * 5000]),
        ("timestamp", ["2026-02-30T00:00:00Z", "0001-01-01T00:00:00+23:00"]),
    ],
)
def test_an_odd_or_missing_field_is_named(field: str, values: list[object]) -> None:
    content = payload("message.sent")
    without = {name: value for name, value in content.items() if name != field}
    for odd in (without, *(content | {field: value} for value in [None, *values])):
        with pytest.raises(ValueError, match=f"^{field}_invalid$"):
            read_event(odd)


@given(
    st.sampled_from(sorted(TRACKING_EVENTS)),
    st.dictionaries(st.sampled_from(["id", "event", "timestamp"]), JSON),
    st.dictionaries(st.sampled_from(sorted(DATA["message.clicked"])), JSON),
)
def test_any_payload_is_read_or_refused(
    event_type: str, changes: dict[str, Any], data: dict[str, Any]
) -> None:
    try:
        event = read_event(payload(event_type) | {"data": data} | changes)
    except ValueError:
        return
    assert tracking_event(event, correlation_key=KEY).event_id == event.id
