"""Two dozen messages have the same octets on every version of Python and Django.

But for dates, ids and boundaries. `GOLDEN_WRITE=1` writes the files anew.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from email.charset import QP, Charset
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.preparing import envelope
from tests.snippets import DOCS

from .conformance import check
from .making import mail, with_file, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.core.mail import EmailMessage

FOLDER = Path(__file__).parent / "golden"
DATE = datetime(2026, 3, 2, 10, 0, 0, tzinfo=UTC)
LINES = "A line of text that is long enough to be seen, and ends here.\n" * 3


def with_html(**change: Any) -> EmailMessage:
    message = mail(**change)
    message.attach_alternative("<p>Größe\n", "text/html")
    return message


def with_many_files() -> EmailMessage:
    message = with_html(body=LINES)
    message.attach("Invoice 7.pdf", bytes(range(256)), "application/pdf")
    message.attach("größe.csv", "a;b\nö;ü\n", "text/csv")
    message.attach("a" * 200 + ".bin", b"", None)
    message.attach(None, b"1", "application/x-own")
    message.attach("data.json", '{"name": "Zoë"}', "application/json")
    return message


def quoted() -> Charset:
    charset = Charset("iso-8859-15")
    charset.body_encoding = QP
    return charset


MESSAGES: dict[str, Callable[[], EmailMessage]] = {
    "text": lambda: mail(body=LINES),
    "empty": lambda: mail(subject="", body=""),
    "text_8bit": lambda: mail(subject="größe", body="Grüße, Größe\n"),
    "long_lines": lambda: mail(body="é" * 520 + " \n" + "x" * 1000 + "=\n.\nFrom me"),
    "nul": lambda: mail(body="a\0b\r\r\n"),
    "html": with_html,
    "html_alone": lambda: mail(body="<p>", content_subtype="html"),
    "files": with_many_files,
    "related": lambda: with_file("a.png", b"1", "image/png", mixed_subtype="related"),
    "cyrillic": lambda: mail(subject="Ваш заказ, который вы сделали вчера, отправлен"),
    "emoji": lambda: mail(subject="🎉" * 40 + " ok"),
    "controls": lambda: mail(subject="caf\x8e\tmenu", to=['"Tab\tbed" <a@b.example>']),
    "look_alike": lambda: mail(subject="=?utf-8?q?a?=", to=['"=?" <a@b.example>']),
    "names": lambda: mail(
        from_email='"Retail, Import and everything else under one roof (Sales)" <a@b.example>',
        to=['"Отдел продаж, склад и магазин" <a@größe.example>', "Ann <b@c.example>"],
        cc=["Service {24h} [west] <west@mail.example>", '"first..last"@mail.example'],
        reply_to=["west@mail.example (West wing)"],
    ),
    "many": lambda: mail(to=[f"recipient-{n}@mail.example" for n in range(30)]),
    "headers": lambda: mail(
        headers={
            "List-Id": "Alle Läden <shops.lists.example>",
            "List-Unsubscribe": "<https://lists.example/" + "u" * 90 + ">",
            "X-Signature": "sha256=" + "ab" * 40,
            "X-Words": "word  " * 30,
            "X-Text": "größe",
            "X-Test": True,
            "Message-ID": "<ticket#12;step:3@shop.example>",
            "Date": DATE,
            "To": "Team:;",
        }
    ),
    "smtputf8": lambda: mail(
        from_email="Shöp <sö@b.example>",
        to=["Jörg <nø@größe.example>", "Größe <a@straße.example>"],
        reply_to=[f"größe-{n}-{'x' * 30}@b.example" for n in range(9)],
        headers={"Sender": "sö@b.example"},
    ),
    "latin": lambda: mail(body="10 € für Öl\n", encoding="iso-8859-15"),
    "latin_quoted": lambda: mail(body="10 € für Öl\n", encoding=quoted()),
    "utf_16": lambda: mail(body="Größe\n", encoding="utf-16-le"),
    "koi8": lambda: mail(body="Заказ\n", encoding="koi8-r"),
    "forwarded": lambda: with_file(
        "forwarded.eml", b"Subject:  two blanks\nX: a\n\tb\n\nHello", "message/rfc822"
    ),
    "file_of_mail": lambda: with_file("a.eml", b"X: " + b"0" * 1400, "message/rfc822"),
    "nested": lambda: with_file("inner.eml", with_html(subject="é"), "message/rfc822"),
}


def comparable(content: bytes) -> bytes:
    """Replace what differs each time: date, message id, boundaries."""
    content = re.sub(rb"(?m)^Date: .*\d{4}\r$", b"Date: (date)\r", content)
    content = re.sub(rb"<\d+\.\d+\.\d+@", b"<(id)@", content)
    found = dict.fromkeys(re.findall(rb"={15}\d+==", content))
    for number, boundary in enumerate(found):
        content = content.replace(boundary, b"(boundary %d)" % number)
    return content


@pytest.mark.parametrize("name", MESSAGES)
def test_the_octets_are_the_same_everywhere(name: str) -> None:
    content = written(MESSAGES[name]())
    if name != "smtputf8":
        check(content)
    path = FOLDER / f"{name}.eml"
    if "GOLDEN_WRITE" in os.environ:
        path.write_bytes(comparable(content))
    assert comparable(content) == path.read_bytes()


def test_there_is_no_file_without_a_message() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(MESSAGES)


def test_the_page_about_the_wire_shows_what_is_written() -> None:
    page = (DOCS / "wire.md").read_text("utf-8")
    [code] = re.findall("```python\n(.*?)```", page, re.DOTALL)
    [shown] = re.findall("```text\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    found = envelope(names["message"]).data.decode().splitlines()
    lines = [re.sub(r" {2,}\d+$", "", line) for line in shown.splitlines()]
    assert len(found) == len(lines)
    for is_, told in zip(found, lines, strict=True):
        pattern = ".*".join(map(re.escape, told.split("\u2026")))
        assert re.fullmatch(pattern, is_), told
