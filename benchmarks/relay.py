"""A small SMTP relay in a process of its own, which counts what it sees.

    python benchmarks/relay.py CA_FILE

Prints a line of JSON with its ports: `starttls`, `tls` and `control`. A line of JSON to the
control port sets options (`think`: seconds that it takes over each message) and is
answered by the counters since the line before.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections import Counter

import trustme

FEATURES = ("PIPELINING", "8BITMIME", "SIZE 99999999", "SMTPUTF8", "CHUNKING")
_ANSWERS = {
    b"MAIL": b"250 2.1.0 Ok\r\n",
    b"RCPT": b"250 2.1.5 Ok\r\n",
    b"RSET": b"250 2.0.0 Ok\r\n",
    b"NOOP": b"250 2.0.0 Ok\r\n",
    b"AUTH": b"235 2.7.0 Ok\r\n",
}
_DOT = b"\r\n.\r\n"

counters: Counter[str] = Counter()
options = {"think": 0.0}


class Session:
    """One connection: reads what there is, answers all of it at once."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        context: ssl.SSLContext | None,
    ) -> None:
        self.reader, self.writer, self.context = reader, writer, context
        self.buffer = bytearray()
        #: Octets of a chunk still to come; None within DATA.
        self.missing: int | None = 0
        #: Where to look on for the end of DATA.
        self.searched = 0

    async def serve(self) -> None:
        counters["connections"] += 1
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.writer.write(b"220 bench ESMTP\r\n")
        try:
            while data := await self.reader.read(256 * 1024):
                self.buffer += data
                if answers := [each async for each in self.answers()]:
                    # In the midst of a chunk, nobody waits for these.
                    counters["turns"] += not self.missing
                    self.writer.write(b"".join(answers))
                    await self.writer.drain()
                    if answers[-1].startswith(b"221"):
                        break
                    if answers[-1].startswith(b"220") and self.context:
                        await self.writer.start_tls(self.context)
                        self.context = None
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            self.writer.close()

    async def answers(self):
        while True:
            if self.missing is None:
                end = self.buffer.find(_DOT, max(0, self.searched - 5))
                self.searched = len(self.buffer)
                if end < 0:
                    return
                del self.buffer[: end + len(_DOT)]
                self.missing = 0
                yield await self.taken()
            elif self.missing:
                if len(self.buffer) < self.missing:
                    return
                del self.buffer[: self.missing]
                self.missing = 0
                yield await self.taken()
            end = self.buffer.find(b"\n")
            if end < 0:
                return
            line = bytes(self.buffer[: end + 1])
            del self.buffer[: end + 1]
            if answer := self.answer(line):
                yield answer

    async def taken(self) -> bytes:
        if options["think"]:
            await asyncio.sleep(options["think"])
        counters["messages"] += 1
        return b"250 2.0.0 Ok: queued as %d\r\n" % counters["messages"]

    def answer(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        if verb == b"DATA":
            # The line end before a lone dot may be DATA's own.
            self.missing, self.searched = None, 0
            return b"354 Go\r\n"
        if verb == b"BDAT":
            self.missing = int(line.split()[1])
            return b""
        if verb == b"EHLO":
            offers = [*FEATURES, "STARTTLS" if self.context else "AUTH PLAIN LOGIN"]
            lines = [f"250-{each}" for each in ("bench", *offers)]
            lines[-1] = lines[-1].replace("-", " ", 1)
            return "".join(f"{each}\r\n" for each in lines).encode()
        if verb == b"STAR":
            return b"220 2.0.0 Go\r\n"
        if verb == b"QUIT":
            return b"221 2.0.0 Bye\r\n"
        return _ANSWERS.get(verb, b"500 5.5.2 What?\r\n")


async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        options.update(json.loads(line))
        writer.write(json.dumps(counters).encode() + b"\n")
        counters.clear()
        await writer.drain()
    writer.close()


async def main(ca_file: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)

    async def starttls(reader, writer):
        await Session(reader, writer, context).serve()

    async def tls(reader, writer):
        await Session(reader, writer, None).serve()

    servers = {
        "starttls": await asyncio.start_server(starttls, "127.0.0.1", 0),
        "tls": await asyncio.start_server(tls, "127.0.0.1", 0, ssl=context),
        "control": await asyncio.start_server(control, "127.0.0.1", 0),
    }
    ports = {name: each.sockets[0].getsockname()[1] for name, each in servers.items()}
    print(json.dumps(ports), flush=True)
    await asyncio.gather(*(each.serve_forever() for each in servers.values()))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
