"""An echo server on the engine's own HTTP stack: what is left of a request when nothing is decided and nothing stored.

It reads the JSON body and answers a JSON body of the size of an order (`--answer order`) or of a problem document that
says SOLD_OUT (`--answer sold_out`). httptools parses, uvloop serves, orjson reads and writes: no framework.

    python -m loadtest.load.echo_server --port 9000 --answer order
"""

import argparse
import asyncio
import signal
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

import httptools
import orjson
import uvloop

ORDER: dict[str, object] = {
    "order_id": "Zm9yIHRoZSBzYW1lIHNpemUh.sale-000001",
    "sale_id": "sale-000001",
    "buyer_id": "",
    "channel": "douyin",
    "reference": None,
    "status": "held",
    "lines": [{"line_id": "1", "sku": "TEE-BLK-M", "quantity": 1, "unit_price_minor": 1990, "paid_minor": 1990}],
    "discount_minor": 0,
    "freight_minor": 0,
    "amount_minor": 1990,
    "currency": "CNY",
    "held_until": "2026-01-01T00:00:00.000Z",
    "sequence": 1234567,
}
SOLD_OUT: dict[str, object] = {
    "type": "about:blank#SOLD_OUT",
    "title": "Sold out",
    "status": 409,
    "detail": "there are not enough units of this SKU left",
    "code": "SOLD_OUT",
    "sku": "TEE-BLK-M",
    "available": 0,
    "instance": "",
}


class EchoProtocol(asyncio.Protocol):
    """One connection; requests may come in pieces, or several at once."""

    def __init__(self, status: HTTPStatus, document: dict[str, object], member: str) -> None:
        self._head = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: " % (
            status.value,
            status.phrase.encode(),
        )
        self._document = dict(document)
        self._member = member
        self._body = b""
        self._answers: list[bytes] = []
        self._parser = httptools.HttpRequestParser(self)
        self._write: Callable[[bytes], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._write = cast("asyncio.Transport", transport).write  # uvloop's own, of no common class

    def data_received(self, data: bytes) -> None:
        """Answer all requests that are whole."""
        self._parser.feed_data(data)
        if self._answers:
            self._write(self._answers[0] if len(self._answers) == 1 else b"".join(self._answers))
            self._answers.clear()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """Answer with something of the request in it, so that the answer has to be made."""
        self._document[self._member] = orjson.loads(self._body)["buyer_id"] if self._body else ""
        self._body = b""
        answer = orjson.dumps(self._document)
        self._answers.append(self._head + b"%d\r\n\r\n" % len(answer) + answer)


async def serve(port: int, answer: str) -> None:
    """Serve until SIGTERM or SIGINT."""
    kinds = {"order": (HTTPStatus.CREATED, ORDER, "buyer_id"), "sold_out": (HTTPStatus.CONFLICT, SOLD_OUT, "instance")}
    status, document, member = kinds[answer]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: EchoProtocol(status, document, member), "127.0.0.1", port, backlog=4096, reuse_address=True
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print("ready", flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answer", choices=("order", "sold_out"), default="order")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.answer))


if __name__ == "__main__":
    main()
