"""A main server that costs next to nothing: it notes when each webhook came, in its own process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ANSWER = b'{"success": true}'


class Connection(asyncio.Protocol):
    """HTTP/1.1 as far as is needed."""

    came: dict[str, float]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            _, _, rest = head.partition(b"content-length:")
            size = int(rest.split(b"\r\n", 1)[0] or 0)
            if len(self.buffer) < end + 4 + size:
                return
            body = self.buffer[end + 4 : end + 4 + size]
            self.buffer = self.buffer[end + 4 + size :]
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        text = ANSWER
        if head.startswith(b"get"):
            text = json.dumps(self.came).encode()
        elif body:
            self.came.setdefault(json.loads(body)["stemId"], time.time())
        self.transport.write(  # type: ignore[attr-defined] # a TCP transport
            b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(text), text)
        )


@dataclass
class Receiver:
    """The running server."""

    url: str

    def came(self) -> dict[str, float]:
        """Stem id -> when its first webhook came, seconds since 1970."""
        with urllib.request.urlopen(self.url, timeout=30) as answer:
            found: dict[str, float] = json.load(answer)
        return found

    def wait_for(self, stems: set[str], timeout_s: float = 3600.0) -> dict[str, float]:
        """Wait for a webhook of each of these stems."""
        deadline = time.monotonic() + timeout_s
        while not stems <= (came := self.came()).keys():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(stems - came.keys())} webhooks did not come")
            time.sleep(0.1)
        return came


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A server that ends with the block."""
    command = [sys.executable, "-m", "benchmarks.receiver"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Receiver(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.terminate()


async def _serve() -> None:
    Connection.came = {}
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
