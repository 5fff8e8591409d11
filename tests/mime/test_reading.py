"""Readers that are not ours find in a message exactly what its caller gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.preparing import envelope

from .conformance import check, check_lines, check_parts
from .making import mail, written
from .messages import EXAMPLES, formatted, messages
from .readers import Leaf, Mail, PerlReader, by_compat32, by_default

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def perl() -> Iterator[PerlReader]:
    reader = PerlReader()
    yield reader
    reader.close()


def without_blanks(mail: Mail) -> Mail:
    """Leave out blanks in names: Python's newer interface joins and drops some."""
    addresses = {
        field: [("".join(name.split()), spec) for name, spec in names]
        for field, names in mail.addresses.items()
    }
    return replace(mail, addresses=addresses)


def as_perl_shows(mail: Mail) -> Mail:
    """Leave out what differs: the octets of attached mail, blanks where a line ends.

    Email::Simple makes one blank of several there, which RFC 5322 does not say.
    """
    leaves = [
        Leaf(kind=each.kind, name=each.name, content=b"")
        if each.kind.startswith("message/")
        else each
        for each in mail.leaves
    ]
    texts = {name: " ".join(text.split()) for name, text in mail.texts.items()}
    return replace(mail, leaves=leaves, texts=texts)


@many
@given(drawn=messages())
def test_python_reads_what_was_given(drawn: tuple[EmailMessage, Mail]) -> None:
    message, meant = drawn
    content = written(message)
    assert by_compat32(content) == meant
    assert without_blanks(by_default(content)) == without_blanks(meant)


@pytest.mark.external
@many
@given(drawn=messages())
def test_perl_reads_what_was_given(
    perl: PerlReader, drawn: tuple[EmailMessage, Mail]
) -> None:
    message, meant = drawn
    assert as_perl_shows(perl.read(written(message))) == as_perl_shows(meant)


@pytest.mark.parametrize(
    "text",
    [
        "Wholesale, Retail, Import, Export and everything else under one roof (Sales)",
        "es votre n° über déjà \u2013 30€ Größe »",
        "bientôt, 12 es es où mañana où = ok \u2013 \u2013",
        "Ваш заказ, который вы сделали вчера, уже отправлен",
        *(
            "Отдел продаж, " * 9 + "склад",
            "word " * 60 + "end",
            "a" * 60 + " ü",
            "x" * 67,
        ),
        *(
            "x" * 1200,
            "é" * 300,
            "日本語" * 40,
            "🎉" * 50,
            "👩‍👩‍👧" * 12,
            "e\u0301" * 40,
        ),
        *("Ann, Lee <a@b.example>", 'the "boss"', "back\\slash", "a;b=c", "'a'", "[1]"),
        *("=?utf-8?q?a?=.pdf", "a =?b", "=?", "utf-8''a", "a*0*=b", "50%", "%41.pdf"),
        *(
            "two  blanks",
            " a",
            "a ",
            "a\tb",
            "\x0b",
            "\x7f",
            "\x8e",
            "a\x85b",
            "a\u2028b",
        ),
        *(
            "Zo\u200dë",
            "\u202eevil",
            "مرحبا بالعالم",
            "x" * 54 + ".pdf",
            "é" * 9 + ".pdf",
        ),
    ],
)
def test_hard_text_is_read_as_given_wherever_it_stands(text: str) -> None:
    spec = "sales@mail.example"
    address = formatted(text, spec)
    message = mail(subject=text, from_email=address, to=[address])
    message.extra_headers = {"Cc": address, "X-Note": f"é {text} é"}
    message.attach(text, b"1", "application/pdf")
    content = written(message)
    check(content)
    found = by_compat32(content)
    assert found.subject == text
    assert found.addresses == {name: [(text, spec)] for name in ("From", "To", "Cc")}
    assert found.texts == {"x-note": f"é {text} é"}
    assert found.leaves[1].name == text
    assert without_blanks(by_default(content)) == without_blanks(found)


@many
@given(drawn=messages())
def test_a_message_keeps_the_rules_of_the_wire(drawn: tuple[EmailMessage, Any]) -> None:
    message, _ = drawn
    check(written(message))


@many
@given(drawn=messages())
def test_a_relay_without_8bitmime_gets_the_same_in_7_bits(
    drawn: tuple[EmailMessage, Mail],
) -> None:
    message, meant = drawn
    made = envelope(message, correlation_key=None)
    content = made.seven_bit().content
    assert content.isascii()
    check_lines(content)
    check_parts(content)
    found = by_compat32(content)
    # Mail of 8 bits that is attached becomes a file.
    kinds = {"message/rfc822": "application/octet-stream"}
    for is_, was in zip(found.leaves, meant.leaves, strict=True):
        assert is_.name == was.name
        assert is_.kind in {was.kind, kinds.get(was.kind)}
        if was.kind != "message/rfc822":
            assert is_.content == was.content
