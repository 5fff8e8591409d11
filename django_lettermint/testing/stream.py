"""The server's end of one connection: octets in, octets out, TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

#: Octets of a command line that are kept, its end included (RFC 4954 section 4).
MAX_LINE = 12288
_END = b"\r\n.\r\n"

#: Called with the number of content octets that have come so far.
Progress = Callable[[int], None]


class ConnectionEnded(Exception):
    """The client has closed the connection, or the server is going to."""


class ServerStream:
    """An accepted socket, used by one thread; other threads may only `cut()` it.

    Replies are gathered until the server has to wait for the client, so that the replies to
    a group of commands leave in one write (RFC 2920 section 3.2).
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        timeout: float | None = None,
        on_round_trip: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over the socket; `timeout` is in seconds and for each read and write."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(timeout)
        self.sock = sock
        # Taking TLS in use gives `sock` another object; this one stays, for `cut`.
        self.control = sock.dup()
        self.buffer = bytearray()
        self._output = bytearray()
        self._on_round_trip = on_round_trip
        #: Something was written since the client last wrote.
        self._answered = False

    @property
    def secure(self) -> bool:
        return isinstance(self.sock, ssl.SSLSocket)

    @property
    def tls(self) -> str:
        """Version and cipher of TLS; empty in clear."""
        cipher = self.sock.cipher() if isinstance(self.sock, ssl.SSLSocket) else None
        return f"{cipher[1]} {cipher[0]}" if cipher else ""

    def write(self, data: bytes) -> None:
        self._output += data

    def flush(self) -> None:
        if self._output:
            data = bytes(self._output)
            self._output.clear()
            self._answered = True
            self.sock.sendall(data)

    def receive(self) -> bytes:
        """Wait for octets and return them, none at the end of the connection."""
        return self.sock.recv(65536)

    def fill(self, *, awaited: bool = True) -> None:
        """Add to the buffer; `awaited`: the client sends it only after a reply."""
        self.flush()
        data = self.receive()
        if not data:
            raise ConnectionEnded
        if self._answered and awaited:
            self._on_round_trip()
        self._answered = False
        self.buffer += data

    def take(self, size: int) -> bytes:
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def read_line(self) -> bytes:
        """Return a line with its LF; one above MAX_LINE is cut in the middle."""
        while (end := self.buffer.find(b"\n")) < 0:
            del self.buffer[MAX_LINE:]
            self.fill()
        return self.take(end + 1)

    def read_dotted(self, max_size: int, progress: Progress) -> bytes | None:
        """Read up to the lone dot; return the content, its dots still stuffed.

        Returns None, with the octets thrown away, for far more than `max_size` octets.
        """
        # The line end of the DATA command counts: the dot may be the first line.
        self.buffer[:0] = b"\r\n"
        searched, too_big = 0, False
        while (end := self.buffer.find(_END, searched)) < 0:
            progress(len(self.buffer) - 2)
            searched = max(0, len(self.buffer) - 4)
            # Dot-stuffing at most doubles a message.
            if searched > 2 * max_size:
                del self.buffer[:searched]
                searched, too_big = 0, True
            self.fill()
        progress(end)
        wire = self.take(end + len(_END))[2:-3]
        return None if too_big else wire

    def read_chunk(self, size: int, max_size: int, progress: Progress) -> bytes | None:
        """Read `size` octets; return None, with the octets thrown away, above `max_size`."""
        missing = size
        while len(self.buffer) < missing:
            progress(len(self.buffer))
            if size > max_size:
                missing -= len(self.buffer)
                self.buffer.clear()
            # The client sends its chunk whether it was answered meanwhile or not.
            self.fill(awaited=False)
        progress(missing)
        chunk = self.take(missing)
        return chunk if size <= max_size else None

    def start_tls(self, context: ssl.SSLContext) -> None:
        self.flush()
        # What came in clear may be an attacker's (RFC 3207 section 6).
        self.buffer.clear()
        self.sock = context.wrap_socket(self.sock, server_side=True)

    def end_tls(self) -> None:
        """Tell the client that nothing follows, without waiting for its answer."""
        self.flush()
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(0)
            with contextlib.suppress(OSError):
                self.sock.unwrap()

    def cut(self) -> None:
        """End the connection; the thread that uses it notices at its next read or write."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # A forked process may hold a copy: only a shutdown sends the FIN at once.
        self.cut()
        self.control.close()
        self.sock.close()
