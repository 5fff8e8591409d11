"""What the inbox makes of HTML, attachments and odd messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.testing.inbox.events import new_event
from django_lettermint.testing.inbox.reading import read_parts, visible_text
from tests.testing.records import ADA, message, received

if TYPE_CHECKING:
    from email.message import EmailMessage

    from django_lettermint.testing.inbox.reading import Part
    from tests.testing.inbox_client import Reader

MIXED = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
TEXT = "text/plain"


def document(mail: EmailMessage | bytes, *, remote: bool = False) -> str:
    return read_parts(received(mail)).document(remote=remote).strip()


def attached(mail: EmailMessage | bytes) -> Part:
    (part,) = read_parts(received(mail)).attachments
    return part


# HTML


@pytest.mark.parametrize(
    ("query", "images"), [("", "data:"), ("?remote=1", "data: http: https:")]
)
def test_the_frame_of_a_mail_may_do_nothing_but_open_tabs(
    query: str, images: str, reader: Reader
) -> None:
    reader.deliver(message(html="<p>Hi</p>"))
    page = reader.get(f"{reader.newest}html{query}").source
    allowed = "allow-popups allow-popups-to-escape-sandbox"
    assert f'src="document{query}" sandbox="{allowed}"' in page
    answer = reader.get(f"{reader.newest}document{query}")
    rules = answer.policy
    assert rules["sandbox"] == allowed
    assert rules["default-src"] == rules["base-uri"] == "'none'"
    assert rules["form-action"] == "'none'"
    assert rules["frame-ancestors"] == "'self'"
    assert rules["img-src"] == images
    assert "script-src" not in rules
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-DNS-Prefetch-Control"] == "off"
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    ("markup", "remote"),
    [
        ('<img src="https://x.example/a.png">', True),
        ("<img src=http://x.example/a.png>", True),
        ('<img srcset = "//x.example/a.png 2x">', True),
        ('<td background="https://x.example/a.png">', True),
        ("<p style=\"background: url('https://x.example/a.png')\">", True),
        ("<style>@import 'x.css';</style>", True),
        ('<link rel="stylesheet" href="https://x.example/a.css">', True),
        ('<video poster="https://x.example/a.png">', True),
        ('<object data="https://x.example/a">', True),
        ('<a href="https://x.example/">link</a>', False),
        ("<p>https://x.example/a.png</p>", False),
        ("", False),
    ],
)
def test_content_from_elsewhere_is_noticed(markup: str, *, remote: bool) -> None:
    parts = read_parts(received(message(html=markup)))
    assert parts.has_remote_content is remote


def test_links_to_resources_are_harmless_until_asked() -> None:
    mail = message(html='<LINK rel="preconnect" href="https://x.example">')
    assert "<x-LINK rel" in document(mail)
    assert "<LINK rel" in document(mail, remote=True)


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ("", ""),
        ("<p>x", '<base target="_blank"><p>x'),
        (" <!DOCTYPE html><p>", '<!DOCTYPE html><base target="_blank"><p>'),
        ("<p><!doctype html>", '<base target="_blank"><p><!doctype html>'),
    ],
)
def test_links_open_new_tabs_in_the_mode_of_the_mail(markup: str, shown: str) -> None:
    assert document(message(html=markup)) == shown


def test_images_that_a_mail_brings_along_are_shown() -> None:
    markup = "<img src='cid:logo'><img src=\"CID:logo\"><img src=cid:none><p>cid:file"
    mail = message(text="")
    mail.set_content(markup, subtype="html")
    mail.add_related(b"\x89PNG", "image", "png", cid="<logo>")
    mail.add_related(b"<script>", "text", "html", cid="<file>")
    data = "data:image/png;base64,iVBORw=="
    assert document(mail) == (
        f'<base target="_blank"><img src=\'{data}\'><img src="{data}">'
        "<img src=cid:none><p>cid:file"
    )


@pytest.mark.parametrize(
    ("html", "text", "url"),
    [
        ("<a href='http://x.example/?a=1'>x", "http://y.example/", "x.example/?a=1"),
        ("<a href=mailto:x@example.com>x", "See http://y.example/.", "y.example/."),
        ("", "No link.", "example.com/"),
    ],
)
def test_a_click_is_on_the_first_link_of_a_mail(html: str, text: str, url: str) -> None:
    event = new_event(received(message(text=text, html=html)), "clicked", ADA)
    assert str(event.data["destination_url"]).partition("://")[2] == url


# Attachments


def test_an_attachment_is_downloaded_as_it_was_sent(reader: Reader) -> None:
    mail = message()
    mail.add_attachment(bytes(range(256)), "image", "png", filename='Prüf"?%ung.png')
    reader.deliver(mail)
    path = reader.newest
    assert 'Prüf"?%ung.png image/png, 256 bytes' in reader.get(path).text
    image = reader.get(f"{path}attachments/0")
    assert image.body == bytes(range(256))
    assert image.headers["Content-Type"] == "image/png"
    assert image.headers["Content-Disposition"] == (
        'attachment; filename="Pr_f___ung.png"; '
        "filename*=UTF-8''Pr%C3%BCf%22%3F%25ung.png"
    )
    assert image.policy == {"sandbox": "", "default-src": "'none'"}
    assert reader.get(f"{path}attachments/1").status == 404


def test_an_attached_message_keeps_its_octets() -> None:
    inner = b"Subject:  two  blanks\r\nX-Odd:\tab\r\n\r\nBody\r\n"
    part = attached(
        b"Subject: x\r\n" + MIXED + b"--b\r\nContent-Type: text/plain\r\n\r\nHi\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\n\r\n" + inner + b"\r\n--b--\r\n"
    )
    assert (part.octets, part.safe_name) == (inner, "attachment.eml")


@pytest.mark.parametrize(
    ("kind", "safe"),
    [
        ("text/csv", True),
        ("application/pdf", True),
        ("image/jpeg", True),
        ("text/html", False),
        ("image/svg+xml", False),
        ("application/x-msdownload", False),
    ],
)
def test_a_type_that_a_browser_runs_is_octets(kind: str, *, safe: bool) -> None:
    mail = message()
    mail.add_attachment(b"<script>", *kind.split("/"), filename="a")
    part = attached(mail)
    assert part.content_type == kind
    assert part.safe_type == (kind if safe else "application/octet-stream")


@pytest.mark.parametrize(
    ("kind", "name", "safe"),
    [
        ("text/plain", "../../etc/passwd", "passwd"),
        ("text/plain", "C:\\Windows\\win.ini", "win.ini"),
        ("text/plain", ".bashrc", "bashrc"),
        ("text/plain", "a\r\nSet-Cookie: b", "a__Set-Cookie: b"),
        ("text/plain", "exe\N{RIGHT-TO-LEFT OVERRIDE}fdp.exe", "exe_fdp.exe"),
        ("text/plain", "x" * 300 + ".pdf", "x" * 90 + ".pdf"),
        ("text/plain", "x." + "y" * 300, "x." + "y" * 9),
        ("text/plain", "..", "attachment.txt"),
        ("application/zip", "", "attachment.bin"),
    ],
)
def test_the_name_of_a_download_is_safe(kind: str, name: str, safe: str) -> None:
    coded = "".join(f"%{octet:02X}" for octet in name.encode())
    head = (
        f"Content-Type: {kind}\r\nContent-Disposition: attachment;\r\n"
        f" filename*=utf-8''{coded}\r\n\r\nx"
    )
    assert attached(head.encode()).safe_name == safe


# Odd messages


def leaves(content: bytes) -> list[tuple[str, bytes]]:
    parts = read_parts(received(content))
    bodies = [part for part in (parts.html, parts.text) if part]
    return [(part.content_type, part.octets) for part in [*bodies, *parts.attachments]]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", []),
        (b"Subject: x", [(TEXT, b"")]),
        (b"\r\nbody", [(TEXT, b"body")]),
        (b"Subject: x\n\nbody", [(TEXT, b"body")]),
        (MIXED + b"no delimiter", [("multipart/mixed", b"no delimiter")]),
        (MIXED + b"--b\r\n\r\nnever closed", [(TEXT, b"never closed")]),
        (MIXED + b"--b--", [("multipart/mixed", b"--b--")]),
        (b"Content-Type: multipart/mixed\r\n\r\n--", [("multipart/mixed", b"--")]),
        (MIXED + b"x\r\n--b \r\n\r\n1\r\n--b--\r\nepilogue", [(TEXT, b"1")]),
        (MIXED + b"--b\n\n1\n--b\n\n2\n--b--\n", [(TEXT, b"1"), (TEXT, b"2")]),
        (MIXED + b"--bb\r\n\r\n1", [("multipart/mixed", b"--bb\r\n\r\n1")]),
        (b"Content-Transfer-Encoding: base64\r\n\r\nSGk", [(TEXT, b"Hi")]),
        (b"Content-Transfer-Encoding: base64\r\n\r\nS", [(TEXT, b"S")]),
        (b"Content-Transfer-Encoding: QUOTED-PRINTABLE\r\n\r\nH=69", [(TEXT, b"Hi")]),
        (MIXED + b"--b\r\n\r\nx\r\n" * 1000, [(TEXT, b"x")] * 200),
    ],
)
def test_an_odd_message_is_read_as_far_as_possible(
    content: bytes, found: list[tuple[str, bytes]]
) -> None:
    assert leaves(content) == found


@pytest.mark.parametrize(("depth", "kind"), [(20, TEXT), (21, "multipart/mixed")])
def test_parts_within_parts_are_read_up_to_a_depth_of_20(depth: int, kind: str) -> None:
    nested = b"\r\nx"
    for number in range(depth):
        head = MIXED.replace(b"=b", b"=b%d" % number)
        nested = head + b"--b%d\r\n%s\r\n--b%d--" % (number, nested, number)
    ((found, _),) = leaves(nested)
    assert found == kind


@pytest.mark.parametrize("charset", ["none-such", "rot13", "a\0b", "utf-8", "cp1252"])
def test_a_charset_that_python_does_not_know_is_read_as_utf_8(charset: str) -> None:
    octets = "Grüße".encode("cp1252" if charset == "cp1252" else "utf-8")
    head = f'Content-Type: text/plain; charset="{charset}"\r\n\r\n'.encode()
    text = read_parts(received(head + octets)).text
    assert text
    assert text.text == "Grüße"


PIECES = [
    *(b"Content-Type: ", b"multipart/mixed", b"text/html", b"; boundary=b", b"--b"),
    *(b"Content-Disposition: attachment", b"; filename*=a", b"; filename*0=b"),
    *(b"; charset=", b"\r\n", b"\r\n\r\n", b"--b--", b"=?utf-8?b?", b"Subject: "),
    *(b"Content-Transfer-Encoding: ", b"base64", b"quoted-printable", b"\0"),
    *(b"Content-ID: <", b"\xff\xfe", b"=", b"<", b";", b'"'),
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join))
def test_any_message_can_be_read(content: bytes) -> None:
    parts = read_parts(received(content))
    parts.document(remote=False)
    for part in parts.attachments:
        assert part.safe_name
        assert "/" not in part.safe_name


def test_the_words_of_hostile_html_are_found_in_linear_time() -> None:
    assert visible_text("<" * 100_000).strip() == ""
    assert visible_text("<style" * 20_000 + ">x").strip() == ""
    assert visible_text("a<b>b</b><!-- c > d -->e").split() == ["a", "b", "d", "-->e"]


def test_scripts_and_styles_are_not_among_the_words_of_html() -> None:
    markup = "<title>T</title><style>p {</style><p>One &amp; <b>two</b></p>"
    words = visible_text(f"{markup}<script>a<b>c</script>three").split()
    assert words == ["One", "&", "two", "three"]
