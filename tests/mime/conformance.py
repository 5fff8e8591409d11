"""What RFC 5322, 2045, 2047 and 2231 say of the lines of a message, checked line by line."""

from __future__ import annotations

import base64
import binascii
import quopri
import re
from email.parser import BytesHeaderParser

ENCODED_WORD = re.compile(r"=\?([^?]*)\?([^?]*)\?([^?]*)\?=")
#: Fields in which a phrase may be encoded, by what must not be.
ADDRESSES = re.compile(
    "(?:resent-)?(?:from|to|cc|sender|reply-to)|errors-to|return-receipt-to|list-id"
    "|mail-(?:followup|reply)-to|disposition-notification-to"
)
FREE_TEXT = re.compile(r"subject|comments|keywords|x-.*")


def check(content: bytes) -> None:
    """Assert that a message keeps the rules of the wire, and its header's of its fields."""
    check_lines(content)
    head, _, body = content.partition(b"\r\n\r\n")
    check_header(head + b"\r\n")
    check_parts(content)
    assert body.endswith(b"\r\n")


def check_lines(content: bytes) -> None:
    assert content.endswith(b"\r\n")
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content)
    assert max(map(len, content.split(b"\r\n"))) <= 998


def check_header(head: bytes) -> None:
    names: list[str] = []
    for field in re.findall(rb"[^\n]*\n(?:[ \t][^\n]*\n)*", head):
        lines = field.removesuffix(b"\r\n").decode("ascii").split("\r\n")
        name, colon, first = lines[0].partition(":")
        assert colon
        assert re.fullmatch(r"[!-9;-~]+", name)
        assert first.startswith(" ")
        names.append(name.lower())
        value = first[1:] + "".join(lines[1:])
        for line in lines:
            assert line.strip(" \t")
            words = [each.group() for each in ENCODED_WORD.finditer(line)]
            foldable = re.search(
                r"\S[ \t]+\S", line.partition(": ")[2] or line.lstrip()
            )
            # Beside a name this long, no encoded word fits.
            fits = len(name) <= 50 or line is not lines[0]
            assert len(line) <= (76 if words else 78) or not (foldable and fits), line
            assert len(line) <= 76 or not words or not fits, line
        check_words(name.lower(), value)
    once = {"subject", "from", "to", "cc", "reply-to", "date", "message-id"}
    assert all(names.count(each) <= 1 for each in once)


def check_words(name: str, value: str) -> None:
    """Check that encoded words are sound and stand where RFC 2047 section 5 allows it."""
    unquoted = re.sub(r'"(?:[^"\\]|\\.)*"', "", value)
    found = list(ENCODED_WORD.finditer(unquoted))
    if not found:
        return
    assert FREE_TEXT.fullmatch(name) or ADDRESSES.fullmatch(name), name
    for word in found:
        before, after = unquoted[: word.start()], unquoted[word.end() :]
        assert before[-1:] in ("", " ")
        assert after[:1] in ("", " ")
        assert len(word[0]) <= 75
        charset, encoding, text = word.groups()
        assert text
        if encoding.lower() == "b":
            octets = base64.b64decode(text, validate=True)
        else:
            assert re.fullmatch(r"(?:[A-Za-z0-9!*+/_-]|=[0-9A-F]{2})+", text)
            octets = quopri.decodestring(text.replace("_", " "), header=True)
        assert octets.decode(charset)
    if ADDRESSES.fullmatch(name):
        assert not any("=?" in spec for spec in re.findall(r"<[^>]*>", unquoted))


def check_parts(entity: bytes) -> None:
    """Check boundaries, transfer encodings and parameters of an entity and its parts."""
    if entity.startswith(b"\r\n"):
        head, body = b"", entity[2:]
    else:
        head, _, body = entity.partition(b"\r\n\r\n")
    parsed = BytesHeaderParser().parsebytes(head)
    encoding = str(parsed.get("Content-Transfer-Encoding", "7bit")).lower()
    main = parsed.get_content_maintype()
    assert re.search(rb'(?:file)?name="?[^"]*=\?', head) is None
    if main in {"multipart", "message"}:  # RFC 2045 section 6.4
        assert encoding in {"7bit", "8bit"}
    if encoding == "7bit":
        assert body.isascii()
    if encoding == "quoted-printable":
        assert re.fullmatch(rb"(?:[\t -<>-~\r\n]|=[0-9A-F]{2}|=\r\n)*", body)
        assert all(len(line) <= 76 for line in body.split(b"\r\n"))
        assert not re.search(rb"[ \t]\r\n", body)
    if encoding == "base64":
        assert all(len(line) <= 76 for line in body.split(b"\r\n"))
        binascii.a2b_base64(body.replace(b"\r\n", b""), strict_mode=True)
    if main == "multipart":
        boundary = re.escape(str(parsed.get_boundary()).encode())
        marks = re.split(
            rb"(?:\A|\r\n)--" + boundary + rb"(--)?[ \t]*(?=\r\n|\Z)", body
        )
        assert marks[1::2].count(b"--") == 1
        assert marks[-2] == b"--"
        for each in marks[2:-1:2]:
            check_parts(each.removeprefix(b"\r\n"))
