"""Each header field is written as its kind asks for, or refused by its name."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from email.header import Header
from email.utils import formataddr
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from django.core.mail import EmailMessage
from django.core.mail.utils import DNS_NAME
from django.test import override_settings
from django.utils.translation import gettext_lazy

from tests.preparing import envelope

from .conformance import check
from .making import (
    field,
    fields,
    mail,
    refusal,
    unfolded,
    with_entry,
    written,
)
from .readers import by_compat32, by_default

# -- Verbatim ASCII ----------------------------------------------------------------------

VERBATIM = {
    "X-Signature": "sha256=" + "ab" * 40,
    "List-Id": "=?utf-8?q?Alle_L=C3=A4den?= <shops.lists.example>",
    "ARC-Seal": "i=1; a=rsa-sha256; cv=none; d=mail.example; b=" + "Zk" * 90,
    "X-MC-Metadata": '{"order": 7, "long": "' + "x" * 90 + '"}',
    "Archived-At": "<https://lists.example/" + "a" * 90 + ">",
    "Feedback-ID": "a:b:c:" + "d" * 80,
    "List-Unsubscribe": "<https://lists.example/" + "u" * 300 + ">",
    "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    "References": " ".join(f"<{'r' * 80}.{n}@mail.example>" for n in range(8)),
    "In-Reply-To": "<a@mail.example>",
    "X-Two": "two  blanks,\ta tab and  =?utf-8?q?a?= " + "word " * 30 + "end",
    "X-Ends": "  blanks at the ends  ",
    "X-Blank": " ",
    "X-Empty": "",
}


@pytest.mark.parametrize("name", VERBATIM)
def test_ascii_stays_as_it_is_and_folds_at_blanks_that_are_there(name: str) -> None:
    message = mail(headers={name: VERBATIM[name]})
    assert unfolded(message, name) == VERBATIM[name]
    assert not field(message, name).startswith("\r\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("List-Post", "<https://lists.example/" + "p" * 1000 + ">"),
        ("References", "<a@b.example> <" + "r" * 1000 + "@b.example>"),
        ("In-Reply-To", "<" + "r" * 1000 + "@b.example>"),
        ("Message-ID", "<" + "r" * 1000 + "@b.example>"),
        ("X-Token", "t" * 998),
        ("X-" + "n" * 990, "value"),
        ("To", "Team: " + "a" * 1000 + "@b.example;"),
    ],
)
def test_a_line_over_998_octets_is_refused(name: str, value: str) -> None:
    text = refusal(mail(headers={name: value}))
    assert text.startswith("header ")
    assert "998" in text or "254" in text


def test_a_line_of_998_octets_is_written() -> None:
    value = "t" * (998 - len("X-Token: "))
    assert field(mail(headers={"X-Token": value}), "X-Token") == value


# -- What programs read -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("List-Unsubscribe", "List-Post", "References", "In-Reply-To", "Archived-At"),
        *("DKIM-Signature", "ARC-Seal", "Autocrypt", "Feedback-ID", "Precedence"),
        *(
            "list-help",
            "Authentication-Results",
            "Auto-Submitted",
            "Original-Message-ID",
        ),
    ],
)
@pytest.mark.parametrize(
    "value", ["<https://größe.example/?a=é>", "a\x0bb", "x\u2028y"]
)
def test_machine_read_fields_outside_of_ascii_are_refused(
    name: str, value: str
) -> None:
    text = refusal(mail(headers={name: value}))
    assert text.startswith(f"header {name!r}: ")
    assert "percent-encode" in text
    assert "IDNA" in text


def test_they_are_refused_whatever_builds_the_message() -> None:
    class Own(EmailMessage):
        def message(self, **keywords: Any) -> Any:
            return super().message(**keywords)

    message = Own("Hello", "Text", "a@b.example", ["c@d.example"])
    message.extra_headers = {"List-Unsubscribe": "<https://shop.example/é>"}
    assert refusal(message).startswith("header 'List-Unsubscribe': ")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("Alle Läden <shops.lists.example>", "Alle Läden"),
        ('"Läden, alle" <shops.lists.example>', "Läden, alle"),
    ],
)
def test_the_phrase_of_a_list_is_encoded(value: str, name: str) -> None:
    message = mail(headers={"List-Id": value})
    check(written(message))
    found = unfolded(message, "List-Id")
    assert found.endswith(" <shops.lists.example>")
    [word] = found.removesuffix(" <shops.lists.example>").split()
    assert str(Header(word)).startswith("=?utf-8?")


@pytest.mark.parametrize("value", ["Läden", "<läden.example>", "Läden <a> <b>"])
def test_a_list_without_an_ascii_id_is_refused(value: str) -> None:
    assert refusal(mail(headers={"List-Id": value})).startswith("header 'List-Id': ")


@pytest.mark.parametrize("name", ["Message-ID", "message-id", "Resent-Message-ID"])
@pytest.mark.parametrize(
    "value",
    ["<ticket#12;step:3@shop.example>", "<[7]@x>", "<a..b@c>", "<(a)@b,c>", "<x>"],
)
def test_a_message_id_is_the_callers(name: str, value: str) -> None:
    assert fields(mail(headers={name: value}), name) == [value]


@pytest.mark.parametrize(
    "value",
    [
        *("ticket-12@shop.example", "<a b@c.example>", "<a@b.example", "a@b.example>"),
        *("<<a@b.example>>", "<a@b.example> <c@d.example>", "<é@b.example>", "<>", ""),
        *(" <a@b.example>", "<a\t@b.example>", "<a@b.example> (c)"),
    ],
)
def test_what_is_no_message_id_is_refused(value: str) -> None:
    text = refusal(mail(headers={"Message-ID": value}))
    assert text.startswith("header 'Message-ID': ")
    assert "<left@right>" in text


def test_a_message_id_has_the_domain_of_the_sender() -> None:
    message = mail(from_email="Desk <desk@größe.example>")
    found = {field(message, "Message-ID") for _ in range(2)}
    assert len(found) == 2
    assert all(each.endswith("@xn--gre-6ka8i.example>") for each in found)


def test_no_host_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any) -> str:
        raise AssertionError("a look-up has no limit in time")

    monkeypatch.setattr("socket.getfqdn", look_up)
    monkeypatch.setattr("socket.gethostbyaddr", look_up)
    monkeypatch.delattr(DNS_NAME, "_fqdn", raising=False)
    assert field(mail(), "Message-ID").endswith("@shop.example>")


@pytest.mark.parametrize("name", ["localhost", "web-1", "web-1.internal.example"])
def test_the_name_of_the_host_is_no_domain(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_lettermint.mime.compose.gethostname", lambda: "web-1")
    monkeypatch.setattr(DNS_NAME, "_fqdn", name, raising=False)
    assert field(mail(), "Message-ID").endswith("@shop.example>")


def test_djangos_name_holds_where_somebody_has_set_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DNS_NAME, "_fqdn", "mail.example", raising=False)
    assert field(mail(), "Message-ID").endswith("@mail.example>")


# -- Names and addresses -----------------------------------------------------------------

NAMES = [
    "Wholesale, Retail, Import, Export and everything else under one roof (Sales)",
    "Отдел продаж, " * 9 + "склад",
    *(
        "Ann Lee",
        "Dr. Ann",
        "O'Hara",
        "a@b.example",
        'the "boss"',
        "back\\slash",
        "(c)",
    ),
    *("=?utf-8?q?a?=", "=?", "Größe", "日本 語", "🎉" * 30, "a  b", " a ", "Tab\tbed"),
    *("x" * 70, "x" * 1200, "é" * 200, "word " * 60 + "end", "\x8e\x0b", "Jose <jr>"),
    *("a:b;c", "[x]", "Zo\u200dë", "\u202eevil", "1", "-", "Ann, Lee <a@b.example>"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["from_email", "to", "cc", "reply_to", "From", "Cc"])
def test_a_display_name_is_one_name_however_long(name: str, kind: str) -> None:
    quoted = name.replace("\\", r"\\").replace('"', r"\"")
    value = f'"{quoted}" <sales@mail.example>'
    if kind.islower():
        message = mail(**{kind: value if kind == "from_email" else [value]})
        header = {"from_email": "From", "reply_to": "Reply-To"}.get(kind, kind.title())
    else:
        message, header = mail(headers={kind: value}), kind
    content = written(message)
    check(content)
    assert by_compat32(content).addresses[header] == [(name, "sales@mail.example")]
    [(found, address)] = by_default(content).addresses[header]
    # Before 3.14, it adds a blank between encoded words.
    assert "".join(found.split()) == "".join(name.split())
    assert address == "sales@mail.example"


def test_a_name_as_pythons_formataddr_writes_it_is_that_name() -> None:
    for name in ("Отдел продаж, " * 9 + "склад", "Ann (Sales)", "Größe"):
        content = written(mail(to=[formataddr((name, "sales@mail.example"))]))
        assert by_compat32(content).addresses["To"] == [(name, "sales@mail.example")]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("Ann Lee <a@b.example>", "Ann Lee <a@b.example>"),
        ('"Ann Lee" <a@b.example>', "Ann Lee <a@b.example>"),
        ("Dr. Ann <a@b.example>", '"Dr. Ann" <a@b.example>'),
        ("Service {24h} [west] <a@b.example>", '"Service {24h} [west]" <a@b.example>'),
        ("a@b.example (West wing)", "West wing <a@b.example>"),
        ("Jörg <a@straße.example>", "=?utf-8?b?SsO2cmc=?= <a@xn--strae-oqa.example>"),
        ('"first..last"@b.example', '"first..last"@b.example'),
    ],
)
def test_an_address_is_written_in_the_plainest_form(given: str, line: str) -> None:
    assert field(mail(to=[given]), "To") == line


def test_many_recipients_are_folded_between_addresses() -> None:
    to = [f"recipient-number-{n}@mail.example" for n in range(100)]
    message = mail(to=to)
    check(written(message))
    assert unfolded(message, "To").split(", ") == to


def test_a_raw_address_header_that_is_none_is_refused() -> None:
    text = refusal(mail(headers={"From": "Retail, Import <desk@shop.example>"}))
    assert text.startswith("header 'From': ")
    assert "double quotes" in text


MORE_ADDRESSES = [
    *("Errors-To", "Disposition-Notification-To", "Return-Receipt-To", "Sender"),
    *("Mail-Followup-To", "Resent-From", "Resent-To", "Resent-Cc", "Resent-Sender"),
    *("Resent-Reply-To", "Reply-To", "To", "cc", "FROM"),
]


@pytest.mark.parametrize("name", MORE_ADDRESSES)
def test_more_headers_hold_addresses(name: str) -> None:
    value = "Réception <a@größe.example>, plain@b.example"
    message = mail(headers={name: value})
    check(written(message))
    assert unfolded(message, name) == (
        "=?utf-8?q?R=C3=A9ception?= <a@xn--gre-6ka8i.example>, plain@b.example"
    )
    assert refusal(mail(headers={name: "nobody"})).startswith("header ")


def test_an_empty_address_header_is_left_out() -> None:
    message = mail(headers={"Reply-To": "", "Cc": " "})
    assert fields(message, "Reply-To") == fields(message, "Cc") == []


@pytest.mark.parametrize("value", ["", " ", ","])
def test_an_empty_sender_is_refused(value: str) -> None:
    assert refusal(mail(headers={"From": value})).startswith("header 'From': ")


@pytest.mark.parametrize(
    "group",
    ["Team:;", "undisclosed-recipients:;", "Team: Ann <a@b.example>, c@d.example;"],
)
def test_a_group_in_ascii_goes_verbatim(group: str) -> None:
    assert field(mail(headers={"To": group}), "To") == group


@pytest.mark.parametrize(
    "group",
    ["Équipe: one@mail.example;", "Team: Zoë <a@b.example>;", "Team: a@ö.example;"],
)
def test_a_group_outside_of_ascii_is_refused(group: str) -> None:
    text = refusal(mail(headers={"To": group}))
    assert text.startswith("header 'To': ")
    assert "groups" in text


def test_a_group_of_what_is_no_address_is_refused() -> None:
    assert refusal(mail(headers={"To": "Team: nobody;"})).startswith("header 'To': ")


def test_a_local_part_that_needs_smtputf8_is_raw() -> None:
    made = envelope(mail(to=["Jörg <nø@mail.example>", "Größe <a@b.example>"]))
    assert made.smtputf8
    line = "To: Jörg <nø@mail.example>, =?utf-8?b?R3LDtsOfZQ==?= <a@b.example>\r\n"
    assert line.encode() in made.content


def test_a_name_beside_it_that_no_line_can_hold_is_encoded() -> None:
    made = envelope(mail(to=["é" * 700 + " <nø@mail.example>"]))
    assert b"To: =?utf-8?" in made.content


@pytest.mark.parametrize("name", ["a  b", '"x"', "=?utf-8?q?a?=", "\x0bü"])
def test_a_name_beside_it_that_readers_would_change_is_encoded(name: str) -> None:
    quoted = name.replace('"', r"\"")
    made = envelope(mail(to=[f'"{quoted}" <nø@mail.example>']))
    assert b"To: =?utf-8?" in made.content
    assert b" <n\xc3\xb8@mail.example>\r\n" in made.content


# -- Free text ----------------------------------------------------------------------------

SUBJECTS = [
    "es votre n° über déjà \u2013 30€ Größe »",
    "bientôt, 12 es es où mañana où = ok \u2013 \u2013",
    "Ваш заказ, который вы сделали вчера, уже отправлен",
    *(
        "caf\x8e menu",
        "a\tb",
        "\x0b",
        "\x1b[1m",
        "\x7f",
        "a\x85b",
        "a\u2028b",
        "\ufeffa",
    ),
    *(
        "=?utf-8?q?a?=",
        "a =?b",
        "=?",
        "?=",
        " leading",
        "trailing ",
        "two  blanks",
        " ",
    ),
    *(
        "",
        "x" * 66,
        "x" * 67,
        "x" * 1200,
        "word " * 60 + "end",
        "日本語" * 40,
        "🎉" * 50,
    ),
    *(
        "مرحبا بالعالم",
        "Ελληνικά κείμενο",
        "e\u0301" * 40,
        "👩‍👩‍👧" * 12,
        "a" * 60 + " ü",
    ),
]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_is_read_as_given(subject: str) -> None:
    content = written(mail(subject=subject))
    check(content)
    assert by_compat32(content).subject == by_default(content).subject == subject


@pytest.mark.parametrize("name", ["Comments", "Keywords", "X-Note", "Organization"])
@pytest.mark.parametrize("text", ["größe", "日本語 " * 20 + "é", "\x0bé", "a\x8eb"])
def test_other_free_text_is_encoded(name: str, text: str) -> None:
    message = mail(headers={name: text})
    check(written(message)) if name != "Organization" else None
    assert by_compat32(written(mail(headers={"X-Note": text}))).texts["x-note"] == text
    assert unfolded(message, name).startswith("=?utf-8?")


@pytest.mark.parametrize("length", [46, 50, 51, 54, 80, 900])
def test_a_long_name_leaves_room_for_its_text(length: int) -> None:
    name = "X-" + "n" * (length - 2)
    for text in ("größe " * 20, "世界 " + "x" * 80, "🎉" * 9, "🎉" + "x" * 80):
        content = written(mail(headers={name: text}))
        check(content)
        assert by_compat32(content).texts[name.lower()] == text
        assert by_default(content).texts[name.lower()] == text


def test_plain_words_are_not_encoded() -> None:
    assert field(mail(subject="Your order (no. 7) is ready!"), "Subject") == (
        "Your order (no. 7) is ready!"
    )


def test_a_charset_for_the_body_does_not_change_the_header() -> None:
    assert field(mail(subject="é", encoding="iso-8859-1"), "Subject").startswith(
        "=?utf-8?"
    )


@pytest.mark.parametrize("character", ["\r", "\n", "\r\n ", "\0", "\ud800"])
def test_line_breaks_are_refused_by_the_name_of_the_field(character: str) -> None:
    hostile = f"a{character}b"
    assert refusal(mail(subject=hostile)).startswith("subject: ")
    assert refusal(mail(headers={"X-A": hostile})).startswith("header 'X-A': ")
    assert refusal(mail(to=[f'"{hostile}" <a@b.example>'])).startswith("to: ")
    assert refusal(mail(from_email=f"{hostile}@b.example")).startswith("from_email: ")


# -- Values that are not text --------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("9.90"), "9.90"),
        (True, "true"),
        (7, "7"),
        (1.5, "1.5"),
        (date(2030, 1, 2), "2030-01-02"),
        (datetime(2030, 1, 2, 3, 4, tzinfo=UTC), "2030-01-02T03:04:00+00:00"),
        (gettext_lazy("text"), "text"),
        (Header("text"), "text"),
    ],
)
def test_values_that_are_not_text_are_written_as_metadata_is(
    value: Any, text: str
) -> None:
    assert field(mail(headers={"X-Due": value}), "X-Due") == text
    message = mail()
    message.merge_headers = {"you@mail.example": {"X-Due": value}}  # type: ignore[attr-defined]
    assert field(message, "X-Due") == text


def test_a_member_of_an_enumeration_of_texts_is_its_text() -> None:
    class Text(str, Enum):  # noqa: UP042 - str() of a StrEnum's member is its text
        SUBJECT = "Hello"
        TO = "Ann <ann@mail.example>"

    message = mail(subject=Text.SUBJECT, body=Text.SUBJECT, to=[Text.TO])
    assert field(message, "Subject") == "Hello"
    assert field(message, "To") == "Ann <ann@mail.example>"
    assert written(message).endswith(b"\r\n\r\nHello\r\n")


@pytest.mark.parametrize("value", [None, ["a"], {}, b"octets", object()])
def test_values_of_other_types_are_refused(value: object) -> None:
    assert refusal(mail(headers={"X-Y": value})).startswith("header 'X-Y': ")


def test_octets_are_no_subject_and_no_file_name() -> None:
    assert refusal(mail(subject=b"Hello")).startswith("subject: b'Hello'")
    entry = (b"a.pdf", b"1", "application/pdf")
    assert refusal(with_entry(entry)).startswith("attachment's name: b'a.pdf'")


@pytest.mark.parametrize("name", ["Date", "date", "Resent-Date", "Orig-Date"])
def test_a_datetime_is_written_as_mail_does(name: str) -> None:
    when = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    assert fields(mail(headers={name: when}), name) == [
        "Wed, 02 Jan 2030 03:04:05 +0200"
    ]


@pytest.mark.parametrize("name", ["Date", "date", "Resent-Date"])
@pytest.mark.parametrize(
    "value", ["xx", "", "2026-01-02", "1 Jan 99999999 10:00:00", "2 Jan 2026 é"]
)
def test_a_date_that_readers_would_not_understand_is_refused(
    name: str, value: str
) -> None:
    text = refusal(mail(headers={name: value}))
    assert text.startswith(f"header '{name}': ")
    assert "datetime" in text


@pytest.mark.parametrize(
    "value", ["Fri, 02 Jan 2026 03:04:05 +0000", "2 Jan 26 03:04 GMT (a comment)"]
)
def test_a_date_may_be_text(value: str) -> None:
    assert field(mail(headers={"Date": value}), "Date") == value


@pytest.mark.parametrize(("local", "zone"), [(True, "+0530"), (False, "+0000")])
def test_the_date_is_in_djangos_zone_or_utc(local: bool, zone: str) -> None:  # noqa: FBT001
    with override_settings(
        EMAIL_USE_LOCALTIME=local, USE_TZ=True, TIME_ZONE="Asia/Kolkata"
    ):
        assert field(mail(), "Date").endswith(zone)


# -- What must not be given ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("Bcc", "`bcc`"),
        ("BCC", "`bcc`"),
        ("Resent-Bcc", "`bcc`"),
        ("subject", "`subject`"),
        ("Content-Type", "attach_alternative"),
        ("MIME-Version", "the backend writes it"),
        ("Content-Transfer-Encoding", "the backend chooses it"),
    ],
)
def test_headers_that_belong_to_others_are_refused(name: str, remedy: str) -> None:
    text = refusal(mail(headers={name: "value"}))
    assert text.startswith(f"header {name!r} is refused: ")
    assert remedy in text


@pytest.mark.parametrize("name", ["X A", "X:A", "X-é", "", "X-A\r\nX-Evil"])
def test_what_is_no_name_is_refused_in_attached_messages_too(name: str) -> None:
    assert "header name" in refusal(mail(headers={name: "value"}))
    message = mail()
    inner = EmailMessage("a", "b", "a@b.example", headers={name: "value"})
    message.attach("a.eml", inner, "message/rfc822")
    assert "header name" in refusal(message)


def test_headers_in_any_letter_case_replace_those_of_the_message() -> None:
    headers = {
        "FROM": "Other <o@shop.example>",
        "to": "Team:;",
        "DATE": "2 Jan 2026 03:04:05",
    }
    message = mail(headers=headers)
    content = written(message)
    check(content)
    assert fields(message, "From") == ["Other <o@shop.example>"]
    assert fields(message, "To") == ["Team:;"]
    assert fields(message, "Date") == ["2 Jan 2026 03:04:05"]
