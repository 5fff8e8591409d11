"""A TCP or TLS stream to a relay: one socket, strict replies, every wait bounded."""

from __future__ import annotations

import contextlib
import math
import re
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakSet

from . import replies
from .replies import ProtocolError, Reply

if TYPE_CHECKING:
    from django_lettermint.conf import Secret

#: Octets written between two checks for an early refusal.
_STRIDE = 64 * 1024
_RECEIVE = 64 * 1024
#: The largest TLS record (RFC 8446 section 5.1).
_RECORD = 16 * 1024
_KNOWN_REPLIES = 100
#: Seconds; longer than any sensible timeout, and within the range of `poll()`.
_DAY = 86400.0

#: Waits at most so many seconds; the result is true once the socket is ready.
_Wait = Callable[[float], object]

#: All streams of this process, and after a fork those of its parent.
_open_streams: WeakSet[SMTPStream] = WeakSet()


class ClearTextReply(OSError):
    """The server sent an SMTP reply in clear where TLS was to begin."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"the server answered in clear: {reply}")
        self.reply = reply


class SMTPStream:
    """A stream of octets to a server that replies in lines.

    The socket never blocks; each wait is a `poll()`. TLS runs on memory buffers: the
    first octets can be read before OpenSSL gets them, and no failed system call leaves
    an error in the thread's OpenSSL error queue, where another connection of this
    thread would find it (python/cpython#148594).

    `until` is a moment of `time.monotonic()`; each method raises TimeoutError beyond
    it, and OSError (ProtocolError, ssl.SSLError) when the stream is broken. After any
    error the stream can only be closed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(0.0)
        #: Set once TLS has begun; nothing is written in clear from then on.
        self.tls: ssl.SSLObject | None = None
        self._tls_in, self._tls_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        #: Received, not yet parsed. Empty whenever no reply is pending; otherwise the
        #: server has sent something unasked.
        self._received = bytearray()
        #: The server has closed its side: nothing follows what is in `_received`.
        self._ended = False
        #: Texts that no reply may show.
        self._secrets: list[Secret] = []
        #: Replaces them. A bound method, as the repr of a pattern shows the pattern.
        self._redact = re.compile(b"(?!)").sub
        #: Replies by their lines, which hold no secret.
        self._known: dict[tuple[bytes, ...], Reply] = {}
        self._readable = _waiter(sock, reading=True)
        self._writable = _waiter(sock, writing=True)
        self._readable_or_writable = _waiter(sock, reading=True, writing=True)
        _open_streams.add(self)

    @property
    def encrypted(self) -> bool:
        """Return whether TLS has begun."""
        return self.tls is not None

    @property
    def local_address(self) -> str:
        """Return this side's IP address."""
        return str(self.socket.getsockname()[0])

    def start_tls(self, context: ssl.SSLContext, host: str, until: float) -> None:
        """Encrypt the stream.

        Raises ssl.SSLError unless host and certificate agree, and ClearTextReply if the
        server answers in clear: no TLS record begins with the digit of a reply.
        """
        tls = self.tls = context.wrap_bio(
            self._tls_in, self._tls_out, server_hostname=host
        )
        greeted = False
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                # If the server has closed, its refusal may still be received.
                with contextlib.suppress(ConnectionError):
                    self._send(self._tls_out.read(), until)
            else:
                self._send(self._tls_out.read(), until)
                # The server's first reply may come with the end of its handshake.
                if behind := self._tls_in.read():
                    self._take(behind)
                return
            data = self._receive(until)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            if not greeted and data[:1] in (b"2", b"3", b"4", b"5"):
                self.tls = None
                self._received += data
                raise ClearTextReply(self.read_reply(until))
            greeted = True
            self._tls_in.write(data)

    def redact(self, *secrets: Secret) -> None:
        """Replace these texts by *** wherever the relay echoes them."""
        self._secrets += secrets
        self._redact = re.compile(  # in no variable: a debug page would show it
            b"|".join([re.escape(each.reveal().encode()) for each in self._secrets])
        ).sub
        self._known.clear()

    def write(
        self,
        data: bytes,
        until: float,
        *,
        stall: float = float("inf"),
        stop_on_reply: bool = False,
    ) -> None:
        """Write all octets, each stride of them within `stall` seconds.

        With `stop_on_reply`, return early when the server sends something meanwhile.
        """
        view = memoryview(data)
        while view:
            stride, view = view[:_STRIDE], view[_STRIDE:]
            now = time.monotonic()
            if now >= until:
                raise TimeoutError("timed out")
            limit = min(until, now + stall)
            octets: bytes | memoryview = stride
            if self.tls:
                self.tls.write(stride)
                octets = self._tls_out.read()
            self._send(octets, limit, stop_on_reply=stop_on_reply)
            if stop_on_reply and view and self.has_input():
                return

    def read_reply(self, until: float) -> Reply:
        """Read one complete reply."""
        lines: list[bytes] = []
        size = 0
        while not lines or lines[-1][3:4] == b"-":  # another line follows
            lines.append(self._read_line(until))
            size += len(lines[-1])
            if size > replies.MAX_REPLY or len(lines) > replies.MAX_LINES:
                raise ProtocolError(
                    f"a reply of more than {replies.MAX_REPLY} octets or "
                    f"{replies.MAX_LINES} lines"
                )
        # A server sends few different replies, over and over again.
        received = tuple(lines)
        reply = self._known.get(received)
        if reply is None:
            redacted = tuple([self._redact(b"***", line) for line in lines])
            reply = replies.parse(redacted)
            if redacted == received and len(self._known) < _KNOWN_REPLIES:
                self._known[received] = reply
        return reply

    def has_input(self) -> bool:
        """Return, without waiting, whether the server has sent something or closed."""
        if not self._received and not self._ended:
            try:
                self._take(self.socket.recv(_RECEIVE))
            except BlockingIOError:
                return False
            except OSError:
                self._ended = True
        return bool(self._received) or self._ended

    def close(self) -> None:
        """Close the socket without sending anything, not even TLS's close_notify.

        Safe on a socket that a parent process still uses.
        """
        self._ended = True
        self.socket.close()
        _open_streams.discard(self)

    def _read_line(self, until: float) -> bytes:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > replies.MAX_LINE:
                break
            if self._ended:
                raise ConnectionResetError("the server closed the connection")
            self._take(self._receive(until))
        if not 0 <= end <= replies.MAX_LINE:
            raise ProtocolError(f"a line of more than {replies.MAX_LINE} octets")
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line.removesuffix(b"\r")

    def _receive(self, until: float) -> bytes:
        """Wait for octets and return them as they are on the wire; b"" at the end."""
        while True:
            self._wait(self._readable, until)
            with contextlib.suppress(BlockingIOError):
                return self.socket.recv(_RECEIVE)

    def _take(self, data: bytes) -> None:
        """Keep what came, decrypted as far as its TLS records are complete."""
        if not data:
            self._ended = True
        elif self.tls is None:
            self._received += data
        else:
            _clear_openssl_errors(self.tls)
            self._tls_in.write(data)
            # A record may also hold no text, but a session ticket.
            with contextlib.suppress(ssl.SSLWantReadError):
                while not self._ended and (self._tls_in.pending or self.tls.pending()):
                    text = self.tls.read(_RECORD)
                    self._received += text
                    self._ended = not text

    def _send(
        self,
        octets: bytes | memoryview,
        until: float,
        *,
        stop_on_reply: bool = False,
    ) -> None:
        # A reply that is not to be read yet would end each wait for input at once.
        ready = self._readable_or_writable if stop_on_reply else self._writable
        while octets:
            try:
                octets = octets[self.socket.send(octets) :]
            except BlockingIOError:
                self._wait(ready, until)
                if stop_on_reply and self.has_input():
                    return

    def _wait(self, ready: _Wait, until: float) -> None:
        seconds = until - time.monotonic()
        if seconds <= 0 or not ready(seconds):
            raise TimeoutError("timed out")


def _clear_openssl_errors(tls: ssl.SSLObject) -> None:
    """Clear the thread's OpenSSL error queue, before `tls` is given new input.

    Any library, or another connection, may have left an error there: `tls.read()` would
    report it in place of SSLWantReadError. Without input nothing else can fail, and
    Python removes what it reports, except for errors of the system: those stay from
    Python 3.12.9 and 3.13.2 on. Creating an SSL object clears the queue as well, as
    handshakes do, but takes longer.
    """
    try:
        tls.read()
    except ssl.SSLWantReadError:
        pass
    except OSError:
        tls.context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="x")


def _waiter(
    sock: socket.socket, *, reading: bool = False, writing: bool = False
) -> _Wait:
    """Return a function that waits so many seconds until it can read or write."""
    if hasattr(select, "poll"):
        poll = select.poll()
        reads, writes = select.POLLIN * reading, select.POLLOUT * writing
        poll.register(sock, reads | writes)
        return lambda seconds: poll.poll(math.ceil(min(seconds, _DAY) * 1000))
    # eventlet and Windows have no poll().
    readers, writers = [sock] * reading, [sock] * writing
    return lambda seconds: any(select.select(readers, writers, [], min(seconds, _DAY)))


def close_inherited() -> None:
    """Close the streams that a forked process inherited, without sending anything."""
    for stream in tuple(_open_streams):
        stream.close()
