"""Each header field is written as its kind asks for, or refused by its name."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from socket import gethostname
from typing import Any

import pytest
from django.core.mail.utils import DNS_NAME
from django.test import override_settings

from tests.preparing import envelope

from .conformance import check
from .making import field, fields, mail, refusal, unfolded, with_entry, written
from .readers import by_compat32, by_default, decoded

# -- Verbatim ASCII ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Signature", "sha256=" + "ab" * 40),
        ("List-Id", "=?utf-8?q?Alle_L=C3=A4den?= <shops.lists.example>"),
        ("ARC-Seal", "i=1; a=rsa-sha256; cv=none; d=mail.example; b=" + "Zk" * 90),
        ("X-MC-Metadata", '{"order": 7, "long": "' + "x" * 90 + '"}'),
        ("List-Unsubscribe", "<https://lists.example/" + "u" * 300 + ">"),
        ("References", " ".join(f"<{'r' * 80}.{n}@mail.example>" for n in range(8))),
        ("X-Two", "two  blanks,\ta tab and  =?utf-8?q?a?= " + "word " * 30 + "end"),
        ("X-Ends", "  blanks at the ends  "),
        ("X-Blank", " "),
        ("X-Empty", ""),
        ("X-Token", "t" * (998 - len("X-Token: "))),
        ("To", "Team:;"),
        ("To", "Team: Ann <a@b.example>, c@d.example;"),
        ("Date", "Fri, 02 Jan 2026 03:04:05 +0000"),
        ("Date", "2 Jan 26 03:04 GMT (a comment)"),
        ("Message-ID", "<ticket#12;step:3@shop.example>"),
        ("message-id", "<[7]@x>"),
        ("Resent-Message-ID", "<(a)..@b,c>"),
    ],
)
def test_ascii_stays_as_it_is_and_folds_at_blanks_that_are_there(
    name: str, value: str
) -> None:
    message = mail(headers={name: value})
    assert unfolded(message, name) == value
    assert not field(message, name).startswith("\r\n")
    assert len(fields(message, name)) == 1


LONG = "over 998 octets"
DATE_RULE, ID_RULE = "give a datetime", "write <left@right>"


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("List-Post", "<https://lists.example/" + "p" * 1000 + ">", LONG),
        ("References", "<a@b.example> <" + "r" * 1000 + "@b.example>", LONG),
        ("Message-ID", "<" + "r" * 1000 + "@b.example>", LONG),
        ("X-Token", "t" * (999 - len("X-Token: ")), LONG),
        ("X-" + "n" * 990, "value", LONG),
        ("To", "Team: " + "a" * 1000 + "@b.example;", "at most 254 octets"),
        ("To", "Team: nobody;", "user@domain"),
        ("To", "Équipe: one@mail.example;", "groups"),
        ("From", "", "a message has a sender"),
        ("From", ",", "a message has a sender"),
        ("From", "Retail, Import <desk@shop.example>", "double quotes"),
        ("List-Id", "Läden", "percent-encode"),
        ("List-Id", "Läden <a> <b>", "percent-encode"),
        ("Date", "xx", DATE_RULE),
        ("Orig-Date", "1 Jan 99999999 10:00:00", DATE_RULE),
        ("Date", "2 Jan 2026 é", DATE_RULE),
        *(
            ("Message-ID", value, ID_RULE)
            for value in [
                *("ticket-12@shop.example", "<a b@c.example>", "<a@b.example", "<>"),
                *("a@b.example>", "<a\t@b.example>", "<a@b.example> (c)"),
            ]
        ),
        *(
            (name, "<https://größe.example/?a=é>", "percent-encode links")
            for name in [
                *("List-Unsubscribe", "list-help", "References", "In-Reply-To"),
                *("Archived-At", "DKIM-Signature", "ARC-Seal", "Autocrypt"),
                *("X-Priority", "Auto-Submitted", "Original-Message-ID"),
                "Content-ID",
            ]
        ),
        ("References", "a\x0bb", "percent-encode links"),
        *(
            ("X-A", f"a{character}b", "line break")
            for character in ["\r", "\n", "\r\n ", "\0", "\ud800"]
        ),
        *(("X-Y", value, "use str, int") for value in [None, ["a"], b"octets"]),
        ("Bcc", "value", "`bcc`"),
        ("resent-bcc", "value", "`bcc`"),
        ("subject", "value", "`subject`"),
        ("Content-Type", "value", "attach_alternative"),
        ("MIME-Version", "value", "the backend writes it"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_by_the_name_of_its_field(
    name: str, value: object, rule: str
) -> None:
    text = refusal(mail(headers={name: value}))
    assert text.startswith(f"header {name!r}" if len(name) < 80 else "header 'X-nnn")
    assert rule in text


@pytest.mark.parametrize("name", ["X A", "X-é", "", "X-A\r\nX-Evil"])
def test_what_is_no_name_is_refused_in_attached_messages_too(name: str) -> None:
    inner = mail(headers={name: "value"})
    assert "header name" in refusal(with_entry(("a.eml", inner, "message/rfc822")))


def test_octets_are_no_subject() -> None:
    assert refusal(mail(subject=b"Hello")).startswith("subject: b'Hello'")


# -- Message-ID and Date ------------------------------------------------------------------


def test_a_message_id_has_the_domain_of_the_sender() -> None:
    message = mail(from_email="Desk <desk@größe.example>")
    found = {field(message, "Message-ID") for _ in range(2)}
    assert len(found) == 2
    assert all(each.endswith("@xn--gre-6ka8i.example>") for each in found)


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("localhost", "shop.example"),
        (f"{gethostname()}.internal.example", "shop.example"),
        ("mail.example", "mail.example"),
    ],
)
def test_djangos_host_name_is_the_domain_only_where_it_was_set(
    name: str, domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DNS_NAME, "_fqdn", name, raising=False)
    assert field(mail(), "Message-ID").endswith(f"@{domain}>")


def test_no_host_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any) -> str:
        raise AssertionError("a look-up has no limit in time")

    monkeypatch.setattr("socket.getfqdn", look_up)
    monkeypatch.setattr("socket.gethostbyaddr", look_up)
    monkeypatch.delattr(DNS_NAME, "_fqdn", raising=False)
    assert field(mail(), "Message-ID").endswith("@shop.example>")


@pytest.mark.parametrize("name", ["Date", "date", "Resent-Date", "Orig-Date"])
def test_a_datetime_is_written_as_mail_does(name: str) -> None:
    when = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    found = fields(mail(headers={name: when}), name)
    assert found == ["Wed, 02 Jan 2030 03:04:05 +0200"]


@pytest.mark.parametrize(("local", "zone"), [(True, "+0530"), (False, "+0000")])
def test_the_date_is_in_djangos_zone_or_utc(local: bool, zone: str) -> None:  # noqa: FBT001 - of a table
    with override_settings(
        EMAIL_USE_LOCALTIME=local, USE_TZ=True, TIME_ZONE="Asia/Kolkata"
    ):
        assert field(mail(), "Date").endswith(zone)


# -- Names and addresses -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("Errors-To", "Disposition-Notification-To", "Return-Receipt-To", "Sender"),
        *("Mail-Followup-To", "Resent-From", "Resent-Cc", "Resent-Sender", "Reply-To"),
        *("Resent-Reply-To", "Mail-Reply-To", "cc", "FROM"),
    ],
)
def test_more_headers_hold_addresses(name: str) -> None:
    message = mail(headers={name: "Réception <a@größe.example>, plain@b.example"})
    check(written(message))
    assert unfolded(message, name) == (
        "=?utf-8?q?R=C3=A9ception?= <a@xn--gre-6ka8i.example>, plain@b.example"
    )
    assert refusal(mail(headers={name: "nobody"})).startswith("header ")


def test_an_empty_address_header_is_left_out() -> None:
    message = mail(headers={"Reply-To": "", "Cc": " "})
    assert fields(message, "Reply-To") == fields(message, "Cc") == []


@pytest.mark.parametrize(
    "name", ["a  b", '"x"', "=?utf-8?q?a?=", "\x0bü", " ü", "é" * 700]
)
def test_a_raw_name_that_readers_would_change_is_encoded(name: str) -> None:
    quoted = name.replace('"', r"\"")
    made = envelope(mail(to=[f'"{quoted}" <nø@mail.example>']))
    assert b"To: =?utf-8?" in made.content
    assert b" <n\xc3\xb8@mail.example>\r\n" in made.content


def test_a_blind_recipient_alone_can_need_smtputf8() -> None:
    made = envelope(mail(bcc=["nø@example.com"]))
    assert made.smtputf8
    assert made.content.isascii()


# -- Free text ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Comments", "Keywords", "X-Note", "Organization"])
@pytest.mark.parametrize("text", ["größe", "日本語 " * 20 + "é", "\x0bé", "a\x8eb"])
def test_other_free_text_is_encoded(name: str, text: str) -> None:
    message = mail(headers={name: text})
    assert field(message, name).startswith("=?utf-8?")
    assert decoded(unfolded(message, name)) == text


@pytest.mark.parametrize("length", [46, 50, 51, 54, 80, 900])
@pytest.mark.parametrize(
    "text", ["größe " * 20, "世界 " + "x" * 80, "🎉" * 9, "🎉" + "x" * 80]
)
def test_a_long_name_leaves_room_for_its_text(length: int, text: str) -> None:
    name = "X-" + "n" * (length - 2)
    content = written(mail(headers={name: text}))
    check(content)
    assert by_compat32(content).texts[name.lower()] == text
    assert by_default(content).texts[name.lower()] == text


def test_headers_in_any_letter_case_replace_those_of_the_message() -> None:
    headers = {
        "FROM": "Other <o@shop.example>",
        "to": "Team:;",
        "DATE": "2 Jan 2026 03:04:05",
    }
    message = mail(headers=headers)
    check(written(message))
    assert {name: fields(message, name) for name in headers} == {
        name: [value] for name, value in headers.items()
    }


def test_a_header_in_two_letter_cases_is_refused() -> None:
    headers = {"List-Post": "<a:b>", "X-A": "1", "list-post": "<c:d>"}
    text = refusal(mail(headers=headers))
    assert text.startswith("header 'List-Post': '<a:b>' cannot be sent: ")
    assert "another letter case" in text
