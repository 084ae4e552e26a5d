# SPDX-License-Identifier: Apache-2.0
"""A serial port with emulated servos on it: a pseudo-terminal that any driver of STS servos can open.

    with VirtualBus([servo]) as bus:
        FeetechMotorsBus(bus.port, ...).connect()

A thread answers packets. It waits as long as the bytes would take on the wire, and servos hear only what is sent
at their own baud rate. Nobody turns the shafts while this thread runs: call `tick` from the thread that owns them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
import sys
import termios
import threading
import time
import tty
from collections.abc import Sequence
from functools import reduce
from itertools import groupby
from operator import and_, itemgetter
from pathlib import Path

from .bus_faults import Faults
from .sts_protocol import (
    ACTION,
    BROADCAST,
    MAX_LENGTH,
    PING,
    READ,
    REG_WRITE,
    SYNC_READ,
    SYNC_WRITE,
    WRITE,
    Packet,
    Parser,
)
from .sts_servo import Servo

_QUIET = 0.02  # s after which a packet that was begun is given up
_BITS_PER_BYTE = 10  # start, 8 data, stop
_RETURN_DELAY = 2e-6  # s, unit of the register Return_Delay_Time
_LATE = 0.06  # s by which a late answer is held up; LeRobot waits for 0.05
_TCGETS2, _TERMIOS2 = 0x802C542A, "4I20B2I"  # Linux: settings of a terminal with its speed as a number


class VirtualBus:
    """Emulated servos on a pseudo-terminal.

    Args:
        servos: all servos there are; `attach` says which of them are on the cable.
        link: a path that always leads to the port, whose own name changes with every plugging in.
        faults: what goes wrong.

    Attributes:
        lock: held while a packet is carried out, and in `tick`; hold it to look at several registers at once.
    """

    def __init__(
        self, servos: Sequence[Servo], link: Path | None = None, faults: Faults | None = None
    ) -> None:
        self.servos, self.link, self.faults = list(servos), link, faults or Faults()
        self.lock = threading.RLock()
        self._attached = list(self.servos)
        self._dark_for = 0.0  # s until the power comes back
        self._thread: threading.Thread | None = None
        self._fds: tuple[int, ...] = ()
        self._port = ""

    # -- the cable -------------------------------------------------------------------------------------------

    @property
    def port(self) -> str:
        """Path to give to a driver.

        Raises:
            ConnectionError: the cable is not plugged in.
        """
        if self._thread is None:
            raise ConnectionError("the virtual bus has no port: call plug_in() first.")
        return str(self.link or self._port)

    @property
    def is_plugged_in(self) -> bool:
        return self._thread is not None

    def plug_in(self) -> None:
        """Open the port and begin to answer.

        Raises:
            FileExistsError: the link's path is taken.
        """
        if self._thread is not None:
            return
        if self.link is not None:
            _check_link(self.link)
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        wake, waker = os.pipe()
        self._fds, self._port = (master, slave, wake, waker), os.ttyname(slave)
        if self.link is not None:
            self.link.unlink(missing_ok=True)
            self.link.symlink_to(self._port)
        self._thread = threading.Thread(
            target=self._serve, args=(master, wake), name="virtual-bus", daemon=True
        )
        self._thread.start()

    def pull_cable(self) -> None:
        """Stop answering and close the port: whoever has it open gets an error at the next read or write."""
        if self._thread is None:
            return
        os.write(self._fds[3], b"x")
        self._thread.join()
        self._thread = None
        for fd in self._fds:
            os.close(fd)
        if self.link is not None:
            self.link.unlink(missing_ok=True)

    def __enter__(self) -> VirtualBus:
        self.plug_in()
        return self

    def __exit__(self, *_) -> None:
        self.pull_cable()

    # -- the servos ------------------------------------------------------------------------------------------

    def servo(self, name: str) -> Servo:
        """The servo of this name.

        Raises:
            ValueError: there is none.
        """
        for servo in self.servos:
            if servo.name == name:
                return servo
        raise ValueError(f"servo: found {name!r}, expected one of {', '.join(s.name for s in self.servos)}.")

    def attach(self, *names: str) -> None:
        """Put these servos on the cable and take off all others. A servo that is put on starts up anew.

        Raises:
            ValueError: there is no servo of such a name.
        """
        servos = [self.servo(name) for name in names]
        with self.lock:
            for servo in self.servos:
                if servo not in servos:
                    servo.power_off()
                elif not servo.powered and not self._dark_for:
                    servo.power_on()
            self._attached = servos

    def brown_out(self, seconds: float = 0.2) -> None:
        """Take the power away for some time: servos go limp and silent, and start up anew."""
        with self.lock:
            self._dark_for = seconds
            for servo in self.servos:
                servo.power_off()

    def tick(self, seconds: float) -> None:
        """Let every servo's own control loop run once."""
        with self.lock:
            if self._dark_for:
                self._dark_for = max(0.0, self._dark_for - seconds)
                if not self._dark_for:
                    for servo in self._attached:
                        servo.power_on()
            for servo in self.servos:
                servo.tick(seconds)

    # -- the protocol ----------------------------------------------------------------------------------------

    def answer(self, packet: Packet, baud_rate: int | None = None) -> list[bytes]:
        """Let the servos carry out an instruction.

        Args:
            packet: the instruction.
            baud_rate: rate at which it is sent [1/s]; None for one that every servo hears.

        Returns:
            The servos' answers, in the order in which they go over the wire.
        """
        with self.lock:
            hearing = [s for s in self._attached if s.powered and baud_rate in (None, s.baud_rate)]
            if packet.code in (SYNC_READ, SYNC_WRITE) and len(packet.params) < 2:
                return []
            if packet.code == SYNC_READ:
                address, size, *ids = packet.params
                return self._answers(
                    [(i, s, self._read(s, address, size)) for i in ids for s in hearing if s.id == i]
                )
            if packet.code == SYNC_WRITE:
                self._sync_write(hearing, packet.params)
                return []
            asked = sorted((s for s in hearing if packet.id in (BROADCAST, s.id)), key=lambda s: s.id)
            # A servo answers with the id it was asked by, though the instruction may be to change it.
            results = [(s.id, s, self._execute(s, packet)) for s in asked]
            return self._answers(results) if packet.id != BROADCAST or packet.code == PING else []

    @staticmethod
    def _read(servo: Servo, address: int, size: int) -> bytes:
        return servo.read(address, min(size, MAX_LENGTH - 2))

    def _execute(self, servo: Servo, packet: Packet) -> bytes | None:
        """Do one servo's part; the parameters of its answer, or None where it does not answer."""
        acknowledge = b"" if servo.get("Response_Status_Level") else None
        params = packet.params
        if packet.code == PING:
            return b""
        if packet.code == READ and len(params) == 2:
            return self._read(servo, *params)
        if packet.code == WRITE and len(params) >= 2:
            servo.write(params[0], params[1:])
            return acknowledge
        if packet.code == REG_WRITE and len(params) >= 2:
            servo.prepare(params[0], params[1:])
            return acknowledge
        if packet.code == ACTION:
            servo.act()
            return acknowledge
        return None

    @staticmethod
    def _sync_write(servos: list[Servo], params: bytes) -> None:
        """Address, size, and for each servo its id and so many bytes."""
        address, size = params[:2]
        for begin in range(2, len(params) - size, size + 1):
            for servo in servos:
                if servo.id == params[begin]:
                    servo.write(address, params[begin + 1 : begin + 1 + size])

    def _answers(self, results: list[tuple[int, Servo, bytes | None]]) -> list[bytes]:
        """One answer per id: servos of the same id speak at once, and are heard as one."""
        spoken = [
            (id, Packet(id, servo.get("Status"), params).encode())
            for id, servo, params in results
            if params is not None and servo.name not in self.faults.silent
        ]
        return [_overlap([data for _, data in same]) for _, same in groupby(spoken, key=itemgetter(0))]

    # -- the thread ------------------------------------------------------------------------------------------

    def _serve(self, master: int, wake: int) -> None:
        parser = Parser()
        while True:
            ready, _, _ = select.select([master, wake], [], [], _QUIET if parser.is_waiting else None)
            if wake in ready:
                return
            if not ready:
                parser.reset()
                continue
            try:
                data = os.read(master, 4096)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EIO):
                    raise
                continue
            for packet in parser.feed(data):
                self._reply(master, packet)

    def _reply(self, master: int, packet: Packet) -> None:
        baud_rate = _speed(master)
        if self.faults.happens("unheard"):
            return
        answers = self.answer(packet, baud_rate)
        late = _LATE if answers and self.faults.happens("late") else 0.0
        time.sleep(self._time_on_wire(packet, answers, baud_rate) + late)
        data = b"".join(self.faults.deliver(answer) for answer in answers)
        # A full buffer means that nobody reads: like a wire, forget what nobody hears.
        with contextlib.suppress(BlockingIOError):
            os.write(master, data)

    def _time_on_wire(self, packet: Packet, answers: list[bytes], baud_rate: int | None) -> float:
        """Seconds that an instruction and its answers take, pauses before the answers included."""
        n_bytes = len(packet.encode()) + sum(len(answer) for answer in answers)
        delays = {servo.id: servo.get("Return_Delay_Time") for servo in self._attached}
        pauses = sum(delays.get(answer[2], 0) for answer in answers) * _RETURN_DELAY
        return n_bytes * _BITS_PER_BYTE / (baud_rate or 1_000_000) + pauses


def _overlap(answers: list[bytes]) -> bytes:
    """What is heard of answers that are sent at the same time: on this wire a 0 wins over a 1."""
    return bytes(reduce(and_, column) for column in zip(*answers, strict=False))


def _speed(terminal: int) -> int | None:
    """Baud rate that the driver has set on its side of a pseudo-terminal; None where that cannot be known."""
    try:
        if sys.platform == "linux":
            return struct.unpack(
                _TERMIOS2, fcntl.ioctl(terminal, _TCGETS2, bytes(struct.calcsize(_TERMIOS2)))
            )[-1]
        return termios.tcgetattr(terminal)[5]
    except OSError:
        return None


def _check_link(link: Path) -> None:
    if not link.is_symlink() and link.exists():
        raise FileExistsError(f"port: {link} exists and is no link; choose another path for the port.")
    if link.is_symlink() and link.exists():
        raise FileExistsError(
            f"port: {link} leads to {link.readlink()}, perhaps of another virtual arm; stop that one, remove the "
            "link, or choose another path for the port."
        )
