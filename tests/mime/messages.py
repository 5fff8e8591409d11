"""Random messages, and what their callers meant by them."""

from __future__ import annotations

import os
from typing import Any

from django.core.mail import EmailMessage, EmailMultiAlternatives
from hypothesis import strategies as st

from .readers import Leaf, Mail, lines

#: How many random messages each test reads; MIME_EXAMPLES=20000 takes half an hour.
EXAMPLES = int(os.environ.get("MIME_EXAMPLES", "60"))

#: CR, LF, NUL and lone surrogates are refused everywhere; Perl has no noncharacters.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="\r\n\0")
EVERYDAY = """
    es n° über déjà 30€ Größe » \u2013 = ok mañana où Ваш заказ отправлен Αθήνα こんにちは
    世界 مرحبا 🎉 👩\u200d👩\u200d👧 , ; : < > @ " \\ ( ) [x] {24h} _ ? % ' '' *0*=
"""
WORDS = [
    *EVERYDAY.split(),
    *("=?utf-8?q?a?=", "=?utf-8?b?w6k=?=", "=?", "?=", " ", "  ", "\t", "\xa0"),
    *("\x0b", "\x1c", "\x7f", "\x85", "\u2028", "\u200d", "x" * 80, "é" * 80),
]
#: Drawn whole, since each draw costs more than all that is tested.
RUNS = [" ".join(WORDS[start : start + 6]) for start in range(0, len(WORDS), 2)]
TEXTS = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join),
    st.lists(st.sampled_from(WORDS + RUNS), max_size=4).map("".join),
    st.text(CHARACTERS, max_size=12),
)
LOCAL_PARTS = st.sampled_from(
    ["you", "first.last", "o'hara", "a+b", "x" * 60, "!#$%&*/=^_`{|}~-", "1"]
)
DOMAINS = st.sampled_from(["mail.example", "a.b.example", "x" * 50 + ".example"])
SPECS = st.builds("{}@{}".format, LOCAL_PARTS, DOMAINS)
MAILBOXES = st.tuples(st.just("") | TEXTS.filter(lambda text: text != ""), SPECS)
LINES = [
    *("\n", "\r\n", "\r", "\n.\n", ".", "From me\n", "x" * 1200, "é" * 600, "=", " \n"),
    *("=3D\n", "\t\n", "ü", "\0", "日本", "\x85\u2028\x0b\x0c\x1c", "--\n", "word "),
]
BODIES = st.lists(
    st.sampled_from(LINES)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    max_size=5,
).map("".join)
CHARSETS = st.sampled_from(
    ["utf-8", "utf-8", "utf-8", "UTF8", "iso-8859-15", "koi8-r", "shift_jis", "utf-16"]
)
KINDS = st.sampled_from(["application/pdf", "image/png", "x-own/y", "multipart/x-mht"])


def formatted(name: str, spec: str) -> str:
    """Write an address as a caller does who quotes every name."""
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}" <{spec}>' if name else spec


def fits(text: str, charset: str) -> bool:
    try:
        return text.encode(charset).decode(charset) == text
    except ValueError:
        return False


@st.composite
def messages(draw: st.DrawFn, depth: int = 1) -> tuple[EmailMessage, Mail]:
    """Draw a message, and what a reader should find in it."""
    names: dict[str, list[tuple[str, str]]] = {
        "From": [draw(MAILBOXES)],
        "To": draw(st.lists(MAILBOXES, min_size=1, max_size=3)),
        "Cc": draw(st.lists(MAILBOXES, max_size=1)),
        "Reply-To": draw(st.lists(MAILBOXES, max_size=1)),
    }
    charset = draw(CHARSETS)
    subject, body = draw(TEXTS), draw(BODIES.filter(lambda text: fits(text, charset)))
    # ASCII is verbatim there: it must not look like something else, or begin with blanks.
    texts = draw(
        st.dictionaries(
            st.sampled_from(["x-one", "x-two", "x-a-name-" + "that-is-long-" * 5]),
            TEXTS.filter(lambda text: text == text.strip() and "=?" not in text),
            max_size=2,
        )
    )
    message = EmailMultiAlternatives(
        subject=subject,
        body=body,
        from_email=formatted(*names["From"][0]),
        to=[formatted(*each) for each in names["To"]],
        cc=[formatted(*each) for each in names["Cc"]],
        reply_to=[formatted(*each) for each in names["Reply-To"]],
        headers=dict(texts),
    )
    message.encoding = charset
    leaves = [Leaf(kind="text/plain", name=None, content=lines(body))]
    for _ in range(draw(st.integers(0, 1))):
        html = "<p>" + draw(BODIES.filter(lambda text: fits(text, charset)))
        message.attach_alternative(html, "text/html")
        leaves.append(Leaf(kind="text/html", name=None, content=lines(html)))
        if not body:
            del leaves[0]
    for _ in range(draw(st.integers(0, 2))):
        leaf = attach(draw, message, charset, depth)
        if not body and leaves[0].content == "\n" and leaves[0].name is None:
            del leaves[0]
        leaves.append(leaf)
    return message, Mail(
        subject=subject,
        addresses={name: each for name, each in names.items() if each},
        texts=texts,
        leaves=leaves,
    )


def attach(draw: st.DrawFn, message: Any, charset: str, depth: int) -> Leaf:
    """Attach a file, a text or a message, and return what a reader should find."""
    name = draw(TEXTS.filter(lambda text: text != ""))
    kind = draw(st.sampled_from(["file", "text", "mail"]))
    if kind == "text":
        text = "x" + draw(BODIES.filter(lambda text: fits(text, charset)))
        message.attach(name, text, "text/csv")
        return Leaf(kind="text/csv", name=name, content=lines(text))
    if kind == "mail" and depth:
        inner, _ = draw(messages(depth=depth - 1))
        message.attach(name, inner, "message/rfc822")
        return Leaf(kind="message/rfc822", name=name, content=b"")
    octets, given = draw(st.binary(max_size=300)), draw(KINDS)
    message.attach(name, octets, given)
    kind = "application/octet-stream" if given.startswith("multipart/") else given
    return Leaf(kind=kind, name=name, content=octets)
