"""How the processes of an engine share the processors: buyers wait for some of them, for the others nobody does.

Two wishes are told to the kernel. *Niceness* divides a processor that is asked for more than it has. The *slice* says
how long a process may go on once it runs: since Linux 6.12 one with a short slice that wakes up interrupts one with a
long slice at once (EEVDF; `sched_runtime` in sched_setattr(2)), where otherwise it waits for some milliseconds, and an
order passes through four processes. Older kernels take no notice.
"""

import ctypes
import os
import platform
import struct
from typing import NamedTuple

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
"""The system call's number; None where it is not known here, and only the niceness is wished for."""
_ATTRIBUTES = struct.Struct("@IIQiIQQQII")
"""`struct sched_attr`: size, policy, flags, nice, priority, runtime, deadline, period, and two utilisation clamps."""
_SCHED_OTHER = 0
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec as little as possible may happen


class ProcessorShare(NamedTuple):
    """What a process wishes for itself and its children."""

    niceness: int = 0
    """Added to its parent's own."""
    slice_microseconds: int = 0
    """100 to 100,000, as the kernel takes it; 0: the kernel's own."""


AS_IT_COMES = ProcessorShare()
BUYERS_WAIT = ProcessorShare(slice_microseconds=200)
"""Of gateways and Redis: what they do for one buyer takes less than that."""
BEHIND_BUYERS = ProcessorShare(niceness=5, slice_microseconds=20_000)
"""Of the ledger's processes: when the processors are full, a third of the share of those that buyers wait for. The
journal is on disk by then, so that nobody waits for the ledger; and it gets enough not to fall behind for long."""


def take(share: ProcessorShare) -> None:
    """Wish for it in the calling process; what the system does not grant is not needed for anything to be right."""
    if share.niceness:
        os.nice(share.niceness)
    if share.slice_microseconds and _SCHED_SETATTR is not None:
        niceness, runtime_ns = os.getpriority(os.PRIO_PROCESS, 0), share.slice_microseconds * 1000
        wished = _ATTRIBUTES.pack(_ATTRIBUTES.size, _SCHED_OTHER, 0, niceness, 0, runtime_ns, 0, 0, 0, 0)
        _libc.syscall(_SCHED_SETATTR, 0, wished, 0)
