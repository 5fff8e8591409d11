"""A DNS server on loopback, with the records and the faults that a test gives it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset

#: Records as in a zone file, by name and type: {"a.test": {"A": ["192.0.2.1"]}}.
Zone = Mapping[str, Mapping[str, list[str]]]

#: What a server does to a question about such a name instead of answering it.
HANG = "hang"


class DNSServer:
    """Answers for `zone`; a name that has none below it does not exist.

    `faults` has names whose questions are answered by an RCODE, or never (HANG); "*"
    stands for all names.
    """

    def __init__(self, zone: Zone, faults: Mapping[str, str]) -> None:
        self._zone = zone
        self._faults = faults
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self._serve, name="dns-server")

    def __enter__(self) -> DNSServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # An empty datagram ends it: no message of DNS is that short.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, client = self._socket.recvfrom(65535)
            if not data:
                return
            answer = self._answer(dns.message.from_wire(data))
            if answer:
                self._socket.sendto(answer.to_wire(), client)

    def _answer(self, query: dns.message.Message) -> dns.message.Message | None:
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append(name)
        fault = self._faults.get(name) or self._faults.get("*")
        if fault == HANG:
            return None
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA
        if fault:
            answer.set_rcode(dns.rcode.from_text(fault))
        elif not any(f".{known}".endswith(f".{name}") for known in self._zone):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif values := self._zone.get(name, {}).get(kind):
            answer.answer = [
                dns.rrset.from_text(question.name, 60, "IN", kind, *values)
            ]
        return answer


@contextlib.contextmanager
def dns_server(
    zone: Zone, faults: Mapping[str, str] | None = None
) -> Iterator[DNSServer]:
    """Run a server that dnspython asks instead of this machine's."""
    with DNSServer(zone, faults or {}) as server:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], server.port
        before = dns.resolver.default_resolver
        dns.resolver.default_resolver = resolver
        try:
            yield server
        finally:
            dns.resolver.default_resolver = before
