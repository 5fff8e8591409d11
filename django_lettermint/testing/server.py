"""Listeners on loopback, and a thread for each connection to them."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import ServerSession

#: Makes the session of an accepted socket: socket, security of the port, number from 1.
NewSession = Callable[[socket.socket, str, int], "ServerSession"]


class SMTPServer:
    """An SMTP server; its sessions speak the protocol.

    `ports` has the port for each security it serves: "tls", "starttls" or "plaintext". A
    port that is 0 is chosen by the first start() and kept.
    """

    def __init__(
        self,
        new_session: NewSession,
        ports: dict[str, int],
        *,
        host: str = "127.0.0.1",
        receive_buffer: int | None = None,
        name: str = "smtp-server",
    ) -> None:
        self.ports = ports
        self.host = host
        #: Connections accepted so far.
        self.accepted = 0
        self._new_session = new_session
        self._receive_buffer = receive_buffer
        self._name = name
        self._listeners: dict[str, socket.socket] = {}
        self._acceptor: threading.Thread
        #: Closing the first socket ends the acceptor, which watches the second.
        self._waker: socket.socket
        self._woken: socket.socket
        self._lock = threading.Lock()
        self._threads: dict[ServerSession, threading.Thread] = {}

    def listen(self) -> None:
        """Listen on all ports; raises OSError, with none open, if one cannot be had."""
        try:
            for security, port in self.ports.items():
                self._listeners[security] = self._listener(port)
        except OSError:
            self._close_listeners()
            raise
        for security, listener in self._listeners.items():
            self.ports[security] = listener.getsockname()[1]
        self._waker, self._woken = socket.socketpair()
        self._acceptor = threading.Thread(
            target=self._accept, name=f"{self._name}-accept", daemon=True
        )
        self._acceptor.start()

    def _listener(self, port: int) -> socket.socket:
        listener = socket.create_server((self.host, port), backlog=128)
        if self._receive_buffer is not None:
            listener.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer
            )
        listener.settimeout(0)
        return listener

    def close_door(self) -> None:
        """Refuse new connections; the open ones stay."""
        if self._listeners:
            self._waker.close()
            self._acceptor.join()
            self._woken.close()
            self._close_listeners()

    def _close_listeners(self) -> None:
        while self._listeners:
            _, listener = self._listeners.popitem()
            # A forked process may hold a copy, which would go on accepting.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def cut_connections(self, timeout: float = 2.0) -> bool:
        """Cut all connections; return whether their threads end within `timeout` seconds."""
        until = time.monotonic() + timeout
        with self._lock:
            threads = dict(self._threads)
        for session in threads:
            session.stream.cut()
        for thread in threads.values():
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in threads.values())

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for security, listener in self._listeners.items():
                selector.register(listener, selectors.EVENT_READ, security)
            ready: list[str | None] = []
            # Clients that connected before close_door() are served, or cut, like others.
            while None not in ready:
                ready = [key.data for key, _ in selector.select()]
                for security in filter(None, ready):
                    with contextlib.suppress(OSError):
                        sock, _ = self._listeners[security].accept()
                        self._serve(sock, security)

    def _serve(self, sock: socket.socket, security: str) -> None:
        self.accepted += 1
        session = self._new_session(sock, security, self.accepted)
        name = f"{self._name}-{self.accepted}"
        thread = threading.Thread(
            target=self._run, args=(session,), name=name, daemon=True
        )
        with self._lock:
            self._threads[session] = thread
            thread.start()

    def _run(self, session: ServerSession) -> None:
        try:
            session.run()
        finally:
            with self._lock:
                del self._threads[session]
