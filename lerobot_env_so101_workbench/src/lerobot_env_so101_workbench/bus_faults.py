# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between a computer and its servos, on demand.

    faults.next("lost", 2)         # the next two answers do not arrive
    faults.rate("corrupted", 0.1)  # from now on one answer in ten arrives damaged
    faults.silence("elbow_flex")   # a servo that does not answer
    faults.jam("gripper")          # a joint that does not turn
    faults.clear()

Brown-outs and pulled cables are methods of the bus: they happen to all servos at once.
"""

from __future__ import annotations

import random
import threading

KINDS = {
    "unheard": "an instruction does not reach the servos",
    "lost": "an answer does not reach the computer",
    "late": "answers arrive after the driver has given up waiting for them",
    "corrupted": "one byte of an answer arrives changed",
    "checksum": "the checksum of an answer is wrong",
}


class Chances:
    """Faults that happen to the next few of something, or by chance; may be set from any thread.

    Args:
        seed: of the chances.

    Attributes:
        kinds: names of the faults, and what they are.
    """

    kinds: dict[str, str] = {}

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """All is well again."""
        with self._lock:
            self._next = dict.fromkeys(self.kinds, 0)
            self._rate = dict.fromkeys(self.kinds, 0.0)

    def next(self, kind: str, count: int = 1) -> None:
        """The next `count` suffer from `kind`.

        Raises:
            ValueError: there is no such kind.
        """
        with self._lock:
            self._next[self._check_kind(kind)] = count

    def rate(self, kind: str, chance: float) -> None:
        """From now on each suffers from `kind` with this chance, 0 to 1.

        Raises:
            ValueError: there is no such kind, or the chance is none.
        """
        if not 0.0 <= chance <= 1.0:
            raise ValueError(f"chance of {kind}: found {chance}, expected 0 to 1.")
        with self._lock:
            self._rate[self._check_kind(kind)] = chance

    def happens(self, kind: str) -> bool:
        """Whether the one at hand suffers from `kind`."""
        with self._lock:
            if self._next[kind] > 0:
                self._next[kind] -= 1
                return True
            return self._rate[kind] > 0 and self._random.random() < self._rate[kind]

    def _check_kind(self, kind: str) -> str:
        if kind not in self.kinds:
            raise ValueError(f"fault: found {kind!r}, expected one of {', '.join(self.kinds)}.")
        return kind


class Faults(Chances):
    """Faults of one bus, whose packets suffer; the seed also says which byte is damaged."""

    kinds = KINDS

    def clear(self) -> None:
        """All is well again."""
        super().clear()
        with self._lock:
            self._silent: frozenset[str] = frozenset()
            self._jammed: frozenset[str] = frozenset()

    def silence(self, *servos: str) -> None:
        """These servos, and no others, do not answer; they still obey."""
        with self._lock:
            self._silent = frozenset(servos)

    def jam(self, *joints: str) -> None:
        """These joints, and no others, are stuck where they are."""
        with self._lock:
            self._jammed = frozenset(joints)

    @property
    def silent(self) -> frozenset[str]:
        return self._silent

    @property
    def jammed(self) -> frozenset[str]:
        return self._jammed

    def deliver(self, answer: bytes) -> bytes:
        """What arrives of an answer."""
        if self.happens("lost"):
            return b""
        damaged = bytearray(answer)
        if self.happens("corrupted"):
            with self._lock:
                where, change = self._random.randrange(len(answer)), self._random.randrange(1, 256)
            damaged[where] ^= change
        if self.happens("checksum"):
            damaged[-1] ^= 0xFF
        return bytes(damaged)
