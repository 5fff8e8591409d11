"""Bytes to and from a server over real sockets: strict, bounded, closed for good."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_lettermint.conf import Secret
from django_lettermint.smtp.replies import (
    MAX_LINE,
    MAX_LINES,
    MAX_REPLY,
    ProtocolError,
    Reply,
)
from django_lettermint.smtp.stream import SMTPStream
from tests.certificates import ca_file, server_context
from tests.smtp.test_replies import code_of


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


@contextmanager
def connected(rcvbuf: int | None = None) -> Iterator[tuple[SMTPStream, socket.socket]]:
    """Hold a wire, and the server's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if rcvbuf:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    wire = SMTPStream(client)
    try:
        yield wire, server
    finally:
        wire.close()
        server.close()


@contextmanager
def encrypted() -> Iterator[tuple[SMTPStream, ssl.SSLSocket]]:
    """Hold a wire after its TLS handshake, and the server's end of it."""
    ends: list[ssl.SSLSocket] = []
    context = server_context("good")
    trusting = ssl.create_default_context(cafile=ca_file())
    with connected() as (wire, server):

        def answer() -> None:
            # An end without TLS's goodbye shall be an error there.
            end = context.wrap_socket(
                server, server_side=True, suppress_ragged_eofs=False
            )
            ends.append(end)

        thread = threading.Thread(target=answer)
        thread.start()
        wire.start_tls(trusting, "localhost", soon())
        thread.join(5)
        with ends[0] as end:
            yield wire, end


def reset(server: socket.socket) -> None:
    """Close by RST."""
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()


def wait_readable(wire: SMTPStream) -> None:
    assert select.select([wire.socket], [], [], 5)[0]


def test_a_reply_is_read_line_by_line() -> None:
    with connected() as (wire, server):
        server.sendall(b"250-one\r\n250 two\r\n354 go\r\n")
        assert wire.read_reply(soon()) == Reply(250, ("one", "two"))
        assert wire.read_reply(soon()) == Reply(354, ("go",))
        assert not wire.has_input()


def test_a_reply_may_come_octet_by_octet() -> None:
    with connected() as (wire, server):

        def speak() -> None:
            for octet in b"250 slow\r\n":
                server.sendall(bytes([octet]))

        thread = threading.Thread(target=speak)
        thread.start()
        assert wire.read_reply(soon()) == Reply(250, ("slow",))
        thread.join(5)


def test_octets_that_trickle_do_not_renew_the_time() -> None:
    with connected() as (wire, server):
        stop = threading.Event()

        def speak() -> None:
            while not stop.wait(0.02):
                server.sendall(b"x")

        thread = threading.Thread(target=speak)
        thread.start()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            wire.read_reply(soon(0.2))
        assert time.monotonic() - began < 2
        stop.set()
        thread.join(5)


@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_a_line_is_cut_at_its_limit_whether_or_not_it_ends(end: bytes) -> None:
    with connected() as (wire, server):
        server.sendall(b"250 " + b"x" * MAX_LINE + end)
        with pytest.raises(ProtocolError, match=f"line of more than {MAX_LINE}"):
            wire.read_reply(soon())


def test_a_line_up_to_the_limit_is_read() -> None:
    with connected() as (wire, server):
        server.sendall(b"250 " + b"x" * (MAX_LINE - 6) + b"\r\n")
        assert len(wire.read_reply(soon()).lines[0]) == MAX_LINE - 6


def test_a_reply_without_end_is_cut_at_its_limit() -> None:
    with connected() as (wire, server):
        line = b"250-" + b"x" * 1996 + b"\r\n"
        server.sendall(line * (MAX_REPLY // 2000 + 1))
        with pytest.raises(ProtocolError, match=f"reply of more than {MAX_REPLY}"):
            wire.read_reply(soon())


def test_a_reply_of_too_many_lines_is_refused_however_short_they_are() -> None:
    with connected() as (wire, server):
        server.sendall(b"250-x\r\n" * MAX_LINES + b"250 x\r\n")
        with pytest.raises(ProtocolError, match=f"{MAX_LINES} lines"):
            wire.read_reply(soon())


def test_a_line_that_the_server_does_not_end_before_it_leaves_is_a_loss() -> None:
    with connected() as (wire, server):
        server.sendall(b"250 ok")
        server.close()
        with pytest.raises(ConnectionResetError, match="closed the connection"):
            wire.read_reply(soon())


def test_a_reply_that_is_there_is_read_though_time_is_over() -> None:
    with connected() as (wire, server):
        server.sendall(b"552 early\r\n")
        wait_readable(wire)
        assert wire.has_input()
        assert wire.read_reply(soon(-1)) == Reply(552, ("early",))
        with pytest.raises(TimeoutError):
            wire.read_reply(soon(-1))


def test_a_reply_means_the_same_however_often_it_is_said() -> None:
    codes = range(200, 600)
    said = [b"%d this\r\n" % code for code in (*codes, *codes)]
    with connected() as (wire, server):
        server.sendall(b"".join(said))
        heard = [wire.read_reply(soon()) for _ in said]
        assert heard == [Reply(code, ("this",)) for code in (*codes, *codes)]


def test_a_secret_is_hidden_wherever_the_server_echoes_it() -> None:
    with connected() as (wire, server):
        wire.redact(Secret("s3cret"), Secret("czNjcmV0"))
        server.sendall(b"535-no s3cret here\r\n535 nor czNjcmV0s3cret\r\n")
        assert wire.read_reply(soon()).lines == ("no *** here", "nor ******")
        server.sendall(b"s3cret is not SMTP\r\n")
        with pytest.raises(ProtocolError) as raised:
            wire.read_reply(soon())
        assert "s3cret" not in str(raised.value)


def test_silence_is_no_input() -> None:
    with connected() as (wire, _):
        assert not wire.has_input()


def test_a_word_out_of_turn_is_input_until_it_is_read() -> None:
    with connected() as (wire, server):
        server.sendall(b"421 bye\r\n")
        wait_readable(wire)
        assert wire.has_input()
        assert wire.has_input()
        assert wire.read_reply(soon()).code == 421
        assert not wire.has_input()


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_the_end_of_the_connection_is_input(leave: object) -> None:
    assert callable(leave)
    with connected() as (wire, server):
        leave(server)
        wait_readable(wire)
        assert wire.has_input()
        with pytest.raises(ConnectionResetError):
            wire.read_reply(soon())


def test_tls_records_without_data_are_no_input() -> None:
    with encrypted() as (wire, server):
        # TLS 1.3 sends its session tickets after the handshake.
        wait_readable(wire)
        assert not wire.has_input()
        server.sendall(b"250 ok\r\n")
        wait_readable(wire)
        assert wire.has_input()


def test_input_that_tls_has_decrypted_already_is_seen() -> None:
    with encrypted() as (wire, server):
        server.sendall(b"250-" + b"x" * 8000 + b"\r\n250-" + b"y" * 8000 + b"\r\n")
        server.sendall(b"250 end\r\n" + b"220 again" + b"z" * 7000 + b"\r\n")
        assert wire.read_reply(soon()).lines[2] == "end"
        assert wire.has_input()
        assert wire.read_reply(soon()).code == 220


def test_all_octets_are_written() -> None:
    data = bytes(range(256)) * 4096
    with connected() as (wire, server):
        received = bytearray()

        def listen() -> None:
            while len(received) < len(data):
                received.extend(server.recv(65536))

        thread = threading.Thread(target=listen)
        thread.start()
        wire.write(data, soon())
        thread.join(5)
        assert received == data


def test_nothing_is_written_when_time_is_over() -> None:
    with connected() as (wire, server):
        with pytest.raises(TimeoutError):
            wire.write(b"too late", soon(-1))
        wire.close()
        assert server.recv(100) == b""


def test_a_server_that_stops_reading_is_left_after_a_while() -> None:
    with connected(rcvbuf=4096) as (wire, _):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            wire.write(b"x" * 50_000_000, soon(30), stall=0.1)
        assert time.monotonic() - began < 10


def test_a_write_stops_when_the_server_speaks_in_between() -> None:
    with connected() as (wire, server):
        server.sendall(b"552 too big\r\n")
        wait_readable(wire)
        # Nobody reads: without an ear for the server, this would not end.
        wire.write(b"x" * 50_000_000, soon(), stop_on_reply=True)
        assert wire.read_reply(soon()).code == 552


def test_a_closed_wire_writes_nothing_and_reads_nothing() -> None:
    with connected() as (wire, _):
        wire.close()
        assert wire.has_input()
        with pytest.raises(OSError, match="descriptor"):
            wire.write(b"x", soon())
        with pytest.raises(ConnectionResetError):
            wire.read_reply(soon())


def test_closing_tls_sends_no_octet() -> None:
    with encrypted() as (wire, server):
        wire.close()
        # A goodbye of TLS would end the stream properly instead.
        with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
            server.recv(100)


def test_a_certificate_for_another_host_stops_the_handshake() -> None:
    context = server_context("wrong_host")
    trusting = ssl.create_default_context(cafile=ca_file())
    with connected() as (wire, server):

        def answer() -> None:
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                context.wrap_socket(server, server_side=True)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ssl.SSLCertVerificationError):
            wire.start_tls(trusting, "localhost", soon())
        wire.close()
        thread.join(5)


def test_a_handshake_that_gets_no_answer_ends_in_time() -> None:
    trusting = ssl.create_default_context(cafile=ca_file())
    with connected() as (wire, _), pytest.raises(TimeoutError):
        wire.start_tls(trusting, "localhost", soon(0.1))


def test_a_platform_without_poll_uses_select(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "poll")
    with connected() as (wire, server):
        assert not wire.has_input()
        server.sendall(b"250 ok\r\n")
        wait_readable(wire)
        assert wire.has_input()


def judge(octets: bytes) -> list[int]:
    """Return the codes of the proper replies that octets begin with, by another way."""
    lines = octets.split(b"\n")[:-1]
    codes: list[int] = []
    reply: list[bytes] = []
    for line in lines:
        reply.append(line[:-1] if line.endswith(b"\r") else line)
        if reply[-1][3:4] != b"-":
            code = code_of(reply)
            if code is None:
                break
            codes.append(code)
            reply = []
    return codes


OCTETS = st.lists(
    st.one_of(
        st.sampled_from(
            [b"250", b"550", b"354", b" ok", b"-", b" ", b"\r\n", b"\n", b"\r"]
        ),
        st.binary(max_size=3),
    ),
    max_size=24,
).map(b"".join)


@given(OCTETS)
@settings(max_examples=200)
@example(b"250-a\r\n250 b\r\n550 c\r\nx")
@example(b"250-a\r\n550 b\r\n250 c\r\n")
def test_any_octets_are_the_replies_that_another_parser_sees_and_then_an_error(
    octets: bytes,
) -> None:
    with connected() as (wire, server):
        server.sendall(octets)
        server.close()
        codes = []
        with pytest.raises((ProtocolError, ConnectionResetError)):  # noqa: PT012
            while True:
                codes.append(wire.read_reply(soon()).code)
        assert codes == judge(octets)
