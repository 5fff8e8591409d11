"""Readers that are not ours find in a message exactly what its caller gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from tests.preparing import envelope

from .conformance import check, check_lines, check_parts
from .making import mail, written
from .messages import EXAMPLES, formatted, messages
from .readers import Mail, PerlReader, by_compat32, by_default

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
        replace(each, content=b"") if each.kind.startswith("message/") else each
        for each in mail.leaves
    ]
    texts = {name: " ".join(text.split()) for name, text in mail.texts.items()}
    return replace(mail, leaves=leaves, texts=texts)


@many
@given(drawn=messages())
def test_any_message_keeps_the_rules_of_the_wire_and_is_read_as_given(
    drawn: tuple[EmailMessage, Mail],
) -> None:
    message, meant = drawn
    made = envelope(message, correlation_key=None)
    check(made.content)
    assert by_compat32(made.content) == meant
    assert without_blanks(by_default(made.content)) == without_blanks(meant)
    # For a relay without 8BITMIME, attached mail of 8 bits becomes a file.
    seven = made.seven_bit().content
    assert seven.isascii()
    check_lines(seven)
    check_parts(seven)
    for found, leaf in zip(by_compat32(seven).leaves, meant.leaves, strict=True):
        if leaf.kind != "message/rfc822":
            assert found == leaf
        assert found.name == leaf.name
        assert found.kind in {leaf.kind, "application/octet-stream"}


@pytest.mark.external
@many
@given(drawn=messages())
def test_perl_reads_what_was_given(
    perl: PerlReader, drawn: tuple[EmailMessage, Mail]
) -> None:
    message, meant = drawn
    assert as_perl_shows(perl.read(written(message))) == as_perl_shows(meant)


HARD_TEXTS = [
    "Wholesale, Retail, Import, Export and everything else under one roof (Sales)",
    "es votre n° über déjà \u2013 30€ Größe »",
    "bientôt, 12 es es où mañana où = ok \u2013 \u2013",
    "Ваш заказ, который вы сделали вчера, уже отправлен",
    "Отдел продаж, " * 9 + "склад",
    "word " * 60 + "end",
    "a" * 60 + " ü",
    "x" * 1200,
    "é" * 300,
    "👩\u200d👩\u200d👧" * 12,
    *("Ann, Lee <a@b.example>", 'the "boss"', "back\\slash", "a;b=c", "[1]"),
    *("=?utf-8?q?a?=.pdf", "=?", "utf-8''a", "a*0*=b", "%41.pdf"),
    *("two  blanks", " a", "a ", "a\tb", "\x0b", "\x7f", "a\x85b", "a\u2028b"),
    *("\u202eevil", "مرحبا بالعالم", "x" * 54 + ".pdf", "é" * 9 + ".pdf"),
]


@pytest.mark.parametrize("text", HARD_TEXTS)
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
