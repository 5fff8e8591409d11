"""One accepted socket: reading, writing, waiting, all of it interruptible."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults import Play

# The client has closed its side, even if unread input is still in front of that (Linux).
_HANGUP = getattr(select, "POLLRDHUP", select.POLLHUP)


class Left(Exception):
    """The session is over: the client left, the script dropped it, or the server stops."""


class Connection:
    """A socket and its input, used by one thread; other threads may only `act` and `stop`."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = number
        self.sock = sock
        self.buffer = bytearray()
        self.received = bytearray()
        self._eof = self._rst = self._stopping = False
        self._wake, self._waker = socket.socketpair()
        self._jobs: deque[tuple[Play, threading.Event]] = deque()
        self._running: list[threading.Event] = []
        self._ended = threading.Event()

    # Called by the session's own thread.

    def write(self, data: bytes) -> None:
        self.sock.sendall(data)

    def write_under_tls(self, data: bytes) -> None:
        os.write(self.sock.fileno(), data)

    def pause(self, seconds: float | None = None) -> None:
        self._acknowledge()
        if self._poll(_HANGUP, seconds):
            raise Left

    def wait_for_input(self) -> None:
        if not self.buffer:
            self._poll(select.POLLIN, None)

    def wait_for(self, event: threading.Event) -> None:
        while not event.wait(0.02):
            self.pause(0)

    def drop(self, *, rst: bool = False) -> None:
        self._rst = rst
        raise Left

    def fill(self) -> None:
        """Read what is there, or wait for it."""
        if not self._pending():
            self._poll(select.POLLIN, None)
        data = b"" if self._eof else self.sock.recv(65536)
        if not data:
            self._eof = True
            raise Left
        self.received += data
        self.buffer += data

    def take(self, limit: int) -> bytes:
        if not self.buffer:
            self.fill()
        data = bytes(self.buffer[:limit])
        del self.buffer[:limit]
        return data

    def read_line(self) -> bytes:
        """Return what came up to and with the next LF, whatever stands in front of it."""
        while (end := self.buffer.find(b"\n")) < 0:
            self.fill()
        return self.take(end + 1)

    def more_input(self) -> bool:
        """Tell whether the client sent more than was read, without waiting."""
        # A bare end of input is not more input: leave it to the next read.
        readable = (
            self._pending() or self._poll(select.POLLIN | _HANGUP, 0) == select.POLLIN
        )
        if readable and not self.buffer:
            with contextlib.suppress(Left):
                self.fill()
        return bool(self.buffer)

    def handshake(self, context: ssl.SSLContext) -> None:
        # In two steps: `stop` must find the socket while the handshake waits for the client.
        self.sock = context.wrap_socket(
            self.sock, server_side=True, do_handshake_on_connect=False
        )
        if self._stopping:
            raise Left
        self.sock.do_handshake()

    def close(self) -> None:
        if self._rst:
            self.sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        else:
            # A forked process may hold a copy: only shutdown sends the FIN now.
            self._shutdown()
        for sock in (self.sock, self._wake, self._waker):
            sock.close()
        self._ended.set()
        self._acknowledge()

    # Called by other threads.

    def act(self, play: Play, timeout: float = 5.0) -> None:
        """Have the session's thread do this as soon as it waits for its client."""
        done = threading.Event()
        self._jobs.append((play, done))
        self._notify()
        while not done.wait(0.02):
            timeout -= 0.02
            if self._ended.is_set():
                return
            if timeout < 0:
                raise TimeoutError(f"connection {self.number} is too busy to act")

    def stop(self) -> None:
        self._stopping = True
        self._notify()
        self._shutdown()

    def left(self) -> bool:
        """Tell whether the client has closed this connection, seen or not seen by its thread."""
        fd = self.sock.fileno()
        if fd < 0:  # on its way from a plain socket to a TLS one
            return False
        poller = select.poll()
        poller.register(fd, _HANGUP)
        return bool(poller.poll(0))

    # Below: how it is done.

    def _pending(self) -> bool:
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    def _poll(self, mask: int, seconds: float | None) -> int:
        """Return the socket's events, 0 when time is up, and do jobs meanwhile."""
        poller = select.poll()
        poller.register(self.sock, mask)
        poller.register(self._wake, select.POLLIN)
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            rest = None if until is None else max(0.0, until - time.monotonic())
            ready = dict(poller.poll(None if rest is None else rest * 1000))
            if self._stopping:
                raise Left
            if self._wake.fileno() in ready:
                self._wake.recv(4096)
                self._do_jobs()
            if events := ready.get(self.sock.fileno(), 0):
                return events
            if rest == 0:
                return 0

    def _do_jobs(self) -> None:
        while self._jobs:
            play, done = self._jobs.popleft()
            self._running.append(done)
            play(self)
            self._acknowledge()

    def _acknowledge(self) -> None:
        while self._running:
            self._running.pop().set()

    def _notify(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"!")

    def _shutdown(self) -> None:
        # Not SSLSocket.shutdown: that one makes the socket forget its TLS under a running thread.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
