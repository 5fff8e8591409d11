"""Bytes to and from a relay: one socket, strict replies, every wait bounded."""

from __future__ import annotations

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
    from django_lettermint.secret import Secret

#: Octets written between two looks for an early refusal.
_STRIDE = 64 * 1024
_RECEIVE = 16 * 1024
_KNOWN_REPLIES = 100

#: All streams of this process, and after a fork those of its parent.
_open_wires: WeakSet[Wire] = WeakSet()


class Wire:
    """A TCP or TLS stream on which the other side answers in lines.

    `until` is a moment of `time.monotonic()`; each method raises TimeoutError beyond
    it, and OSError (ProtocolError, ssl.SSLError) when the stream is broken. After any
    error the stream is of no use but to be closed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        #: Received, not yet parsed. Empty whenever no reply is owed; if it is not, the
        #: server has spoken out of turn.
        self._received = bytearray()
        #: The server has closed its side: nothing will follow what is in `_received`.
        self._ended = False
        #: What a reply must not show, should the relay echo it.
        self._hidden: list[Secret] = []
        #: Replies by their lines, which hold nothing that is to be hidden.
        self._known: dict[tuple[bytes, ...], Reply] = {}
        self._poll = _poller(sock)
        _open_wires.add(self)

    @property
    def encrypted(self) -> bool:
        """Return whether TLS was begun; nothing is said in clear from then on."""
        return isinstance(self.socket, ssl.SSLSocket)

    def start_tls(
        self, context: ssl.SSLContext, host: str, until: float
    ) -> ssl.SSLSocket:
        """Encrypt the stream; raise ssl.SSLError unless host and certificate agree."""
        # In two steps: an interrupt during the handshake must find the socket here.
        encrypted = context.wrap_socket(
            self.socket, server_hostname=host, do_handshake_on_connect=False
        )
        self.socket = encrypted
        self._poll = _poller(encrypted)
        self.check_time(until)
        encrypted.do_handshake()
        return encrypted

    def hide(self, *secrets: Secret) -> None:
        """Replace these texts by *** wherever the relay echoes them."""
        self._hidden += secrets
        self._known.clear()

    def write(
        self,
        data: bytes,
        until: float,
        *,
        stall: float = float("inf"),
        heed: bool = False,
    ) -> None:
        """Write all octets, each stride of them within `stall` seconds.

        With `heed`, stop when the server speaks in between.
        """
        view = memoryview(data)
        while view:
            self.check_time(min(until, time.monotonic() + stall))
            view = view[self.socket.send(view[:_STRIDE]) :]
            if heed and view and self.has_input():
                return

    def read_reply(self, until: float) -> Reply:
        """Read one complete reply."""
        lines: list[bytes] = []
        size = 0
        while True:
            line = self._read_line(until)
            size += len(line)
            lines.append(line)
            if size > replies.MAX_REPLY or len(lines) > replies.MAX_LINES:
                raise ProtocolError(
                    f"a reply of more than {replies.MAX_REPLY} octets or "
                    f"{replies.MAX_LINES} lines"
                )
            if replies.is_last(line):
                return self._parsed(tuple(lines))

    def has_input(self) -> bool:
        """Look, without waiting, whether the server has spoken or closed."""
        if self._received or self._ended:
            return True
        pending = isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()
        if not pending and not self._poll():
            return False
        self.socket.settimeout(0)
        try:
            self._receive()
        except (BlockingIOError, ssl.SSLWantReadError):
            # A TLS record without data, such as a session ticket.
            return False
        except OSError:
            self._ended = True
        return True

    def check_time(self, until: float) -> None:
        """Limit the next operation on the socket; raise TimeoutError beyond `until`."""
        remaining = until - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        self.socket.settimeout(remaining)

    def close(self) -> None:
        """Close the descriptor without a further octet, not even TLS's goodbye.

        Safe on a socket that a parent process still uses.
        """
        self._ended = True
        self.socket.close()
        _open_wires.discard(self)

    def _read_line(self, until: float) -> bytes:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > replies.MAX_LINE:
                break
            if self._ended:
                raise ConnectionResetError("the server closed the connection")
            self.check_time(until)
            self._receive()
        if not 0 <= end <= replies.MAX_LINE:
            raise ProtocolError(f"a line of more than {replies.MAX_LINE} octets")
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line.removesuffix(b"\r")

    def _receive(self) -> None:
        data = self.socket.recv(_RECEIVE)
        self._received += data
        self._ended = not data

    def _parsed(self, lines: tuple[bytes, ...]) -> Reply:
        # A server says few different things, over and over again.
        reply = self._known.get(lines)
        if reply is None:
            censored = tuple(map(self._censored, lines))
            reply = replies.parse(censored)
            if censored == lines and len(self._known) < _KNOWN_REPLIES:
                self._known[lines] = reply
        return reply

    def _censored(self, line: bytes) -> bytes:
        for secret in self._hidden:
            line = line.replace(secret.reveal().encode(), b"***")
        return line


def _poller(sock: socket.socket) -> Callable[[], object]:
    try:
        poll = select.poll()
    except AttributeError:  # eventlet and Windows have no poll()
        return lambda: select.select([sock], [], [], 0)[0]
    poll.register(sock, select.POLLIN)
    return lambda: poll.poll(0)


def close_inherited() -> None:
    """Close what a forked process has from its parent, without a further octet."""
    for wire in tuple(_open_wires):
        wire.close()
