# SPDX-License-Identifier: Apache-2.0
"""Packets, byte by byte: worked out by hand from the protocol, and as the drivers' SDK writes them."""

import random

import pytest
import scservo_sdk

from lerobot_env_so101_workbench.virtual_arm.sts_protocol import (
    ACTION,
    BROADCAST,
    PING,
    READ,
    REG_WRITE,
    SYNC_READ,
    SYNC_WRITE,
    WRITE,
    Packet,
    Parser,
)

# Header, id, length, instruction or error, parameters, complement of the sum.
BY_HAND = {
    "ping 1": (Packet(1, PING), "FF FF 01 02 01 FB"),
    "ping all": (Packet(BROADCAST, PING), "FF FF FE 02 01 FE"),
    "read position of 1": (Packet(1, READ, bytes([56, 2])), "FF FF 01 04 02 38 02 BE"),
    "goal 2048 to 1": (Packet(1, WRITE, bytes([42, 0, 8])), "FF FF 01 05 03 2A 00 08 C4"),
    "positions of 1 and 2": (
        Packet(BROADCAST, SYNC_READ, bytes([56, 2, 1, 2])),
        "FF FF FE 06 82 38 02 01 02 3C",
    ),
    "goals 2048 and 2047": (
        Packet(BROADCAST, SYNC_WRITE, bytes([42, 2, 1, 0, 8, 2, 0xFF, 7])),
        "FF FF FE 0A 83 2A 02 01 00 08 02 FF 07 37",
    ),
    "1 without error": (Packet(1, 0), "FF FF 01 02 00 FC"),
    "1 is overloaded": (Packet(1, 32), "FF FF 01 02 20 DC"),
    "1 is at 2048": (Packet(1, 0, bytes([0, 8])), "FF FF 01 04 00 00 08 F2"),
}


class Wire:
    """A port for the SDK that keeps what is written and never responds."""

    is_using = False
    written = b""

    def clearPort(self):  # noqa: N802
        pass

    def writePort(self, packet):  # noqa: N802
        self.written = bytes(packet)
        return len(packet)

    def readPort(self, length):  # noqa: N802
        return b""

    def setPacketTimeout(self, length):  # noqa: N802
        pass

    def isPacketTimeout(self):  # noqa: N802
        return True


@pytest.mark.parametrize(("packet", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_packets_match_those_computed_by_hand(packet, expected):
    data = bytes.fromhex(expected)
    assert packet.encode() == data
    assert Parser().feed(data) == [packet]


def test_the_sdk_writes_the_same_bytes():
    wire, sdk = Wire(), scservo_sdk.PacketHandler(0)
    goals = [1, 0, 8, 2, 255, 7]
    calls = [
        (lambda: sdk.ping(wire, 3), Packet(3, PING)),
        (lambda: sdk.readTx(wire, 4, 56, 2), Packet(4, READ, bytes([56, 2]))),
        (lambda: sdk.writeTxOnly(wire, 5, 42, 2, [0, 8]), Packet(5, WRITE, bytes([42, 0, 8]))),
        (lambda: sdk.regWriteTxOnly(wire, 6, 42, 2, [1, 2]), Packet(6, REG_WRITE, bytes([42, 1, 2]))),
        (lambda: sdk.action(wire, BROADCAST), Packet(BROADCAST, ACTION)),
        (
            lambda: sdk.syncReadTx(wire, 56, 2, [1, 2, 3], 3),
            Packet(BROADCAST, SYNC_READ, bytes([56, 2, 1, 2, 3])),
        ),
        (
            lambda: sdk.syncWriteTxOnly(wire, 42, 2, goals, 6),
            Packet(BROADCAST, SYNC_WRITE, bytes([42, 2, *goals])),
        ),
    ]
    for call, packet in calls:
        wire.is_using = False
        call()
        assert wire.written == packet.encode()


def test_too_many_parameters_are_refused():
    assert len(Packet(1, 0, bytes(248)).encode()) == 254
    with pytest.raises(ValueError, match="found 249 bytes, expected at most 248"):
        Packet(1, 0, bytes(249)).encode()


def test_a_packet_may_come_byte_by_byte_and_two_at_once():
    first, second = Packet(1, PING), Packet(2, READ, b"\x38\x02")
    parser, found = Parser(), []
    for byte in first.encode():
        found += parser.feed(bytes([byte]))
    assert found == [first]
    assert not parser.is_waiting
    assert parser.feed(first.encode() + second.encode()) == [first, second]


@pytest.mark.parametrize(
    "noise",
    [
        b"\x00\x12\xfe",
        b"\xff",
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\x02",
        b"\xff\xff\x01\x00",
        b"\xff\xff\x01\x01",
    ],
    ids=lambda noise: noise.hex(" "),
)
def test_noise_before_a_packet_is_skipped(noise):
    assert Parser().feed(noise + Packet(1, PING).encode()) == [Packet(1, PING)]


def test_a_packet_with_a_wrong_checksum_is_skipped_and_the_next_is_found():
    wrong = bytearray(Packet(1, WRITE, b"\x2a\x00\x08").encode())
    wrong[-1] ^= 1
    assert Parser().feed(bytes(wrong) + Packet(2, PING).encode()) == [Packet(2, PING)]


def test_a_length_that_is_too_large_waits_only_until_reset():
    parser = Parser()
    assert parser.feed(b"\xff\xff\x01\xf0\x03") == []
    assert parser.is_waiting
    parser.reset()
    assert parser.feed(Packet(1, PING).encode()) == [Packet(1, PING)]


def test_any_damage_is_survived_and_no_packet_is_invented():
    chance = random.Random(0)
    for _ in range(500):
        sent = [
            Packet(chance.randrange(254), chance.randrange(1, 6), chance.randbytes(chance.randrange(9)))
            for _ in range(4)
        ]
        data = bytearray(b"".join(packet.encode() for packet in sent))
        data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
        parser = Parser()
        found = parser.feed(bytes(data))
        assert len(found) <= 4
        parser.reset()
        assert parser.feed(Packet(7, PING).encode()) == [Packet(7, PING)]
