"""A process that stands in for a room when the supervisor itself is tested: it reports ready, serves, and drains.

Run as `stand_in_room.py KIND [--host H --port P] --ready-fd N [--listen-fd N]`, as `python -m engine KIND` is.
What it does badly is asked for by files in the data directory: `KIND.fails` makes it end at once with a message.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
    await writer.drain()
    writer.close()


async def serve(kind: str, host: str, port: int | None, ready_fd: int, listen_fd: int | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = None
    if listen_fd is not None:
        server = await asyncio.start_server(answer, sock=socket.socket(fileno=listen_fd))
    elif port is not None:
        server = await asyncio.start_server(answer, host, port)
    os.write(ready_fd, b"1")
    await stop.wait()
    os.close(ready_fd)
    if server is not None:
        server.close()
    print(f"{kind} drained", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--listen-fd", type=int)
    arguments = parser.parse_args()
    if arguments.kind == "migrate":
        return
    if (Path(os.environ["MIAOCANG_DATA_DIR"]) / f"{arguments.kind}.fails").exists():
        raise SystemExit("the stand-in was told to fail")
    assert (arguments.kind == "gateway") == ("MIAOCANG_DATABASE_URL" not in os.environ), "only gateways go without it"
    assert Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).is_dir()
    asyncio.run(serve(arguments.kind, arguments.host, arguments.port, arguments.ready_fd, arguments.listen_fd))


if __name__ == "__main__":
    main()
