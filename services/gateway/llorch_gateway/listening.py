"""The listening socket: shared by several gateway processes, mean with memory for clients that do not read, and closed
without losing a connection.

What is set on it is inherited by every connection. Where the system has no such option, the server works without it.
"""

import ctypes
import logging
import socket
import sys
from typing import Final

from llorch_shared.settings import SettingsError

log = logging.getLogger(__name__)

UNSENT_IN_KERNEL_MAX: Final = 128 * 1024
"""Bytes of one connection that wait in the kernel to be sent for the first time. Without a bound it keeps 4 MiB for
each client that does not read, and old tokens stand before new ones."""
_SO_ATTACH_FILTER: Final = 26
_SYN_PASSES_NOT: Final = (
    (0x30, 0, 0, 13),  # load byte 13 of the TCP header: its flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN without ACK: the wish for a new connection
    (0x06, 0, 0, 0),  # drops it
    (0x06, 0, 0, 0xFFFF_FFFF),  # everything else passes whole
)


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jump_true", ctypes.c_uint8),
        ("jump_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def bind(host: str, port: int, *, stall_s: float) -> socket.socket:
    """Bound, not yet listening. A peer that acknowledges nothing, or keeps its window shut, for `stall_s` loses its
    connection. Raises SettingsError when the port cannot be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(stall_s * 1000))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_IN_KERNEL_MAX)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener


def close_door(listener: socket.socket) -> None:
    """Begin no more connections, and finish those that are begun. A listening socket that is just closed resets whoever
    waits in its queue; one that answers no new wish has an empty queue soon. The unanswered client asks again a second
    later: by then the socket is closed, and the kernel asks another process of the port."""
    if sys.platform != "linux":
        return
    code = (_Instruction * len(_SYN_PASSES_NOT))(*(_Instruction(*line) for line in _SYN_PASSES_NOT))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(_Program(len(code), code)))
    except OSError as error:
        log.info("connections that come in the last moment may be reset, the kernel takes no filter: %s", error)
