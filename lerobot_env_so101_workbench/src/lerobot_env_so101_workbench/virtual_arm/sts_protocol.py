# SPDX-License-Identifier: Apache-2.0
"""Packets of Feetech's STS protocol: instructions of LeRobot's drivers and responses of servos.

    FF FF | id | length | instruction or error | parameters ... | checksum

`length` is the number of bytes that follow it: parameters plus 2. The checksum is the complement of the low
byte of the sum over id, length, instruction and parameters. Words are little endian.
"""

from dataclasses import dataclass

HEADER = b"\xff\xff"
BROADCAST = 0xFE  # the id that every servo obeys
MAX_LENGTH = 250  # of the length byte: what the vendor's SDK sends and accepts

PING, READ, WRITE, REG_WRITE, ACTION = 0x01, 0x02, 0x03, 0x04, 0x05
SYNC_READ, SYNC_WRITE = 0x82, 0x83


def checksum(body: bytes) -> int:
    """Compute the checksum of the bytes between the header and the checksum."""
    return ~sum(body) & 0xFF


@dataclass(frozen=True)
class Packet:
    """An instruction to a servo or a servo's response; both have the same form on the wire.

    Args:
        id: servo number, 0 to 253, or `BROADCAST`.
        code: the instruction, or in a response the error byte.
        params: parameters, at most 248 bytes.
    """

    id: int
    code: int
    params: bytes = b""

    def encode(self) -> bytes:
        """Encode the packet for the wire.

        Raises:
            ValueError: if there are more than 248 bytes of parameters.
        """
        length = len(self.params) + 2
        if length > MAX_LENGTH:
            raise ValueError(f"params: found {len(self.params)} bytes, expected at most {MAX_LENGTH - 2}.")
        body = bytes([self.id, length, self.code]) + self.params
        return HEADER + body + bytes([checksum(body)])


class Parser:
    """Finds packets in a stream of bytes and skips everything else.

    A packet with a wrong checksum is skipped by one byte only: a valid packet may begin inside it.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_waiting(self) -> bool:
        """Whether a packet has begun and is not complete."""
        return bool(self._buffer)

    def reset(self) -> None:
        """Discard an incomplete packet."""
        self._buffer.clear()

    def feed(self, data: bytes) -> list[Packet]:
        """Append `data` and return the packets that are complete now."""
        self._buffer += data
        packets = []
        while (size := self._next_size()) and len(self._buffer) >= size:
            body = bytes(self._buffer[2 : size - 1])
            if checksum(body) == self._buffer[size - 1]:
                packets.append(Packet(body[0], body[2], body[3:]))
                del self._buffer[:size]
            else:
                del self._buffer[:1]
        return packets

    def _next_size(self) -> int:
        """Drop bytes before the next possible packet; return its size, or 0 if that is not known yet."""
        while True:
            begin = self._buffer.find(HEADER)
            if begin < 0:
                begin = len(self._buffer) - self._buffer.endswith(HEADER[:1])
            del self._buffer[:begin]
            if len(self._buffer) < 4:
                return 0
            if self._buffer[2] <= BROADCAST and 2 <= self._buffer[3] <= MAX_LENGTH:
                return self._buffer[3] + 4
            del self._buffer[:1]
