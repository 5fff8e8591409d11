"""What a message, its defaults and its surroundings add up to."""

from __future__ import annotations

import pickle
from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest
from anymail.exceptions import AnymailUnsupportedFeature
from anymail.message import AnymailMessage
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.test import override_settings
from django.utils.translation import gettext_lazy

from django_lettermint.envelope import MAX_SIZE, Envelope
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.message import LettermintMessage, extras
from django_lettermint.testing.parsed_headers import ParsedHeaders, parse_headers
from tests.preparing import envelope, envelopes, header_lines, parsed, prepared

TO = ["ann@example.com"]
EXTRA = {"idempotency_key": "k"}


def message(**keywords: Any) -> LettermintMessage:
    defaults = {"subject": "Hi", "body": "Hello", "from_email": "shop@example.com"}
    return LettermintMessage(**{**defaults, "to": TO, **keywords})


def anymail_message(**keywords: Any) -> AnymailMessage:
    defaults = {"subject": "Hi", "body": "Hello", "from_email": "shop@example.com"}
    return AnymailMessage(**{**defaults, "to": TO, **keywords})


def reading(mail: EmailMessage, **options: Any) -> ParsedHeaders:
    """Return what a relay reads, without our own id."""
    found = parse_headers(
        envelope(mail, **({"correlation_key": None} | options)).content
    )
    assert found.idempotency_key is None
    return found


# -- Where extras come from ----------------------------------------------------------


def test_attributes_become_lettermints_headers() -> None:
    mail = message(route="news", tag="spring sale", metadata={"order_id": 7})
    content = envelope(mail, correlation_key=None).content
    assert content.startswith(
        b"X-Lettermint-Route: news\r\nX-LM-Tag: spring sale\r\n"
        b"X-LM-Metadata-order_id: 7\r\n"
    )


def test_attributes_of_any_message_are_read() -> None:
    mail = EmailMessage("Hi", "Hello", "shop@example.com", TO)
    mail.tag = "plain"  # type: ignore[attr-defined]
    assert reading(mail).tag == "plain"


def test_anymails_names_are_read() -> None:
    mail = anymail_message(
        tags=["one"], metadata={"a": Decimal("1.50")}, esp_extra={"route": "news"}
    )
    assert reading(mail) == ParsedHeaders(
        route="news", tag="one", metadata={"a": "1.50"}
    )


LAYERS: dict[str, Any] = {
    "send default": lambda value: {"send_defaults": {"tag": value, "route": value}},
    "default header": lambda value: {
        "send_defaults": {
            "extra_headers": {"X-LM-Tag": value, "X-Lettermint-Route": value}
        }
    },
    "block": lambda value: {"block": {"tag": value, "route": value}},
    "header": lambda value: {
        "headers": {"x-lm-tag": value, "X-LETTERMINT-ROUTE": value}
    },
    "attribute": lambda value: {"tag": value, "route": value},
}


def send_with(layers: dict[str, str]) -> ParsedHeaders:
    keywords: dict[str, Any] = {}
    for layer, value in layers.items():
        for name, given in LAYERS[layer](value).items():
            old = keywords.get(name)
            keywords[name] = old | given if isinstance(given, dict) and old else given
    with extras(**keywords.pop("block", {})):
        send_defaults = keywords.pop("send_defaults", {})
        return reading(message(**keywords), send_defaults=send_defaults)


@pytest.mark.parametrize("highest", range(1, len(LAYERS) + 1))
def test_the_nearer_source_wins(highest: int) -> None:
    names = list(LAYERS)[:highest]
    layers = {name: name.replace(" ", "-") for name in names}
    found = send_with(layers)
    assert found.tag == found.route == layers[names[-1]]


def test_metadata_merges_key_by_key_through_all_sources() -> None:
    mail = message(
        headers={"X-LM-Metadata-c": "header", "X-Metadata-d": "header"},
        metadata={"d": "attribute"},
    )
    defaults = {
        "metadata": {"a": "default", "b": "default"},
        "extra_headers": {"X-LM-Metadata-b": "default header"},
    }
    with extras(metadata={"b": "block", "c": "block"}):
        found = reading(mail, send_defaults=defaults)
    assert found.metadata == {
        "a": "default",
        "b": "block",
        "c": "header",
        "d": "attribute",
    }


@pytest.mark.parametrize("field", ["route", "tag", "metadata"])
def test_none_on_a_message_hides_all_below(field: str) -> None:
    values: dict[str, Any] = {"route": "r", "tag": "t", "metadata": {"a": "b"}}
    below = {field: values[field]}
    with extras(**below):
        found = reading(message(**{field: None}), send_defaults=below)
    assert found == ParsedHeaders()


def test_the_settings_default_tag_is_replaced_not_added_to() -> None:
    mail = anymail_message(tags=["own"])
    assert reading(mail, send_defaults={"tags": ["default"]}).tag == "own"


def test_metadata_keys_keep_their_case() -> None:
    mail = message(headers={"X-LM-Metadata-UserID": "1", "X-LM-Metadata-userid": "2"})
    assert reading(mail).metadata == {"UserID": "1", "userid": "2"}


def test_lettermints_raw_headers_are_not_written_twice() -> None:
    mail = message(headers={"X-LM-Tag": "one", "Idempotency-Key": "k"})
    made = envelope(mail)
    assert header_lines(made.data, "x-lm-tag") == [b"X-LM-Tag: one"]
    assert header_lines(made.data, "idempotency-key") == [b"Idempotency-Key: k"]


LONG = "x" * 600


@pytest.mark.parametrize(
    ("keywords", "line"),
    [
        ({"tag": "t" * 255}, b"X-LM-Tag: " + b"t" * 255),
        ({"metadata": {"a": LONG}}, b"X-LM-Metadata-a: " + LONG.encode()),
        ({"metadata": {"order_id": "1"}}, b"X-LM-Metadata-order_id: 1"),
        ({"metadata": {"UserID": "1"}}, b"X-LM-Metadata-UserID: 1"),
    ],
)
def test_our_headers_are_exact_to_the_byte(
    keywords: dict[str, Any], line: bytes
) -> None:
    content = envelope(message(**keywords), correlation_key=None).content
    assert content.startswith(line + b"\r\n")


def test_values_outside_of_ascii_arrive_as_given() -> None:
    metadata = {"city": "Zürich", "mixed": "naïve =?x?= 東京" * 20}
    mail = message(metadata=metadata)
    assert reading(mail).metadata == metadata


# -- Our id and key --------------------------------------------------------------------


def test_our_id_goes_into_the_metadata() -> None:
    made = envelope(message())
    assert parse_headers(made.content).metadata == {
        "django_message_id": made.message_id
    }


def test_the_id_can_have_another_name_or_none() -> None:
    made = envelope(message(), correlation_key="our-id")
    assert parse_headers(made.content).metadata == {"our-id": made.message_id}
    without = envelope(message(), correlation_key=None)
    assert without.message_id
    assert not parse_headers(without.content).metadata


def test_an_id_given_as_metadata_is_taken() -> None:
    made = envelope(message(metadata={"django_message_id": "mine"}))
    assert made.message_id == "mine"
    assert parse_headers(made.content).metadata == {"django_message_id": "mine"}


def test_an_id_given_as_metadata_is_no_key() -> None:
    mail = message(metadata={"django_message_id": "mine"})
    keys = {envelope(mail).idempotency_key for _ in range(2)}
    assert len(keys) == 2
    assert "mine" not in keys


def test_a_key_of_the_callers_gives_the_same_id_each_time() -> None:
    first, second = (envelope(message(idempotency_key="order-1")) for _ in range(2))
    assert first.idempotency_key == second.idempotency_key == "order-1"
    assert first.message_id == second.message_id
    assert prepared(message(idempotency_key="order-1")).has_caller_key


def test_each_message_gets_a_key_and_an_id_of_its_own() -> None:
    first, second = envelope(message()), envelope(message())
    assert first.idempotency_key != second.idempotency_key
    assert first.message_id != second.message_id
    assert not prepared(message()).has_caller_key


def test_without_idempotency_only_a_callers_key_is_written() -> None:
    assert envelope(message(), idempotency=False).idempotency_key is None
    given = envelope(message(idempotency_key="k"), idempotency=False)
    assert given.idempotency_key == "k"


# -- Headers and addresses ---------------------------------------------------------------


def test_blind_recipients_stand_in_no_header() -> None:
    mail = message(cc=["bob@example.com"], bcc=["eve@example.com"])
    made = envelope(mail)
    assert made.recipients == ("ann@example.com", "bob@example.com", "eve@example.com")
    assert b"eve" not in made.data
    assert b"\nbcc:" not in made.data.lower()


def test_an_address_named_twice_is_sent_once() -> None:
    made = envelope(message(cc=TO, bcc=["Ann <ann@example.com>"]))
    assert made.recipients == ("ann@example.com",)


@pytest.mark.parametrize(
    ("to", "cc"),
    [
        (["you@mail.example"], ["you@Mail.Example"]),
        (["You <you@MAIL.example>", "you@mail.EXAMPLE"], []),
        (["you@größe.example"], ["you@Größe.example"]),
    ],
)
def test_addresses_that_differ_in_the_domains_case_are_sent_once(
    to: list[str], cc: list[str]
) -> None:
    assert len(envelope(message(to=to, cc=cc)).recipients) == 1


def test_local_parts_keep_their_case() -> None:
    to = ["You@mail.example", "you@mail.example"]
    assert envelope(message(to=to)).recipients == tuple(to)


def test_what_the_caller_wrote_is_found_by_its_form_on_the_wire() -> None:
    made = prepared(message(to=["Ann <ann@straße.de>"]))
    assert made.original_addresses == {"ann@xn--strae-oqa.de": "ann@straße.de"}


def test_the_envelope_sender_is_not_in_the_header() -> None:
    made = envelope(anymail_message(envelope_sender="bounces@example.com"))
    assert made.mail_from == "bounces@example.com"
    assert parsed(made.content)["From"] == "shop@example.com"


def test_a_from_header_leaves_the_sender_on_the_wire() -> None:
    made = envelope(message(headers={"from": "Other <other@example.com>"}))
    assert made.mail_from == "shop@example.com"
    assert header_lines(made.content, "from") == [b"From: Other <other@example.com>"]


def test_a_to_header_leaves_the_recipients_on_the_wire() -> None:
    made = envelope(message(headers={"to": "undisclosed-recipients:;"}))
    assert made.recipients == ("ann@example.com",)
    assert header_lines(made.content, "to") == [b"To: undisclosed-recipients:;"]


@pytest.mark.parametrize("value", [None, "", "shop", "a@example.com, b@example.com"])
def test_a_message_needs_one_sender(value: str | None) -> None:
    mail = message()
    mail.from_email = value  # type: ignore[assignment]
    with pytest.raises(LettermintInvalidMessage, match=r"^from_email: "):
        envelope(mail)


@pytest.mark.parametrize("value", ["shop", "a@example.com\r\nX: y", 5])
def test_an_envelope_sender_is_an_address(value: object) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^envelope_sender: "):
        envelope(anymail_message(envelope_sender=value))


@pytest.mark.parametrize("value", ["", "<>", " <> "])
def test_an_automatic_reply_has_an_empty_envelope_sender(value: str) -> None:
    made = envelope(anymail_message(envelope_sender=value))
    assert made.mail_from == ""
    assert parsed(made.content)["From"] == "shop@example.com"


def test_none_is_no_envelope_sender() -> None:
    mail = message()
    mail.envelope_sender = None  # type: ignore[attr-defined]
    defaults = {"envelope_sender": "bounces@example.com"}
    assert envelope(mail).mail_from == "shop@example.com"
    assert envelope(mail, send_defaults=defaults).mail_from == "shop@example.com"


@pytest.mark.parametrize("field", ["to", "cc", "bcc", "reply_to"])
def test_a_hostile_address_is_refused_by_the_name_of_its_field(field: str) -> None:
    mail = message(**{field: ["a@example.com\r\nBcc: eve@example.com"]})
    with pytest.raises(LettermintInvalidMessage, match=rf"^{field}: .* line break"):
        envelope(mail)


@pytest.mark.parametrize("field", ["from_email", "to", "cc", "reply_to"])
def test_an_address_that_others_would_read_differently_is_refused(field: str) -> None:
    address = "Acme, News <news@acme.example>"
    mail = message(**{field: address if field == "from_email" else [address]})
    with pytest.raises(LettermintInvalidMessage, match=rf"^{field}: .* double quotes"):
        envelope(mail)


def test_a_message_needs_a_recipient() -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^to: a message needs to, cc"):
        envelope(message(to=[""]))


@pytest.mark.parametrize("field", ["to", "cc", "bcc", "reply_to"])
@pytest.mark.parametrize(
    "value", ["ann@example.com", gettext_lazy("ann@example.com"), b"octets", 5]
)
def test_recipients_that_are_no_list_are_refused(field: str, value: object) -> None:
    mail = message()
    setattr(mail, field, value)
    with pytest.raises(LettermintInvalidMessage, match=rf"^{field}: .* use a list"):
        envelope(mail)


@pytest.mark.parametrize("kind", [tuple, iter, set])
def test_recipients_may_come_from_any_iterable(kind: Any) -> None:
    mail = message()
    mail.to = kind(["ann@example.com"])
    assert envelope(mail).recipients == ("ann@example.com",)


def test_headers_that_are_no_mapping_are_refused() -> None:
    mail = message()
    mail.extra_headers = [("X-A", "b")]  # type: ignore[assignment]
    with pytest.raises(LettermintInvalidMessage, match=r"^extra_headers: .* a mapping"):
        envelope(mail)


def test_a_hostile_subject_is_refused() -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^subject: .* line break"):
        envelope(message(subject="Hi\r\nBcc: eve@example.com"))


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"X-A\r\nX-Evil": "1"}, "header name"),
        ({"X A": "1"}, "header name"),
        ({"X-A": "1\r\nX-Evil: 1"}, "header 'X-A'"),
        ({"X-A": "1\0"}, "header 'X-A'"),
        ({"Bcc": "eve@example.com"}, "header 'Bcc'"),
        ({"X-LM-Tag": "a\nb"}, "X-LM-Tag"),
        ({"X-LM-Metadata-a b": "1"}, "header name"),
    ],
)
def test_hostile_headers_are_refused(headers: dict[str, str], text: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=text):
        envelope(message(headers=headers))


def test_none_is_an_empty_subject_and_body() -> None:
    mail = message()
    mail.subject = mail.body = None  # type: ignore[assignment]
    assert parsed(envelope(mail).content)["Subject"] == ""


def test_lazy_text_is_taken_everywhere() -> None:
    mail = message(
        subject=gettext_lazy("Hi"),
        body=gettext_lazy("Hello"),
        to=[gettext_lazy("ann@example.com")],
        headers={"X-A": gettext_lazy("b")},
        tag=gettext_lazy("tag"),
        metadata={"a": gettext_lazy("b")},
    )
    found = parsed(envelope(mail).content)
    assert [found["Subject"], found["X-A"], found["X-LM-Tag"]] == ["Hi", "b", "tag"]


# -- Send defaults -----------------------------------------------------------------------


def test_every_other_default_holds_too() -> None:
    mail = LettermintMessage("own", "own", "shop@example.com", TO)
    defaults = {
        "subject": "Default",
        "body": "Body",
        "cc": ["cc@example.com"],
        "bcc": ["bcc@example.com"],
        "reply_to": ["help@example.com"],
        "envelope_sender": "bounces@example.com",
        "extra_headers": {"X-Default": "yes"},
        "alternatives": [("<p>Body", "text/html")],
        "attachments": [("a.txt", "text", "text/plain")],
        "esp_extra": {"route": "news"},
    }
    made = envelope(mail, send_defaults=defaults)
    found = parsed(made.content)
    assert made.mail_from == "bounces@example.com"
    assert made.recipients == ("ann@example.com", "cc@example.com", "bcc@example.com")
    assert found["Subject"] == "own"
    assert found["Cc"] == "cc@example.com"
    assert found["Reply-To"] == "help@example.com"
    assert found["X-Default"] == "yes"
    assert found["X-Lettermint-Route"] == "news"
    assert [part.get_content_type() for part in found.walk()] == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "text/plain",
    ]


@override_settings(
    ANYMAIL={
        "SEND_DEFAULTS": {"tags": ["site"], "esp_extra": {"route": "site"}},
        "LETTERMINT_SEND_DEFAULTS": {"tag": "ours", "route": "ours"},
    }
)
def test_defaults_for_lettermint_replace_those_for_all_of_anymail() -> None:
    assert reading(message()) == ParsedHeaders(route="ours", tag="ours")
    assert reading(message(tag="own", route="own")) == ParsedHeaders(
        route="own", tag="own"
    )


@override_settings(
    ANYMAIL={
        "SEND_DEFAULTS": {"tags": ["one", "two"]},
        "LETTERMINT_SEND_DEFAULTS": {"tag": None},
    }
)
def test_a_default_tag_of_none_replaces_tags_that_lettermint_does_not_support() -> None:
    assert reading(message()).tag is None


def test_a_message_adds_to_default_lists() -> None:
    mail = message(cc=["own@example.com"])
    made = envelope(mail, send_defaults={"cc": ["cc@example.com"]})
    assert parsed(made.content)["Cc"] == "cc@example.com, own@example.com"


def test_a_messages_header_replaces_a_default_one_in_any_case() -> None:
    mail = message(headers={"x-default": "own"})
    made = envelope(mail, send_defaults={"extra_headers": {"X-Default": "default"}})
    assert header_lines(made.content, "x-default") == [b"x-default: own"]


def test_a_default_alternative_needs_a_message_that_can_have_one() -> None:
    mail = EmailMessage("Hi", "Hello", "shop@example.com", TO)
    defaults = {"alternatives": [("<p>", "text/html")]}
    with pytest.raises(AnymailUnsupportedFeature, match="alternatives"):
        envelope(mail, send_defaults=defaults)
    assert envelope(mail, send_defaults={"alternatives": []}).content


# -- One envelope for each recipient -------------------------------------------------------


def batch(**keywords: Any) -> list[Envelope]:
    keywords = {"to": ["Ann <ann@example.com>", "bob@example.com"]} | keywords
    return envelopes(anymail_message(**keywords))


def test_merge_metadata_makes_a_message_for_each_recipient() -> None:
    ann, bob = batch(
        metadata={"all": "1", "n": "0"},
        merge_metadata={"ann@example.com": {"n": "1"}, "bob@example.com": {"n": "2"}},
        cc=["cc@example.com"],
    )
    assert ann.recipients == ("ann@example.com", "cc@example.com")
    assert bob.recipients == ("bob@example.com", "cc@example.com")
    assert header_lines(ann.content, "to") == [b"To: Ann <ann@example.com>"]
    assert header_lines(bob.content, "to") == [b"To: bob@example.com"]
    for each, n in ((ann, "1"), (bob, "2")):
        metadata = dict(parse_headers(each.content).metadata)
        assert metadata.pop("django_message_id") == each.message_id
        assert metadata == {"all": "1", "n": n}
    assert ann.idempotency_key != bob.idempotency_key
    assert ann.message_id != bob.message_id


def test_merge_headers_are_each_recipients_own() -> None:
    ann, bob = batch(
        headers={"X-A": "all", "X-B": "all"},
        merge_headers={
            "ann@example.com": {"x-a": "ann", "List-Unsubscribe": "<https://a.example>"}
        },
    )
    assert header_lines(ann.content, "x-a") == [b"x-a: ann"]
    assert header_lines(ann.content, "x-b") == [b"X-B: all"]
    assert header_lines(ann.content, "list-unsubscribe")
    assert header_lines(bob.content, "x-a") == [b"X-A: all"]
    assert not header_lines(bob.content, "list-unsubscribe")


def test_merge_headers_may_hold_lettermints() -> None:
    ann, bob = batch(
        tags=["all"],
        merge_headers={
            "ann@example.com": {"X-LM-Tag": "ann", "Idempotency-Key": "ann-key"},
            "bob@example.com": {"Idempotency-Key": "bob-key"},
        },
    )
    assert (parse_headers(ann.content).tag, parse_headers(bob.content).tag) == (
        "ann",
        "all",
    )
    assert (ann.idempotency_key, bob.idempotency_key) == ("ann-key", "bob-key")


def test_merge_headers_cannot_show_blind_recipients() -> None:
    with pytest.raises(LettermintInvalidMessage, match="header 'Bcc'"):
        batch(merge_headers={"ann@example.com": {"Bcc": "eve@example.com"}})


def test_each_transaction_of_a_message_has_a_key_of_its_own() -> None:
    cc = [f"{n}@example.com" for n in range(60)]
    envelopes = batch(merge_metadata={}, cc=cc, esp_extra={"idempotency_key": "k"})
    parts = [part for each in envelopes for part in each.parts()]
    keys = [part.idempotency_key for part in parts]
    assert keys[0] == "k"
    assert len(set(keys)) == len(keys) == 4


def test_the_keys_of_copies_are_the_same_each_time() -> None:
    first, second = (
        [each.idempotency_key for each in batch(merge_metadata={}, esp_extra=EXTRA)]
        for _ in range(2)
    )
    assert first == second


def test_a_part_of_one_copy_never_has_the_key_of_another_copy() -> None:
    # Bob gets a copy of his own, and one of Ann's.
    ann, bob = batch(
        merge_metadata={}, cc=["bob@example.com", "eve@example.com"], esp_extra=EXTRA
    )
    keys = {
        each.part(number, recipients).idempotency_key
        for each in (ann, bob)
        for number in (2, 3)
        for recipients in (["bob@example.com"], ["bob@example.com", "eve@example.com"])
    }
    assert len(keys) == 4
    assert keys.isdisjoint({ann.idempotency_key, bob.idempotency_key})


def test_copies_share_the_octets_of_the_body() -> None:
    ann, bob = batch(merge_metadata={"ann@example.com": {"n": 1}})
    assert ann.body is bob.body
    assert ann.header != bob.header


@pytest.mark.parametrize("bobs", ["own", "k"])
def test_recipients_with_the_same_key_are_refused(bobs: str) -> None:
    own = {
        "ann@example.com": {"Idempotency-Key": "own"} if bobs == "own" else {},
        "bob@example.com": {"Idempotency-Key": bobs},
    }
    with pytest.raises(LettermintInvalidMessage, match="two recipients have the same"):
        batch(merge_headers=own, esp_extra=EXTRA)


@pytest.mark.parametrize(
    "own",
    [
        {"X-LM-Tag": "a.b"},
        {"X-A": "a\nb"},
        {"Reply-To": "nobody"},
        {"List-Unsubscribe": "<https://ä.example>"},
        {"X-A": "a" * 1000},
    ],
)
def test_what_is_wrong_for_the_last_recipient_is_found_before_the_first_is_sent(
    own: dict[str, str],
) -> None:
    with pytest.raises(LettermintInvalidMessage):
        batch(merge_headers={"bob@example.com": own})


def test_copies_share_one_body() -> None:
    ann, bob = batch(merge_metadata={}, attachments=[("a.bin", b"1" * 9, "x/y")])
    assert (
        ann.content.partition(b"\r\n\r\n")[2] == bob.content.partition(b"\r\n\r\n")[2]
    )


def test_the_same_recipient_twice_gets_one_message() -> None:
    to = ["ann@example.com", "Ann <ann@example.com>"]
    assert len(batch(to=to, merge_metadata={})) == 1


def test_without_to_the_others_get_one_message() -> None:
    [only] = batch(to=[], cc=["cc@example.com"], merge_metadata={})
    assert only.recipients == ("cc@example.com",)


def test_only_the_recipient_who_needs_smtputf8_asks_for_it() -> None:
    ann, bob = batch(to=["nø@example.com", "bob@example.com"], merge_metadata={})
    assert (ann.smtputf8, bob.smtputf8) == (True, False)


def test_a_header_of_one_recipient_asks_smtputf8_for_nobody_else() -> None:
    own = {"ann@example.com": {"Reply-To": "nø@example.com"}}
    ann, bob = batch(merge_headers=own)
    assert (ann.smtputf8, bob.smtputf8) == (True, False)


@pytest.mark.parametrize("name", ["merge_metadata", "merge_headers"])
def test_none_is_no_merging(name: str) -> None:
    assert len(batch(**{name: None})) == 1


@pytest.mark.parametrize("name", ["merge_metadata", "merge_headers"])
@pytest.mark.parametrize(
    "value", [["a"], "ann@example.com", 5, {"ann@example.com": None}, {"a": ["b"]}]
)
def test_merging_takes_a_mapping_for_each_recipient(name: str, value: object) -> None:
    rule = f"^{name}: .* use a mapping of addresses to mappings"
    with pytest.raises(LettermintInvalidMessage, match=rule):
        batch(**{name: value})
    with pytest.raises(LettermintInvalidMessage, match=rule):
        prepared(message(), send_defaults={name: {"ann@example.com": 5}})


def test_merging_can_be_a_default() -> None:
    mail = message(to=["ann@example.com", "bob@example.com"])
    defaults = {"merge_headers": {"ann@example.com": {"X-A": "1"}}}
    ann, bob = envelopes(mail, send_defaults=defaults)
    assert header_lines(ann.content, "x-a")
    assert not header_lines(bob.content, "x-a")


# -- What Lettermint cannot do -----------------------------------------------------------

UNSUPPORTED: dict[str, Any] = {
    "send_at": 1_900_000_000,
    "track_clicks": True,
    "track_opens": False,
    "template_id": "welcome",
    "merge_data": {"ann@example.com": {"a": 1}},
    "merge_global_data": {"a": 1},
    "tags": ["one", "two"],
    "esp_extra": {"surprise": 1},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_lettermint_cannot_do_is_refused(name: str) -> None:
    mail = anymail_message(**{name: UNSUPPORTED[name]})
    with pytest.raises(AnymailUnsupportedFeature, match="Lettermint does not support"):
        envelope(mail)


def test_the_refusal_can_be_pickled() -> None:
    with pytest.raises(AnymailUnsupportedFeature) as caught:
        envelope(anymail_message(template_id="welcome"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (
        str(again) == str(caught.value) == ("Lettermint does not support template_id")
    )


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_lettermint_cannot_do_is_left_out_on_demand(name: str) -> None:
    mail = anymail_message(**{name: UNSUPPORTED[name]})
    made = envelope(mail, ignore_unsupported_features=True)
    assert parse_headers(made.content).tag == ("one" if name == "tags" else None)


def test_merge_data_that_is_ignored_still_hides_recipients_from_each_other() -> None:
    mail = anymail_message(
        to=["ann@example.com", "bob@example.com"], merge_data={"ann@example.com": {}}
    )
    assert len(envelopes(mail, ignore_unsupported_features=True)) == 2


# -- The message itself --------------------------------------------------------------------


def test_the_callers_message_stays_as_it_was() -> None:
    mail = LettermintMessage(
        "Hi",
        "Hello",
        "Shop <shop@straße.de>",
        ["Ann <ann@straße.de>"],
        bcc=["bcc@example.com"],
        cc=["cc@example.com"],
        reply_to=["help@example.com"],
        headers={"X-LM-Tag": "tag", "from": "other@example.com", "X-A": "b"},
        attachments=[("a.txt", "text", "text/plain")],
        alternatives=[("<p>", "text/html")],
        metadata={"a": 1},
    )
    del mail.anymail_status  # which sending sets, and which is equal to itself alone
    before = deepcopy(vars(mail))
    defaults = {"cc": ["d@example.com"], "attachments": [("b.txt", "b", "text/plain")]}
    first = envelope(mail, send_defaults=defaults)
    assert vars(mail) == before
    second = envelope(mail, send_defaults=defaults)
    assert [line[:20] for line in first.content.splitlines()[1:6]] == [
        line[:20] for line in second.content.splitlines()[1:6]
    ]


def test_a_message_over_25_mb_is_refused() -> None:
    mail = message()
    mail.attach("a.bin", b"x" * (MAX_SIZE * 3 // 4), "application/octet-stream")
    with pytest.raises(LettermintInvalidMessage, match=r"octets, .*\(25 MB\)"):
        envelope(mail)


def test_alternatives_appended_as_plain_tuples_are_taken() -> None:
    mail = EmailMultiAlternatives("Hi", "Hello", "shop@example.com", TO)
    mail.alternatives.append(("<p>", "text/html"))
    assert b"text/html" in envelope(mail).content


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

    def title(self: Any) -> object:
        return self.order.title

    mail = message()
    setattr(Invoice, name, property(title))
    mail.__class__ = Invoice
    with pytest.raises(AttributeError, match="no attribute 'title'"):
        prepared(mail)
