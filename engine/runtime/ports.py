"""Choose ports, and make sure that two engines never share one unawares.

Gateways share their port by SO_REUSEPORT, and the kernel lets *any* process of the same user join such a port: a second
engine would silently take half the orders of the first. So a port is first taken without SO_REUSEPORT, which fails if
anybody at all listens there, and then kept by a socket that is bound and never listens, which gets no connections.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from pathlib import Path
from typing import Any

from engine.runtime.refusals import StartRefused

PORT_RETRY_SECONDS = 3.0  # the processes of an engine that was just killed may need a moment to end
PORT_RETRY_INTERVAL_SECONDS = 0.1
FREE_PORT_TRIES = 200
LOWEST_PICKED_PORT = 10_000


def pick_free_port(host: str = "127.0.0.1") -> int:
    """A port on which nobody listens, below those that the kernel gives to outgoing connections.

    A client that keeps calling a closed port from within that range may be given the very port as its own, be
    connected to itself, and so keep the server that it waits for from coming back.
    Raises: StartRefused if none was found.
    """
    highest = _lowest_outgoing_port() - 1
    if highest < LOWEST_PICKED_PORT + FREE_PORT_TRIES:
        highest = 65_535  # a machine set up otherwise: any port is better than none
    for _ in range(FREE_PORT_TRIES):
        port = random.randint(LOWEST_PICKED_PORT, highest)  # noqa: S311 (a port is no secret)
        if is_port_free(host, port):
            return port
    raise StartRefused(f"no free port found on {host} in {FREE_PORT_TRIES} tries; close something that listens there")


def is_port_free(host: str, port: int) -> bool:
    """True if a server could listen on this port now, all by itself."""
    try:
        _listen_alone(host, port)
    except OSError:
        return False
    return True


async def require_free_port(host: str, port: int, option: str) -> None:
    """Wait a moment for a port to be free; `option` is the command line's name for it.

    Raises: StartRefused, if somebody else has it or the host is none of this machine's.
    """
    deadline = time.monotonic() + PORT_RETRY_SECONDS
    while True:
        try:
            _listen_alone(host, port)
        except OSError as error:
            if time.monotonic() >= deadline:
                reason = error.strerror or str(error)
                raise StartRefused(
                    f"cannot listen on {host} port {port} ({reason}); free it, or choose another with {option}"
                ) from error
            await asyncio.sleep(PORT_RETRY_INTERVAL_SECONDS)
        else:
            return


def hold_shared_port(host: str, port: int) -> socket.socket:
    """Keep a port for processes that share it by SO_REUSEPORT; close the socket to let it go.

    Raises: OSError.
    """
    try:
        return _bind_shared(host, port, reuse_address=False)
    except OSError:
        # Connections of an earlier server that did not share the port may linger for a minute; only SO_REUSEADDR passes
        # over them. It holds the port less firmly: another engine's first look would not notice the placeholder.
        return _bind_shared(host, port, reuse_address=True)


def _bind_shared(host: str, port: int, *, reuse_address: bool) -> socket.socket:
    family, address = _address(host, port)
    placeholder = socket.socket(family, socket.SOCK_STREAM)
    try:
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        placeholder.bind(address)
    except BaseException:
        placeholder.close()
        raise
    return placeholder


def url_for(host: str, port: int) -> str:
    """The URL by which this machine reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _listen_alone(host: str, port: int) -> None:
    family, address = _address(host, port)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do; it passes over connections in TIME_WAIT but not over anybody who listens.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)


def _address(host: str, port: int) -> tuple[int, Any]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return family, address


def _lowest_outgoing_port() -> int:
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
