"""The parts of a message, from octets that may be hostile."""

from __future__ import annotations

import base64
import contextlib
import html
import posixpath
import quopri
import re
import unicodedata
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .mailbox import Record

#: A link in a text, without the punctuation behind it.
URL = re.compile(r"https?://[^\s<>\"]*[^\s<>\".,;:!?)\]']", re.IGNORECASE)

_MAX_PARTS = 200
_MAX_DEPTH = 20
_MAX_STEM = 90
_MAX_EXTENSION = 10
_END_OF_HEADERS = re.compile(rb"(?:\A|\r?\n)\r?\n")
_SAFE_TYPE = re.compile(
    r"image/(png|jpeg|gif|webp)|application/pdf|text/(plain|csv|calendar)"
)
_EXTENSIONS = {
    "text/plain": ".txt",
    "text/html": ".html",
    "message/rfc822": ".eml",
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
}
_TAG_NAME = re.compile(r"^/?[a-z0-9]+", re.IGNORECASE)
_HIDDEN = frozenset({"script", "style", "title"})
_CID = re.compile(r"\bcid:([^\"'\s()<>]+)", re.IGNORECASE)
_DOCTYPE = re.compile(r"\s*<!doctype[^<>]*>", re.IGNORECASE)
_LINK = re.compile(r"<(?=link\b)", re.IGNORECASE)
_REMOTE = re.compile(
    r"(?:\b(?:src|srcset|background|poster|data)\s*=|\burl\()\s*[\"']?\s*(?:https?:)?//"
    r"|<link\b|@import\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A leaf of a message, decoded."""

    content_type: str
    charset: str
    #: As given by the sender; empty without.
    name: str
    #: Without its angle brackets.
    content_id: str
    #: Whether it is shown as a file.
    attached: bool
    octets: bytes = field(repr=False)

    @property
    def text(self) -> str:
        try:
            return self.octets.decode(self.charset or "utf-8", "replace")
        except (LookupError, ValueError):
            # Python does not know the charset, or it is no text encoding.
            return self.octets.decode("utf-8", "replace")

    @property
    def safe_name(self) -> str:
        """A name for a download: no folders, nothing invisible, not too long."""
        visible = (
            "_" if unicodedata.category(each)[0] in "CZ" and each != " " else each
            for each in re.split(r"[/\\]", self.name)[-1]
        )
        name = "".join(visible).strip(" .")
        stem, extension = posixpath.splitext(name)
        if not name:
            stem, extension = "attachment", _EXTENSIONS.get(self.content_type, ".bin")
        return f"{stem[:_MAX_STEM]}{extension[:_MAX_EXTENSION]}"

    @property
    def safe_type(self) -> str:
        """The content type, if a browser does no more with it than to show it."""
        known = _SAFE_TYPE.fullmatch(self.content_type)
        return self.content_type if known else "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a message as a mail program shows them."""

    html: Part | None
    text: Part | None
    #: All other parts, in order.
    attachments: tuple[Part, ...]

    @property
    def has_remote_content(self) -> bool:
        """Whether the HTML seems to load something from elsewhere."""
        return self.html is not None and _REMOTE.search(self.html.text) is not None

    def document(self, *, remote: bool) -> str:
        """Return the HTML for a frame that allows nothing but new tabs.

        Images that the message brings along are put into it. `remote` leaves elements
        that load styles from elsewhere.
        """
        if self.html is None:
            return ""
        images = {
            part.content_id: part
            for part in self.attachments
            if part.content_type.startswith("image/")
        }

        def embed(match: re.Match[str]) -> str:
            image = images.get(match[1])
            if image is None:
                return match[0]
            encoded = base64.b64encode(image.octets).decode()
            return f"data:{image.content_type};base64,{encoded}"

        markup = _CID.sub(embed, self.html.text)
        if not remote:
            # A content security policy does not stop `rel=preconnect`.
            markup = _LINK.sub("<x-", markup)
        # Behind the doctype, which chooses how the browser lays it out.
        doctype = _DOCTYPE.match(markup)
        start = doctype.end() if doctype else 0
        return f'{markup[:start]}<base target="_blank">{markup[start:]}'


def read_parts(record: Record) -> Parts:
    """Return the parts of a record's content; never raises."""
    markup = text = None
    attachments = []
    for part in _leaves(record):
        if markup is None and part.content_type == "text/html" and not part.attached:
            markup = part
        elif text is None and part.content_type == "text/plain" and not part.attached:
            text = part
        else:
            attachments.append(part)
    return Parts(html=markup, text=text, attachments=tuple(attachments))


def _leaves(record: Record) -> list[Part]:
    # By octets and without recursion: attached messages stay as they are, and no depth
    # of nesting is too much.
    leaves: list[Part] = []
    waiting = [(0, record.content)] if record.content else []
    while waiting and len(leaves) < _MAX_PARTS:
        depth, octets = waiting.pop()
        end = _END_OF_HEADERS.search(octets)
        head, body = (
            (octets[: end.start()], octets[end.end() :]) if end else (octets, b"")
        )
        headers = replace(record, content=head + b"\r\n\r\n").headers
        boundary = _parameter(headers, "Content-Type", "boundary")
        pieces: list[bytes] = []
        multipart = headers.get_content_maintype() == "multipart"
        if multipart and boundary and depth < _MAX_DEPTH:
            pieces = _split(body, boundary)
        waiting.extend((depth + 1, piece) for piece in reversed(pieces))
        if not pieces:
            leaves.append(_leaf(headers, body))
    return leaves


def _split(body: bytes, boundary: str) -> list[bytes]:
    """Return what stands between the delimiters of a multipart (RFC 2046 section 5.1)."""
    delimiter = re.compile(
        rb"(?:\A|\r?\n)--"
        + re.escape(boundary.encode("utf-8", "replace"))
        + rb"(--)?[ \t]*(?=(\r?\n|\Z))"
    )
    pieces: list[bytes] = []
    start = None
    for match in delimiter.finditer(body):
        if start is not None:
            pieces.append(body[start : match.start()])
        start = match.end(2)
        if match[1]:
            return pieces
    return pieces if start is None else [*pieces, body[start:]]


def _leaf(headers: EmailMessage, body: bytes) -> Part:
    encoding = str(headers.get("Content-Transfer-Encoding", "")).strip().lower()
    name = _parameter(headers, "Content-Disposition", "filename") or _parameter(
        headers, "Content-Type", "name"
    )
    disposition = headers.get_content_disposition()
    return Part(
        content_type=headers.get_content_type(),
        charset=_parameter(headers, "Content-Type", "charset"),
        name=name,
        content_id=str(headers.get("Content-ID", "")).strip(" <>"),
        attached=disposition == "attachment" or bool(name),
        octets=_decode(body, encoding),
    )


def _decode(body: bytes, encoding: str) -> bytes:
    if encoding == "quoted-printable":
        return quopri.decodestring(body)
    if encoding == "base64":
        # Padding that is too much does not matter; what cannot be decoded is shown.
        with contextlib.suppress(ValueError):
            return base64.b64decode(body + b"==")
    return body


def _parameter(headers: EmailMessage, field_name: str, name: str) -> str:
    # A field that cannot be parsed is text, without parameters.
    return str(getattr(headers.get(field_name), "params", {}).get(name, ""))


def visible_text(markup: str) -> str:
    """Return roughly the text of HTML, in linear time."""
    first, *tags = markup.split("<")
    texts, hidden = [first], ""
    for each in tags:
        tag, _, text = each.partition(">")
        name = "".join(_TAG_NAME.findall(tag)).lower()
        if name in _HIDDEN:
            hidden = hidden or f"/{name}"
        elif name == hidden:
            hidden = ""
        if not hidden:
            texts.append(text)
    return html.unescape(" ".join(texts))
