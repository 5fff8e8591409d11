"""What the inbox makes of HTML, attachments and odd messages."""

from __future__ import annotations

import re
from email.message import EmailMessage
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.testing.inbox import Inbox
from django_lettermint.testing.inbox.reading import read_parts, visible_text
from tests.testing.inbox_client import Answer, deliver, get, message, paths
from tests.testing.records import received

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_lettermint.testing import Relay


@pytest.fixture
def inbox(relay: Relay) -> Iterator[Inbox]:
    with Inbox(relay, port=0) as inbox:
        yield inbox


def document(inbox: Inbox, query: str = "") -> Answer:
    (path,) = paths(inbox)
    return get(inbox, f"{path}document{query}")


def html_mail(markup: str) -> EmailMessage:
    mail = message()
    mail.add_alternative(markup, subtype="html")
    return mail


def policy(answer: Answer) -> dict[str, str]:
    directives = answer.headers["Content-Security-Policy"].split(";")
    return {
        name: value for name, _, value in (d.strip().partition(" ") for d in directives)
    }


# HTML


def test_the_frame_of_a_mail_may_do_nothing_but_open_tabs(
    relay: Relay, inbox: Inbox
) -> None:
    deliver(relay, html_mail("<p>Hi</p>"))
    (path,) = paths(inbox)

    frame = re.search(r"<iframe [^>]*>", get(inbox, path).source)

    assert frame
    allowed = "allow-popups allow-popups-to-escape-sandbox"
    assert f'sandbox="{allowed}"' in frame[0]
    assert 'src="document"' in frame[0]
    answer = document(inbox)
    rules = policy(answer)
    assert rules["sandbox"] == allowed
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["frame-ancestors"] == "'self'"
    assert "script-src" not in rules
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-DNS-Prefetch-Control"] == "off"
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "markup",
    [
        '<img src="https://x.example/a.png">',
        "<img src=http://x.example/a.png>",
        '<img srcset = "//x.example/a.png 2x">',
        '<td background="https://x.example/a.png">',
        "<p style=\"background: url('https://x.example/a.png')\">",
        "<style>@import 'x.css';</style>",
        '<link rel="stylesheet" href="https://x.example/a.css">',
        '<video poster="https://x.example/a.png">',
        '<object data="https://x.example/a">',
    ],
)
def test_what_is_elsewhere_is_loaded_only_when_asked(
    markup: str, relay: Relay, inbox: Inbox
) -> None:
    deliver(relay, html_mail(markup))
    (path,) = paths(inbox)

    page = get(inbox, path)
    asked = get(inbox, f"{path}html?remote=1")

    assert "are not loaded. Load them" in page.text
    assert 'href="html?remote=1#view"' in page.source
    assert "are not loaded" not in asked.text
    assert 'src="document?remote=1"' in asked.source
    rules = policy(document(inbox, "?remote=1"))
    assert rules["img-src"] == "data: http: https:"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "script-src" not in rules
    assert "sandbox" in rules


@pytest.mark.parametrize(
    "markup",
    ['<a href="https://x.example/">link</a>', "<p>https://x.example/a.png</p>", "<hr>"],
)
def test_a_mail_with_nothing_from_elsewhere_has_nothing_to_ask(
    markup: str, relay: Relay, inbox: Inbox
) -> None:
    deliver(relay, html_mail(markup))

    assert "are not loaded" not in get(inbox, *paths(inbox)).text


def test_links_to_resources_are_harmless_until_asked(
    relay: Relay, inbox: Inbox
) -> None:
    deliver(relay, html_mail('<LINK rel="preconnect" href="https://x.example">'))

    assert "<x-LINK rel" in document(inbox).source
    assert "<LINK rel" in document(inbox, "?remote=1").source


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ("<p>x", '<base target="_blank"><p>x'),
        (" <!DOCTYPE html><p>", '<!DOCTYPE html><base target="_blank"><p>'),
        ("<p><!doctype html>", '<base target="_blank"><p><!doctype html>'),
    ],
)
def test_links_open_new_tabs_in_the_mode_that_the_mail_asks_for(
    markup: str, shown: str, relay: Relay, inbox: Inbox
) -> None:
    deliver(relay, html_mail(markup))

    assert document(inbox).source.strip() == shown


def test_images_that_a_mail_brings_along_are_shown(relay: Relay, inbox: Inbox) -> None:
    mail = message()
    mail.clear_content()
    markup = "<img src='cid:logo'><img src=\"CID:logo\"><img src=cid:none><p>cid:file"
    mail.set_content(markup, subtype="html")
    mail.add_related(b"\x89PNG", "image", "png", cid="<logo>")
    mail.add_related(b"<script>", "text", "html", cid="<file>")
    deliver(relay, mail)

    data = "data:image/png;base64,iVBORw=="
    assert document(inbox).source.strip() == (
        f'<base target="_blank"><img src=\'{data}\'><img src="{data}">'
        "<img src=cid:none><p>cid:file"
    )


def test_html_is_shown_in_any_charset(relay: Relay, inbox: Inbox) -> None:
    deliver(
        relay,
        b"Subject: x\r\nContent-Type: text/html; charset=iso-8859-15\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
        b'<meta charset=3D"iso-8859-15">=A4 100\r\n',
    )

    assert "\N{EURO SIGN} 100" in document(inbox).source


def test_a_mail_without_html_has_an_empty_document(relay: Relay, inbox: Inbox) -> None:
    deliver(relay, message())

    assert document(inbox).body == b""


# Attachments


def attached(inbox: Inbox, number: int = 0) -> Answer:
    (path,) = paths(inbox)
    return get(inbox, f"{path}attachments/{number}")


def test_an_attachment_is_downloaded_as_it_was_sent(relay: Relay, inbox: Inbox) -> None:
    mail = message()
    mail.add_attachment(b"mint,1.50\r\n", "text", "csv", filename="invoice.csv")
    mail.add_attachment(bytes(range(256)), "image", "png", filename="logo.png")
    deliver(relay, mail)

    page = get(inbox, *paths(inbox)).text

    assert "invoice.csv text/csv, 11 bytes" in page
    assert "logo.png image/png, 256 bytes" in page
    assert attached(inbox, 0).body == b"mint,1.50\r\n"
    assert attached(inbox, 1).body == bytes(range(256))
    assert attached(inbox, 1).headers["Content-Type"] == "image/png"
    assert attached(inbox, 2).status == 404


def test_an_attached_message_keeps_its_octets(relay: Relay, inbox: Inbox) -> None:
    inner = b"Subject:  two  blanks\r\nX-Odd:\tab\r\n\r\nBody\r\n"
    deliver(
        relay,
        b"Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/plain\r\n\r\nHi\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\n\r\n" + inner + b"\r\n--b--\r\n",
    )

    assert attached(inbox).body == inner
    assert 'filename="attachment.eml"' in attached(inbox).headers["Content-Disposition"]


@pytest.mark.parametrize(
    ("kind", "served"),
    [
        ("text/csv", "text/csv"),
        ("application/pdf", "application/pdf"),
        ("image/jpeg", "image/jpeg"),
        ("text/html", "application/octet-stream"),
        ("image/svg+xml", "application/octet-stream"),
        ("application/xhtml+xml", "application/octet-stream"),
        ("text/javascript", "application/octet-stream"),
        ("application/x-msdownload", "application/octet-stream"),
    ],
)
def test_a_type_that_a_browser_might_run_is_served_as_octets(
    kind: str, served: str, relay: Relay, inbox: Inbox
) -> None:
    mail = message()
    mail.add_attachment(b"<script>", *kind.split("/"), filename="a")
    deliver(relay, mail)

    answer = attached(inbox)

    assert answer.headers["Content-Type"] == served
    assert answer.headers["Content-Disposition"].startswith("attachment; ")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert policy(answer) == {"sandbox": "", "default-src": "'none'"}
    assert f"a {kind}, 8 bytes" in get(inbox, *paths(inbox)).text


@pytest.mark.parametrize(
    ("name", "plain", "encoded"),
    [
        ("../../etc/passwd", "passwd", "passwd"),
        ("C:\\Windows\\win.ini", "win.ini", "win.ini"),
        (".bashrc", "bashrc", "bashrc"),
        ("a\r\nSet-Cookie: b", "a__Set-Cookie: b", "a__Set-Cookie%3A%20b"),
        ('a".txt', "a_.txt", "a%22.txt"),
        ("Prüfung.pdf", "Pr_fung.pdf", "Pr%C3%BCfung.pdf"),
        ("exe\N{RIGHT-TO-LEFT OVERRIDE}fdp.exe", "exe_fdp.exe", "exe_fdp.exe"),
        ("..", "attachment.bin", "attachment.bin"),
        ("x" * 300 + ".pdf", "x" * 90 + ".pdf", "x" * 90 + ".pdf"),
        ("y" * 300, "y" * 90, "y" * 90),
        ("a%2e.txt", "a_2e.txt", "a%252e.txt"),
    ],
)
def test_the_name_of_a_download_is_safe(
    name: str, plain: str, encoded: str, relay: Relay, inbox: Inbox
) -> None:
    coded = "".join(f"%{octet:02X}" for octet in name.encode())
    deliver(
        relay,
        b"Subject: x\r\nContent-Type: application/x\r\n"
        b"Content-Disposition: attachment;\r\n filename*=utf-8''"
        + coded.encode()
        + b"\r\n\r\nx\r\n",
    )

    disposition = attached(inbox).headers["Content-Disposition"]

    assert disposition == (
        f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("text/plain", "attachment.txt"),
        ("text/html", "attachment.html"),
        ("image/png", "attachment.png"),
        ("application/zip", "attachment.bin"),
    ],
)
def test_an_attachment_without_a_name_gets_one(
    kind: str, name: str, relay: Relay, inbox: Inbox
) -> None:
    head = f"Subject: x\r\nContent-Type: {kind}\r\nContent-Disposition: attachment"
    deliver(relay, f"{head}\r\n\r\nx\r\n".encode())

    assert f'filename="{name}"' in attached(inbox).headers["Content-Disposition"]


# Odd messages


def leaves(content: bytes) -> list[tuple[str, bytes]]:
    parts = read_parts(received(content))
    bodies = [part for part in (parts.html, parts.text) if part]
    return [(part.content_type, part.octets) for part in [*bodies, *parts.attachments]]


MIXED = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
TEXT = "text/plain"


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
        (MIXED + b"x\r\n--b \r\n\r\n1\r\n--b--\r\nepilogue", [(TEXT, b"1")]),
        (MIXED + b"--b\n\n1\n--b\n\n2\n--b--\n", [(TEXT, b"1"), (TEXT, b"2")]),
        (MIXED + b"--bb\r\n\r\n1", [("multipart/mixed", b"--bb\r\n\r\n1")]),
        (b"Content-Type: multipart/mixed\r\n\r\n--", [("multipart/mixed", b"--")]),
        (b"Content-Transfer-Encoding: base64\r\n\r\nSGk", [(TEXT, b"Hi")]),
        (b"Content-Transfer-Encoding: base64\r\n\r\nS", [(TEXT, b"S")]),
        (b"Content-Transfer-Encoding: QUOTED-PRINTABLE\r\n\r\nH=69", [(TEXT, b"Hi")]),
    ],
)
def test_an_odd_message_is_read_as_far_as_possible(
    content: bytes, found: list[tuple[str, bytes]]
) -> None:
    assert leaves(content) == found


def test_parts_within_parts_end_at_some_depth() -> None:
    nested = b"x"
    for number in range(1000):
        boundary = b"b%d" % number
        nested = (
            b"Content-Type: multipart/mixed; boundary=%s\r\n\r\n--%s\r\n%s\r\n--%s--"
            % (boundary, boundary, nested, boundary)
        )

    ((kind, _),) = leaves(nested)

    assert kind == "multipart/mixed"


def test_a_message_of_very_many_parts_is_cut() -> None:
    assert len(leaves(MIXED + b"--b\r\n\r\nx\r\n" * 1000)) == 200


@pytest.mark.parametrize(
    "charset", ["none-such", "rot13", "hex", "undefined", "a\0b", "idna", "utf-8"]
)
def test_a_charset_that_is_none_is_read_as_utf_8(charset: str) -> None:
    content = f'Content-Type: text/plain; charset="{charset}"\r\n\r\nGrüße'.encode()

    text = read_parts(received(content)).text

    assert text
    assert text.text == "Grüße"


@given(
    st.lists(
        st.sampled_from(
            [
                *(b"Content-Type: ", b"multipart/mixed", b"text/html", b"; boundary=b"),
                *(
                    b"Content-Disposition: attachment",
                    b"; filename*=a",
                    b"; filename*0=b",
                ),
                *(b"; charset=", b"\r\n", b"\r\n\r\n", b"--b", b"--b--", b"=?utf-8?b?"),
                *(
                    b"Content-Transfer-Encoding: ",
                    b"base64",
                    b"quoted-printable",
                    b"\0",
                ),
                *(b"Content-ID: <", b"\xff\xfe", b"=", b"<", b";", b'"', b"Subject: "),
            ]
        ),
        max_size=40,
    ).map(b"".join)
)
def test_no_message_is_too_odd_to_be_read(content: bytes) -> None:
    parts = read_parts(received(content))

    parts.document(remote=False)
    for part in parts.attachments:
        assert part.safe_name
        assert "/" not in part.safe_name


def test_the_words_of_hostile_html_are_found_in_linear_time() -> None:
    assert visible_text("<" * 100_000).strip() == ""
    assert visible_text("<style" * 20_000 + ">x").strip() == ""
    assert visible_text("a<b>b</b><!-- c > d -->e").split() == ["a", "b", "d", "-->e"]
