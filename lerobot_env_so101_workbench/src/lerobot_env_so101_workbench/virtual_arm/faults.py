# SPDX-License-Identifier: Apache-2.0
"""Injects faults between a computer and its servos.

    faults.next("lost", 2)         # the next two responses do not arrive
    faults.rate("corrupted", 0.1)  # from now on one response in ten arrives damaged
    faults.silence("elbow_flex")   # a servo that does not respond
    faults.jam("gripper")          # a joint that does not turn
    faults.clear()

Brown-outs and unplugged cables are methods of the bus, because they affect all servos at once.
"""

import random
import threading

KINDS = {
    "unheard": "an instruction does not reach the servos",
    "lost": "a response does not reach the computer",
    "late": "responses arrive after the driver's timeout",
    "corrupted": "one byte of a response arrives changed",
    "checksum": "the checksum of a response is wrong",
}


class FaultInjector:
    """Faults of the next few packets or frames, or of each one with a probability; thread-safe.

    Attributes:
        kinds: description of every fault by name.
    """

    kinds: dict[str, str] = {}

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """End all faults."""
        with self._lock:
            self._next = dict.fromkeys(self.kinds, 0)
            self._rate = dict.fromkeys(self.kinds, 0.0)

    def next(self, kind: str, count: int = 1) -> None:
        """Apply a fault to the next `count` packets or frames.

        Raises:
            ValueError: if `kind` is unknown.
        """
        with self._lock:
            self._next[self._check_kind(kind)] = count

    def rate(self, kind: str, probability: float) -> None:
        """Apply a fault to each packet or frame from now on with this probability, 0 to 1.

        Raises:
            ValueError: if `kind` is unknown or the probability is out of range.
        """
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability of {kind}: found {probability}, expected 0 to 1.")
        with self._lock:
            self._rate[self._check_kind(kind)] = probability

    def occurs(self, kind: str) -> bool:
        """Decide whether a fault affects the present packet or frame."""
        with self._lock:
            if self._next[kind] > 0:
                self._next[kind] -= 1
                return True
            return self._rate[kind] > 0 and self._random.random() < self._rate[kind]

    def _check_kind(self, kind: str) -> str:
        if kind not in self.kinds:
            raise ValueError(f"fault: found {kind!r}, expected one of {', '.join(self.kinds)}.")
        return kind


class Faults(FaultInjector):
    """Faults of one bus and its servos."""

    kinds = KINDS

    def clear(self) -> None:
        """End all faults."""
        super().clear()
        self.silent: frozenset[str] = frozenset()
        self.jammed: frozenset[str] = frozenset()

    def silence(self, *servos: str) -> None:
        """Let these servos, and no others, execute instructions without responding."""
        self.silent = frozenset(servos)

    def jam(self, *joints: str) -> None:
        """Let these joints, and no others, be stuck."""
        self.jammed = frozenset(joints)

    def deliver(self, response: bytes) -> bytes:
        """Return the bytes of a response that arrive at the computer."""
        if self.occurs("lost"):
            return b""
        damaged = bytearray(response)
        if self.occurs("corrupted"):
            with self._lock:
                index, change = self._random.randrange(len(response)), self._random.randrange(1, 256)
            damaged[index] ^= change
        if self.occurs("checksum"):
            damaged[-1] ^= 0xFF
        return bytes(damaged)
