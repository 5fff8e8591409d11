"""A DNS server on loopback, with the records and the faults that a test gives it."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset

#: Records as in a zone file, by name and type: {"a.test": {"A": ["192.0.2.1"]}}.
Zone = Mapping[str, Mapping[str, list[str]]]

#: A fault: the question is never answered.
HANG = "hang"


class DNSServer(socketserver.UDPServer):
    """Answers for `zone`; a name that has none below it does not exist.

    `faults` has names whose questions are answered by an RCODE, or never (HANG); "*"
    stands for all names.
    """

    def __init__(self, zone: Zone, faults: Mapping[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self._zone = zone
        self._faults = faults
        self.asked: list[str] = []

    def finish_request(self, request: Any, client_address: Any) -> None:
        data, sock = request
        query = dns.message.from_wire(data)
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append(name)
        fault = self._faults.get(name) or self._faults.get("*")
        if fault == HANG:
            return
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
        sock.sendto(answer.to_wire(), client_address)


@contextlib.contextmanager
def dns_server(
    zone: Zone, faults: Mapping[str, str] | None = None
) -> Iterator[DNSServer]:
    """Run a server that dnspython asks instead of this machine's."""
    before = dns.resolver.default_resolver
    with DNSServer(zone, faults or {}) as server:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], server.server_address[1]
        dns.resolver.default_resolver = resolver
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            dns.resolver.default_resolver = before
