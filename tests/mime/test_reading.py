"""Readers that are not ours find in a message exactly what its caller gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.preparing import envelope

from .conformance import check, check_lines, check_parts
from .messages import EXAMPLES, messages
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


def written(message: EmailMessage) -> bytes:
    return envelope(message, correlation_key=None).content


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
