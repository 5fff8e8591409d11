"""Octets to and from a server over real sockets and TLS: strict and bounded in time."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

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
from tests.sending import cases
from tests.smtp.helpers import soon

#: More than all buffers hold.
MUCH = b"x" * 50_000_000


@contextmanager
def connected(buffers: int | None = None) -> Iterator[tuple[SMTPStream, socket.socket]]:
    """Hold a stream and the server's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.socket()
        if buffers:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    stream = SMTPStream(client)
    try:
        yield stream, server
    finally:
        stream.close()
        server.close()


class TLSServer:
    """The server's side of TLS; what it encrypts is sent when the test says so."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = server_context("good").wrap_bio(
            self._in, self._out, server_side=True
        )

    def shake_hands(self, first: bytes) -> None:
        """Complete the handshake; the first octets are in its last segment."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.socket.sendall(self._out.read())
                self._in.write(self.socket.recv(65536))
        self.socket.sendall(self._out.read() + self.encrypt(first))

    def encrypt(self, data: bytes) -> bytes:
        if data:
            self.tls.write(data)
        return self._out.read()

    def sendall(self, data: bytes) -> None:
        self.socket.sendall(self.encrypt(data))


@contextmanager
def encrypted(
    version: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED, first: bytes = b""
) -> Iterator[tuple[SMTPStream, TLSServer]]:
    """Hold a stream after its TLS handshake and the server's end of it."""
    trusting = ssl.create_default_context(cafile=ca_file())
    trusting.maximum_version = version
    with connected() as (stream, sock):
        server = TLSServer(sock)
        thread = threading.Thread(target=server.shake_hands, args=(first,))
        thread.start()
        stream.start_tls(trusting, "localhost", soon())
        thread.join(5)
        yield stream, server


def reset(server: socket.socket) -> None:
    """Close by RST."""
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()


LEAVE = pytest.mark.parametrize("leave", [socket.socket.close, reset])


def wait_readable(stream: SMTPStream) -> None:
    assert select.select([stream.socket], [], [], 5)[0]


def wait_until_input(stream: SMTPStream) -> None:
    while not stream.has_input():
        wait_readable(stream)


# -- replies ---------------------------------------------------------------------------


def test_a_reply_is_read_line_by_line() -> None:
    with connected() as (stream, server):
        server.sendall(b"250-one\r\n250 two\n354 go\r\n")
        assert stream.read_reply(soon()) == Reply(250, ("one", "two"))
        assert stream.read_reply(soon()) == Reply(354, ("go",))
        assert not stream.has_input()


def test_slow_octets_do_not_extend_the_time_limit() -> None:
    with connected() as (stream, server):
        stop = threading.Event()

        def send_slowly() -> None:
            while not stop.wait(0.02):
                server.sendall(b"x")

        thread = threading.Thread(target=send_slowly)
        thread.start()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            stream.read_reply(soon(0.2))
        assert time.monotonic() - began < 2
        stop.set()
        thread.join(5)


LINE = b"250-" + b"x" * 1020


@pytest.mark.parametrize(
    ("octets", "message"),
    [
        (b"250 " + b"x" * (MAX_LINE - 5) + b"\r\n", None),
        (b"250 " + b"x" * (MAX_LINE - 4) + b"\r\n", f"line of more than {MAX_LINE}"),
        (b"250 " + b"x" * MAX_LINE, f"line of more than {MAX_LINE}"),
        ((LINE + b"\n") * 63 + b"250 " + b"x" * 1020 + b"\n", None),
        ((LINE + b"\n") * 63 + b"250 " + b"x" * 1021 + b"\n", f"more than {MAX_REPLY}"),
        (b"250-x\r\n" * (MAX_LINES - 1) + b"250 x\r\n", None),
        (b"250-x\r\n" * MAX_LINES + b"250 x\r\n", f"{MAX_LINES} lines"),
        (b"\n", "not an SMTP reply: ''"),
    ],
    ids=["line", "line+1", "endless", "reply", "reply+1", "lines", "lines+1", "empty"],
)
def test_a_reply_beyond_a_limit_or_without_a_code_is_an_error(
    octets: bytes, message: str | None
) -> None:
    with connected() as (stream, server):
        server.sendall(octets)
        if message is None:
            assert stream.read_reply(soon()).code == 250
        else:
            with pytest.raises(ProtocolError, match=message):
                stream.read_reply(soon())


def test_the_end_of_the_longest_line_may_come_later() -> None:
    with connected() as (stream, server):
        server.sendall(b"250 " + b"x" * (MAX_LINE - 4))
        wait_until_input(stream)
        server.sendall(b"\n")
        assert stream.read_reply(soon()).code == 250


def test_a_line_cut_off_by_the_end_of_the_connection_is_an_error() -> None:
    with connected() as (stream, server):
        server.sendall(b"250 ok")
        server.close()
        with pytest.raises(ConnectionResetError, match="closed the connection"):
            stream.read_reply(soon())


def test_a_reply_that_comes_again_is_parsed_once() -> None:
    codes = [*range(200, 600), *range(200, 600)]
    with connected() as (stream, server):
        server.sendall(b"".join(b"%d this\r\n" % code for code in codes))
        replies = [stream.read_reply(soon()) for _ in codes]
        assert replies == [Reply(code, ("this",)) for code in codes]
        # As far as they are few.
        assert replies[0] is replies[400]
        assert replies[399] is not replies[799]


def test_secrets_are_redacted_wherever_the_server_echoes_them() -> None:
    with connected() as (stream, server):
        server.sendall(b"535 s3cret\r\n" * 2)
        assert stream.read_reply(soon()).text == "s3cret"
        # What was read before it was a secret is not remembered.
        stream.redact(Secret("s3cret"), Secret("czNjcmV0"))
        assert stream.read_reply(soon()).text == "***"
        server.sendall(b"535-no s3cret here\r\n535 nor czNjcmV0s3cret\r\n")
        assert stream.read_reply(soon()).lines == ("no *** here", "nor ******")
        server.sendall(b"s3cret is not SMTP\r\n")
        with pytest.raises(ProtocolError) as raised:
            stream.read_reply(soon())
        assert "s3cret" not in str(raised.value)


# -- unexpected input ------------------------------------------------------------------


def test_an_unexpected_reply_is_input_until_it_is_read_though_time_is_over() -> None:
    with connected() as (stream, server):
        assert not stream.has_input()
        server.sendall(b"421 bye\r\n")
        wait_until_input(stream)
        assert stream.has_input()
        assert stream.read_reply(soon(-1)).code == 421
        assert not stream.has_input()
        with pytest.raises(TimeoutError):
            stream.read_reply(soon(-1))


@LEAVE
def test_the_end_of_the_connection_is_input(
    leave: Callable[[socket.socket], None],
) -> None:
    with connected() as (stream, server):
        leave(server)
        wait_readable(stream)
        assert stream.has_input()
        with pytest.raises(ConnectionResetError):
            stream.read_reply(soon())


def test_the_end_of_tls_is_input_although_the_connection_stays() -> None:
    with encrypted() as (stream, server):
        server.sendall(b"250 ok\r\n")
        with contextlib.suppress(ssl.SSLWantReadError):
            server.tls.unwrap()
        server.socket.sendall(server.encrypt(b""))
        assert stream.read_reply(soon()).code == 250
        wait_until_input(stream)
        with pytest.raises(ConnectionResetError, match="closed the connection"):
            stream.read_reply(soon())


def test_tls_records_without_data_are_no_input() -> None:
    with encrypted() as (stream, server):
        # TLS 1.3 sends its session tickets after the handshake.
        wait_readable(stream)
        assert not stream.has_input()
        server.sendall(b"250 ok\r\n")
        wait_until_input(stream)


def test_decrypted_input_is_seen_without_new_octets() -> None:
    with encrypted() as (stream, server):
        server.sendall(b"250-" + b"x" * 8000 + b"\r\n250-" + b"y" * 8000 + b"\r\n")
        server.sendall(b"250 end\r\n" + b"220 again" + b"z" * 7000 + b"\r\n")
        assert stream.read_reply(soon()).lines[2] == "end"
        assert stream.has_input()
        assert stream.read_reply(soon()).code == 220


def test_a_reply_may_come_with_the_end_of_the_handshake() -> None:
    # TLS 1.2 ends with the server's message, TLS 1.3 with the client's.
    with encrypted(ssl.TLSVersion.TLSv1_2, first=b"220 relay\r\n") as (stream, _):
        assert stream.read_reply(soon()).text == "relay"


# -- writing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "stall"), [(-1, 30), (0.1, 30), (30, 0.1)], ids=["over", "end", "stall"]
)
def test_writing_is_bounded_in_time(seconds: float, stall: float) -> None:
    with connected(buffers=4096) as (stream, server):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            stream.write(MUCH, soon(seconds), stall=stall)
        assert time.monotonic() - began < 10
        stream.close()
        assert (server.recv(100) == b"") is (seconds < 0)


def test_a_reply_does_not_end_the_wait_for_room_to_write() -> None:
    with connected(buffers=4096) as (stream, server):
        server.sendall(b"250 ok\r\n")
        wait_readable(stream)
        began = time.thread_time()
        with pytest.raises(TimeoutError):
            stream.write(MUCH, soon(0.5))
        # Otherwise it would try again and again until the time is over.
        assert time.thread_time() - began < 0.25


def test_a_write_stops_when_a_reply_has_come() -> None:
    with connected(buffers=4096) as (stream, server):
        server.sendall(b"552 too big\r\n")
        wait_readable(stream)
        # The server does not read: without the reply this would time out.
        stream.write(MUCH, soon(), stop_on_reply=True)
        assert stream.read_reply(soon()).code == 552


def test_select_is_used_where_poll_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "poll")
    with connected(buffers=4096) as (stream, server):
        with pytest.raises(TimeoutError):
            stream.read_reply(soon(0.05))
        with pytest.raises(TimeoutError):
            stream.write(MUCH, soon(0.2))
        server.sendall(b"552 too big\r\n")
        stream.write(MUCH, soon(), stop_on_reply=True)
        assert stream.read_reply(soon()).code == 552


# -- addresses and closing -------------------------------------------------------------


def test_a_stream_knows_its_own_address_and_whether_it_is_encrypted() -> None:
    with connected() as (stream, _):
        assert (stream.local_address, stream.encrypted) == ("127.0.0.1", False)
    with encrypted() as (stream, _):
        assert stream.encrypted


def test_a_closed_stream_neither_reads_nor_writes() -> None:
    with connected() as (stream, server):
        server.sendall(b"250 ok\r\n")
        stream.close()
        with pytest.raises(ConnectionResetError, match="closed"):
            stream.read_reply(soon())
        with pytest.raises(OSError, match="descriptor"):
            stream.write(b"x", soon())
        assert stream.has_input()


def test_closing_a_tls_stream_sends_no_octet() -> None:
    with encrypted() as (stream, server):
        stream.has_input()  # session tickets, which unread would lead to RST
        stream.close()
        assert server.socket.recv(100) == b""


# -- OpenSSL's error queue -------------------------------------------------------------


class ErrorQueue:
    """The OpenSSL error queue of this thread, in the library that `ssl` uses."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(sys.modules["_ssl"].__file__)
            self._library.ERR_peek_error.restype = ctypes.c_ulong
            self._functions = [
                getattr(self._library, name)
                for name in ("ERR_new", "ERR_set_debug", "ERR_set_error")
            ]
        except (AttributeError, OSError, TypeError) as error:
            pytest.skip(f"OpenSSL 3's ERR_* functions are not to be found: {error}")

    def put(self, library: int, reason: int) -> None:
        new, set_debug, set_error = self._functions
        new()
        set_debug(b"another.c", 1, b"another")
        set_error(library, reason, None)
        assert self.peek()

    def peek(self) -> int:
        return int(self._library.ERR_peek_error())

    def clear(self) -> None:
        self._library.ERR_clear_error()


@pytest.fixture
def error_queue() -> Iterator[ErrorQueue]:
    queue = ErrorQueue()
    queue.clear()
    yield queue
    queue.clear()


# ERR_LIB_SYS, as a broken connection leaves it, and ERR_LIB_SSL.
@pytest.mark.parametrize(
    "stale", cases(broken_pipe=(2, errno.EPIPE), signature=(20, 123))
)
def test_a_stale_openssl_error_breaks_nothing(
    error_queue: ErrorQueue, stale: tuple[int, int]
) -> None:
    error_queue.put(*stale)
    with encrypted() as (stream, server):
        error_queue.put(*stale)
        stream.write(b"NOOP\r\n", soon())
        error_queue.clear()  # the server's side is in this thread as well
        for count in range(3):
            server.sendall(b"250 %d\r\n" % count)
            error_queue.put(*stale)
            assert stream.read_reply(soon()).text == str(count)
        # The worst place: OpenSSL needs more octets, and looks into the queue for why.
        record = server.encrypt(b"250 ok\r\n")
        for octet in record[:-1]:
            server.socket.sendall(bytes([octet]))
            wait_readable(stream)
            error_queue.put(*stale)
            assert not stream.has_input()
        server.socket.sendall(record[-1:])
        assert stream.read_reply(soon()).code == 250
        # It hides no broken record, whatever the version of OpenSSL calls that.
        error_queue.put(*stale)
        server.socket.sendall(b"\x17\x03\x03\x00\x20" + b"?" * 32)
        with pytest.raises(ssl.SSLError, match="RECORD_"):
            stream.read_reply(soon())


@LEAVE
def test_a_broken_connection_leaves_no_openssl_error(
    error_queue: ErrorQueue, leave: Callable[[socket.socket], None]
) -> None:
    with encrypted() as (stream, server):
        leave(server.socket)
        with pytest.raises(OSError, match=r"(?i)reset|pipe|closed"):
            stream.write(MUCH, soon())
        with pytest.raises(OSError, match=r"(?i)reset|closed|broken"):
            stream.read_reply(soon())
        stream.close()
        assert error_queue.peek() == 0
