"""A long line to a port of this machine: a TCP proxy that holds all octets for a while.

    python benchmarks/line.py RTT PORT [PORT ...]

`RTT` is in seconds. Prints a line of JSON with one port for each given one. What arrives is
passed on half a round trip later, in order. A connection is made as by TCP's handshake: what
the client says first leaves after a round trip, and what the server says first, when the
last packet of the handshake has arrived. There is no loss, no limit of bandwidth, no slow
start and no Nagle.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys


async def carry(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    delay: float,
    not_before: float,
) -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def read() -> None:
        try:
            while data := await reader.read(256 * 1024):
                await queue.put((max(loop.time(), not_before) + delay, data))
        except ConnectionError:
            pass
        await queue.put((loop.time() + delay, b""))

    reading = loop.create_task(read())
    try:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                break
            writer.write(data)
    finally:
        reading.cancel()
        writer.close()


async def main(rtt: float, ports: list[int]) -> None:
    loop = asyncio.get_running_loop()

    async def connect(
        port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        began = loop.time()
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        for each in (writer, far_writer):
            sock = each.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(
            carry(reader, far_writer, rtt / 2, began + rtt),
            carry(far_reader, writer, rtt / 2, began + 1.5 * rtt),
        )

    servers = [
        await asyncio.start_server(
            lambda reader, writer, port=port: connect(port, reader, writer),
            "127.0.0.1",
            0,
        )
        for port in ports
    ]
    print(
        json.dumps([each.sockets[0].getsockname()[1] for each in servers]), flush=True
    )
    await asyncio.gather(*(each.serve_forever() for each in servers))


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), [int(each) for each in sys.argv[2:]]))
