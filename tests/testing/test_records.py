"""`headers` and `mime` of a record: they never raise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.testing.records import received

FIELDS = st.sampled_from(
    [
        *("Cc", "From", "Sender", "Reply-To", "Message-ID", "Date", "MIME-Version"),
        *("Content-Type", "Content-Disposition", "Content-Transfer-Encoding"),
        *("Subject", "X-Any"),
    ]
)
PIECES = [
    *"\"\\<>@[]():;,.=?*'%0a \té\x00\x7f",
    *("\r\n ", "=?utf-8?q?", "?=", "*0*=", "multipart/mixed; boundary=", "attachment"),
]
VALUES = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


def test_a_field_that_cannot_be_parsed_is_its_text() -> None:
    message = received(
        b'Cc: "\r\nMessage-ID: <[7]@x>\r\nTo: b@example.com\r\n\r\nHi\r\n'
    )
    for found in (message.headers, message.mime):
        # Python 3.14 and later read it as an empty address.
        assert found["Cc"] in ('"', "<>")
        assert found["Message-ID"] == "<[7]@x>"
        assert found["To"].addresses[0].username == "b"


@given(st.lists(st.tuples(FIELDS, VALUES), max_size=5), st.binary(max_size=50))
def test_the_fields_of_any_message_can_be_looked_at(
    fields: list[tuple[str, str]], body: bytes
) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    message = received(head.encode() + b"\r\n" + body)
    for found in (message.headers, message.mime):
        assert len(found.items()) == len(found.keys())
        for part in found.walk():
            part.get_content_type()
            part.get_filename()
            part.is_attachment()


def test_parts_nested_too_deep_for_python_are_the_body_of_the_message() -> None:
    deep = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (each, each)
        for each in range(2000)
    )
    mime = received(b"Subject: deep\r\n" + deep).mime
    assert mime["Subject"] == "deep"
    assert not mime.is_multipart()
