"""Choose ports, hold listening sockets, and make sure that two engines never share a port unawares.

Each gateway has a slot: sockets of its own on the common port, shared by SO_REUSEPORT, so that the kernel spreads
connections over the slots. The supervisor opens them and its gateways inherit them: what waits to be accepted in a slot
outlives the process that should have accepted it. The kernel lets *any* process of the same user join such a port: a
second engine would silently take half the orders of the first. So a port is first taken without SO_REUSEPORT, which
fails if anybody at all listens there.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.runtime.refusals import StartRefused

PORT_RETRY_SECONDS = 3.0  # the processes of an engine that was just killed may need a moment to end
PORT_RETRY_INTERVAL_SECONDS = 0.1
FREE_PORT_TRIES = 200
LOWEST_PICKED_PORT = 10_000
QUEUE_CONNECTIONS = 4096  # that may wait in a slot to be accepted: at "the link is up" they all come in one second
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # a name's address of a kind that this machine does not have


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


Slot = tuple[socket.socket, ...]
"""One gateway's sockets: one for each address that the host has here, mostly one."""


def bind_slots(host: str, port: int, count: int) -> list[Slot]:
    """Bind the sockets of `count` slots. They hold the port, and get no connections before `listen_in` them.

    Raises: OSError.
    """
    try:
        return [_bind_slot(host, port, reuse_address=False) for _ in range(count)]
    except OSError:
        # Connections of an earlier server that did not share the port may linger for a minute; only SO_REUSEADDR passes
        # over them. It holds the port less firmly: until somebody listens, another engine would not notice.
        return [_bind_slot(host, port, reuse_address=True) for _ in range(count)]


def listen_in(slots: Iterable[Slot]) -> None:
    """Let connections wait in these slots from now on. Raises: OSError."""
    for listener in (listener for slot in slots for listener in slot):
        # inherited by what is accepted, which lingers for a minute: the next engine's first look has to pass over it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.listen(QUEUE_CONNECTIONS)


def _bind_slot(host: str, port: int, *, reuse_address: bool) -> Slot:
    listeners: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _bind(listener, address)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return tuple(listeners)


def url_for(host: str, port: int) -> str:
    """The URL by which this machine reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _listen_alone(host: str, port: int) -> None:
    for family, address in _addresses(host, port):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do; it passes over connections in TIME_WAIT but not over anybody who listens.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind(probe, address)
            probe.listen(1)


def _bind(listener: socket.socket, address: Any) -> None:
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # the other kind has a socket of its own
    listener.bind(address)


def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    """Every address of the host that this machine can listen on; where there is none, those that it cannot.

    Raises: OSError, if the host has no address at all.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses: list[tuple[int, Any]] = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    return [(family, address) for family, address in addresses if _is_here(family, address)] or addresses


def _is_here(family: int, address: Any) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            _bind(probe, (address[0], 0, *address[2:]))
    except OSError as error:
        if error.errno in NOT_HERE:
            return False
        raise
    return True


def _lowest_outgoing_port() -> int:
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
