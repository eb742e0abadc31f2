"""What a process asks of the processors, as the kernel says that it has it."""

import ctypes
import os
import platform
import struct
import sys

import pytest

from engine.runtime.processor_share import BEHIND_BUYERS, BUYERS_WAIT, ProcessorShare, take

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
LINUX = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


def share_of(pid: int) -> ProcessorShare:
    attributes = struct.Struct("@IIQiIQQQII")
    buffer = ctypes.create_string_buffer(attributes.size)
    assert ctypes.CDLL(None).syscall(SCHED_GETATTR[platform.machine()], pid, buffer, attributes.size, 0) == 0
    _, _, _, niceness, _, runtime_ns, *_ = attributes.unpack(buffer.raw)
    return ProcessorShare(niceness, runtime_ns // 1000)


@pytest.mark.skipif(
    platform.machine() not in SCHED_GETATTR or LINUX < (6, 12), reason="NOT TESTED: a slice needs Linux 6.12"
)
@pytest.mark.parametrize("share", [BEHIND_BUYERS, BUYERS_WAIT, ProcessorShare()])
def test_a_process_and_its_children_have_the_share_that_it_took(share: ProcessorShare) -> None:
    before = share_of(0)
    pid = os.fork()
    if pid == 0:
        try:
            take(share)
            child = os.fork()
            wanted = ProcessorShare(
                before.niceness + share.niceness, share.slice_microseconds or before.slice_microseconds
            )
            if child:
                os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or share_of(0) != wanted)
            os._exit(share_of(0) != wanted)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert share_of(0) == before
