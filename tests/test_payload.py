"""What a message, its defaults and its surroundings add up to."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import django
import pytest
from anymail.exceptions import AnymailUnsupportedFeature
from anymail.message import AnymailMessage
from django.core import mail
from django.core.mail import EmailMessage
from django.test import override_settings
from django.utils.translation import gettext_lazy

from django_lettermint.envelope import MAX_SIZE, Envelope
from django_lettermint.exceptions import InvalidHeader, LettermintInvalidMessage
from django_lettermint.message import LettermintMessage, extras
from django_lettermint.testing.parsed_headers import ParsedHeaders, parse_headers
from tests.preparing import envelope, envelopes, header_lines, parsed, prepared

ANN, BOB, EVE = "ann@example.com", "bob@example.com", "eve@example.com"
KEY = {"idempotency_key": "k"}


def message(kind: Any = LettermintMessage, **keywords: Any) -> Any:
    defaults = {"subject": "Hi", "body": "Hello", "from_email": "shop@example.com"}
    return kind(**{**defaults, "to": [ANN], **keywords})


def with_attribute(name: str, value: object) -> Any:
    made = message()
    setattr(made, name, value)
    return made


def reading(mail: EmailMessage, **options: Any) -> ParsedHeaders:
    """Return what a relay reads, without our own id."""
    made = envelope(mail, **({"correlation_key": None} | options))
    return parse_headers(made.content)


# -- Where extras come from ----------------------------------------------------------------


def test_attributes_become_lettermints_headers() -> None:
    mail = message(route="news", tag="spring sale", metadata={"order_id": 7})
    content = envelope(mail, correlation_key=None).content
    assert content.startswith(
        b"X-Lettermint-Route: news\r\nX-LM-Tag: spring sale\r\n"
        b"X-LM-Metadata-order_id: 7\r\n"
    )


def test_the_nearer_source_wins_for_each_field_and_key() -> None:
    # Send defaults, their headers, a block, the message's headers, its attributes.
    defaults = {
        "metadata": {"a": 0, "b": 0},
        "tag": "0",
        "extra_headers": {"X-LM-Metadata-b": 1, "X-LM-Metadata-c": 1, "X-LM-Tag": 1},
    }
    headers = {"x-LM-Metadata-d": 3, "X-Metadata-e": 3, "x-lm-tag": "3"}
    with extras(metadata={"c": 2, "d": 2}, tag="2"):
        made = message(headers=headers, metadata={"e": 4, "f": 4}, tag="4")
        assert reading(made, send_defaults=defaults) == ParsedHeaders(
            tag="4",
            metadata={"a": "0", "b": "1", "c": "2", "d": "3", "e": "4", "f": "4"},
        )


def test_lettermints_raw_headers_are_not_written_twice() -> None:
    headers = {"X-LM-Tag": "one", "Idempotency-Key": "k", "X-LM-Metadata-ID": "1"}
    made = envelope(message(headers=headers))
    for name, value in headers.items():
        assert header_lines(made.data, name) == [f"{name}: {value}".encode()]


# -- Our id and key ------------------------------------------------------------------------


def test_our_id_goes_into_the_metadata() -> None:
    made = envelope(message(), correlation_key="our-id")
    assert parse_headers(made.content).metadata == {"our-id": made.message_id}


def test_an_id_given_as_metadata_is_taken_and_is_no_key() -> None:
    mail = message(metadata={"django_message_id": "mine"})
    first, second = envelope(mail), envelope(mail)
    assert first.message_id == second.message_id == "mine"
    assert parse_headers(first.content).metadata == {"django_message_id": "mine"}
    assert len({first.idempotency_key, second.idempotency_key, "mine"}) == 3


def test_a_key_of_the_callers_gives_the_same_id_each_time() -> None:
    first, second = (envelope(message(idempotency_key="order-1")) for _ in range(2))
    assert not prepared(message()).has_caller_key
    assert first.idempotency_key == second.idempotency_key == "order-1"
    assert first.message_id == second.message_id
    assert prepared(message(idempotency_key="order-1")).has_caller_key


def test_without_idempotency_only_a_callers_key_is_written() -> None:
    assert envelope(message(), idempotency=False).idempotency_key is None
    given = envelope(message(idempotency_key="k"), idempotency=False)
    assert given.idempotency_key == "k"


# -- Headers and addresses -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("lists", "recipients"),
    [
        ({"cc": [BOB], "bcc": [EVE]}, (ANN, BOB, EVE)),
        ({"cc": [ANN], "bcc": [f"Ann <{ANN}>"]}, (ANN,)),
        ({"cc": ["ann@Example.com"]}, (ANN,)),
        (
            {"to": ["a@größe.example"], "cc": ["a@Größe.example"]},
            ("a@xn--gre-6ka8i.example",),
        ),
        ({"to": ["Ann@example.com", ANN]}, ("Ann@example.com", ANN)),
        ({"to": iter([ANN])}, (ANN,)),
        ({"to": None, "cc": [BOB]}, (BOB,)),
        ({"to": [], "bcc": [EVE]}, (EVE,)),
    ],
)
def test_each_address_is_sent_to_once(
    lists: dict[str, Any], recipients: tuple[str, ...]
) -> None:
    mail = message()
    vars(mail).update(lists)
    made = envelope(mail)
    assert made.recipients == recipients
    assert b"eve" not in made.data
    assert b"\nbcc:" not in made.data.lower()


def test_what_the_caller_wrote_is_found_by_its_form_on_the_wire() -> None:
    made = prepared(message(to=["Ann <ann@straße.de>"], cc=["ann@xn--strae-oqa.de"]))
    assert made.original_addresses == {"ann@xn--strae-oqa.de": "ann@straße.de"}


@pytest.mark.parametrize(
    ("sender", "mail_from"),
    [(EVE, EVE), ("", ""), (" <> ", ""), (None, "shop@example.com")],
)
def test_the_envelope_sender_is_not_in_the_header(sender: Any, mail_from: str) -> None:
    mail = with_attribute("envelope_sender", sender)
    for defaults in ({}, {"envelope_sender": BOB}):
        made = envelope(mail, send_defaults=defaults)
        assert made.mail_from == mail_from
        assert parsed(made.content)["From"] == "shop@example.com"


def test_headers_for_readers_leave_the_addresses_of_the_commands() -> None:
    headers = {"from": "Other <o@example.com>", "to": "undisclosed-recipients:;"}
    made = envelope(message(headers=headers))
    assert (made.mail_from, made.recipients) == ("shop@example.com", (ANN,))
    for name, value in headers.items():
        assert header_lines(made.content, name) == [f"{name.title()}: {value}".encode()]


BREAK = f"{ANN}\r\nBcc: {EVE}"
#: What the view of Django's documentation catches for line breaks.
DJANGOS: type[Exception] = (
    mail.BadHeaderError if django.VERSION < (6, 0) else ValueError
)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *(("from_email", value, "") for value in (None, "", "shop")),
        ("envelope_sender", "shop", ""),
        *(
            (name, value, "use a list of addresses")
            for name in ("to", "cc", "bcc", "reply_to")
            for value in (ANN, gettext_lazy(ANN), 5)
        ),
        ("to", [""], "a message needs to, cc or bcc"),
        ("extra_headers", [("X-A", "b")], "use a mapping"),
        ("subject", "Hello\0", "NUL"),
        ("subject", b"Hello", "give it as text"),
        *((name, [BREAK], "line break") for name in ("to", "cc", "bcc", "reply_to")),
        *((name, BREAK, "line break") for name in ("from_email", "envelope_sender")),
        ("subject", BREAK, "line break"),
        ("tag", "a\nb", "ASCII letters"),
        ("metadata", {"order": "1\n2"}, "line break"),
        ("extra_headers", {"X-A": "a\nb"}, "line break"),
        ("extra_headers", {"X-A\n": "a"}, "without space"),
        ("extra_headers", {"To": f"{ANN}\n"}, "line break"),
        ("extra_headers", {"X-LM-Tag": "a\nb"}, "line break"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(
    name: str, value: Any, rule: str
) -> None:
    with pytest.raises(LettermintInvalidMessage) as caught:
        envelope(with_attribute(name, value))
    text = str(caught.value)
    field = "header" if isinstance(value, dict) and name == "extra_headers" else name
    assert text.startswith(field)
    assert rule in text
    has_break = any(each in str(value) for each in ("\n", "\\n"))
    assert isinstance(caught.value, InvalidHeader) is has_break
    assert isinstance(caught.value, DJANGOS) or not has_break


def test_none_is_an_empty_subject_and_body() -> None:
    mail = message()
    mail.subject = mail.body = None
    content = envelope(mail).content
    assert parsed(content)["Subject"] == ""
    assert content.endswith(b"\r\n\r\n\r\n")


def test_subject_and_headers_may_be_lazy() -> None:
    mail = message(subject=gettext_lazy("Hi"), headers={"X-A": gettext_lazy("b")})
    found = parsed(envelope(mail).content)
    assert (found["Subject"], found["X-A"]) == ("Hi", "b")


def test_a_message_over_25_mb_is_refused() -> None:
    mail = message()
    mail.attach("a.bin", b"x" * (MAX_SIZE * 3 // 4), "application/octet-stream")
    with pytest.raises(LettermintInvalidMessage, match=r"octets, .*\(25 MB\)"):
        envelope(mail)


# -- Send defaults -------------------------------------------------------------------------


class Own(LettermintMessage):
    """Builds its mail itself."""

    def message(self, **keywords: Any) -> Any:
        return super().message(**keywords)


@pytest.mark.parametrize("kind", [LettermintMessage, AnymailMessage, Own])
def test_every_other_default_holds_too(kind: Any) -> None:
    defaults = {
        "subject": "Default",
        "body": "Body",
        "cc": ["cc@example.com"],
        "bcc": [EVE],
        "reply_to": ["help@example.com"],
        "envelope_sender": BOB,
        "extra_headers": {"X-Default": "yes", "X-Own": "default"},
        "alternatives": [("<p>Body", "text/html")],
        "attachments": [("a.txt", "text", "text/plain")],
        "esp_extra": {"route": "news"},
    }
    mail = message(kind, cc=["own@example.com"], headers={"x-own": "own"})
    made = envelope(mail, send_defaults=defaults)
    found = parsed(made.content)
    assert made.mail_from == BOB
    assert made.recipients == (ANN, "cc@example.com", "own@example.com", EVE)
    assert found["Subject"] == "Hi"
    assert found["Cc"] == "cc@example.com, own@example.com"
    assert found["Reply-To"] == "help@example.com"
    assert found["X-Default"] == "yes"
    assert header_lines(made.content, "x-own") == [b"x-own: own"]
    assert found["X-Lettermint-Route"] == "news"
    assert [part.get_content_type() for part in found.walk()] == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "text/plain",
    ]


@pytest.mark.parametrize(
    ("for_all", "ours", "own", "tag"),
    [
        ({"tags": ["site"], "esp_extra": {"tag": "site"}}, {"tag": "ours"}, {}, "ours"),
        ({"tags": ["site"]}, {"tag": "ours"}, {"tag": "own"}, "own"),
        ({"tags": ["one", "two"]}, {"tag": None}, {}, None),
        ({"tags": ["site"]}, {}, {"tags": ["own"]}, "own"),
    ],
)
def test_defaults_for_lettermint_replace_those_for_all_of_anymail(
    for_all: Any, ours: Any, own: Any, tag: str | None
) -> None:
    settings = {"SEND_DEFAULTS": for_all, "LETTERMINT_SEND_DEFAULTS": ours}
    mail = message()
    vars(mail).update(own)
    with override_settings(ANYMAIL=settings):
        assert reading(mail).tag == tag


def test_a_default_alternative_needs_a_message_that_can_have_one() -> None:
    mail = message(EmailMessage)
    with pytest.raises(AnymailUnsupportedFeature, match="alternatives"):
        envelope(mail, send_defaults={"alternatives": [("<p>", "text/html")]})
    assert envelope(mail, send_defaults={"alternatives": []}).content


# -- One envelope for each recipient --------------------------------------------------------


def batch(**keywords: Any) -> list[Envelope]:
    return envelopes(
        message(AnymailMessage, **{"to": [f"Ann <{ANN}>", BOB]} | keywords)
    )


def test_merge_metadata_makes_a_message_for_each_recipient() -> None:
    ann, bob = batch(
        metadata={"all": "1", "n": "0"},
        merge_metadata={ANN: {"n": "1"}, BOB: {"n": "2"}},
        cc=["cc@example.com"],
        attachments=[("a.bin", b"1" * 9, "x/y")],
    )
    assert ann.recipients == (ANN, "cc@example.com")
    assert bob.recipients == (BOB, "cc@example.com")
    assert header_lines(ann.content, "to") == [b"To: Ann <ann@example.com>"]
    assert header_lines(bob.content, "to") == [b"To: bob@example.com"]
    for each, n in ((ann, "1"), (bob, "2")):
        metadata = dict(parse_headers(each.content).metadata)
        assert metadata.pop("django_message_id") == each.message_id
        assert metadata == {"all": "1", "n": n}
    assert ann.idempotency_key != bob.idempotency_key
    assert ann.message_id != bob.message_id
    assert ann.body is bob.body


def test_merge_headers_are_each_recipients_own() -> None:
    own = {"x-a": "ann", "Reply-To": "nø@example.com", "X-LM-Tag": "ann"}
    ann, bob = envelopes(
        message(to=[ANN, BOB], headers={"X-A": "all", "X-B": "all"}, tag="all"),
        send_defaults={"merge_headers": {ANN: own}},
    )
    assert header_lines(ann.content, "x-a") == [b"x-a: ann"]
    assert header_lines(bob.content, "x-a") == [b"X-A: all"]
    assert header_lines(ann.content, "x-b") == [b"X-B: all"]
    assert not header_lines(bob.content, "reply-to")
    assert parse_headers(ann.content).tag == "ann"
    assert parse_headers(bob.content).tag == "all"
    assert (ann.smtputf8, bob.smtputf8) == (True, False)


def test_only_the_recipient_who_needs_smtputf8_asks_for_it() -> None:
    ann, bob = batch(to=["nø@example.com", BOB], merge_metadata={})
    assert (ann.smtputf8, bob.smtputf8) == (True, False)


def test_each_transaction_of_a_message_has_a_key_of_its_own_each_time() -> None:
    # Bob gets a copy of his own, and one of Ann's.
    cc = [BOB, EVE, *(f"{n}@example.com" for n in range(60))]
    first, second = (batch(merge_metadata={}, cc=cc, esp_extra=KEY) for _ in range(2))
    further = [each.part(2, [BOB]) for each in first]
    keys = [each.idempotency_key for each in [*first, *further]]
    assert keys[0] == "k"
    assert len(set(keys)) == len(keys) == 8
    assert [each.idempotency_key for each in first] == [
        each.idempotency_key for each in second
    ]


def test_merge_headers_may_hold_keys() -> None:
    keys = {ANN: {"Idempotency-Key": "ann"}, BOB: {"Idempotency-Key": "bob"}}
    found = [each.idempotency_key for each in batch(merge_headers=keys)]
    assert found == ["ann", "bob"]


@pytest.mark.parametrize(
    ("own", "rule"),
    [
        (
            {ANN: {"Idempotency-Key": "a"}, BOB: {"Idempotency-Key": "a"}},
            "two recipients",
        ),
        ({BOB: {"Idempotency-Key": "k"}}, "two recipients have the same"),
        ({ANN: {"Bcc": EVE}}, "header 'Bcc'"),
        ({BOB: {"X-LM-Tag": "a.b"}}, "tag: "),
        ({BOB: {"Reply-To": "nobody"}}, "user@domain"),
        ({BOB: {"X-A": "a" * 1000}}, "over 998 octets"),
    ],
)
def test_what_is_wrong_for_one_recipient_is_found_before_any_is_sent_to(
    own: dict[str, Any], rule: str
) -> None:
    with pytest.raises(LettermintInvalidMessage, match=rule):
        batch(merge_headers=own, esp_extra=KEY)


@pytest.mark.parametrize(
    "keywords",
    [
        {"to": [ANN, f"Ann <{ANN}>"], "merge_metadata": {}},
        {"to": [], "cc": [ANN, BOB], "merge_metadata": {}},
        {"merge_metadata": None},
        {"merge_headers": None},
    ],
)
def test_one_recipient_or_no_merging_is_one_message(keywords: dict[str, Any]) -> None:
    assert len(batch(**keywords)) == 1


@pytest.mark.parametrize("name", ["merge_metadata", "merge_headers"])
@pytest.mark.parametrize("value", [["a"], ANN, {ANN: None}])
def test_merging_takes_a_mapping_for_each_recipient(name: str, value: object) -> None:
    rule = f"^{name}: .* use a mapping of addresses to mappings"
    with pytest.raises(LettermintInvalidMessage, match=rule):
        batch(**{name: value})
    with pytest.raises(LettermintInvalidMessage, match=rule):
        prepared(message(), send_defaults={name: {ANN: 5}})


# -- What Lettermint cannot do --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "envelopes_made"),
    [
        ("send_at", 1_900_000_000, 1),
        ("track_clicks", True, 1),
        ("track_opens", False, 1),
        ("template_id", "welcome", 1),
        # Recipients stay hidden from each other.
        ("merge_data", {ANN: {"a": 1}}, 2),
        ("merge_global_data", {"a": 1}, 1),
        ("tags", ["one", "two"], 1),
        ("esp_extra", {"surprise": 1}, 1),
    ],
)
def test_what_lettermint_cannot_do_is_refused_or_left_out(
    name: str, value: object, envelopes_made: int
) -> None:
    mail = message(AnymailMessage, to=[ANN, BOB], **{name: value})
    with pytest.raises(AnymailUnsupportedFeature) as caught:
        envelopes(mail)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again).startswith("Lettermint does not support ")
    made = envelopes(mail, ignore_unsupported_features=True)
    assert len(made) == envelopes_made
    assert parse_headers(made[0].content).tag == ("one" if name == "tags" else None)


# -- The message itself ----------------------------------------------------------------------


def test_the_callers_message_stays_as_it_was() -> None:
    mail = message(
        from_email="Shop <shop@straße.de>",
        bcc=["bcc@example.com"],
        headers={"X-LM-Tag": "tag", "from": "other@example.com", "X-A": "b"},
        attachments=[("a.txt", "text", "text/plain")],
        alternatives=[("<p>", "text/html")],
        metadata={"a": 1},
    )
    del mail.anymail_status  # which sending sets, and which is equal to itself alone
    before = deepcopy(vars(mail))
    defaults = {"cc": ["d@example.com"], "attachments": [("b.txt", "b", "text/plain")]}
    envelope(mail, send_defaults=defaults)
    assert vars(mail) == before


@pytest.mark.parametrize(
    "name",
    [
        *("from_email", "subject", "body", "to", "cc", "bcc", "reply_to"),
        *("attachments", "alternatives", "extra_headers"),
        *("route", "tag", "metadata", "idempotency_key", "tags", "esp_extra"),
        *("merge_metadata", "merge_headers", "envelope_sender", "send_at"),
    ],
)
def test_nothing_is_left_out_because_a_property_has_no_attribute(name: str) -> None:
    class Invoice(LettermintMessage):
        order: Any = None

    mail = message()
    setattr(Invoice, name, property(lambda self: self.order.title))
    mail.__class__ = Invoice
    with pytest.raises(AttributeError, match="no attribute 'title'"):
        prepared(mail)
