# SPDX-License-Identifier: Apache-2.0
"""A serial port with emulated servos: a pseudo-terminal that any driver of STS servos can open.

    with VirtualBus([servo]) as bus:
        FeetechMotorsBus(bus.port, ...).connect()

A thread responds to packets. It waits as long as the bytes would take on the wire, and a servo receives only
what is sent at its own baud rate. The shafts are simulated elsewhere: call `tick` there.
"""

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
from typing import Self

from . import sts_protocol as sts
from .faults import Faults
from .sts_protocol import Packet, Parser
from .sts_servo import Servo

_PACKET_TIMEOUT = 0.02  # s of silence after which an incomplete packet is discarded
_BITS_PER_BYTE = 10  # start, 8 data, stop
_RETURN_DELAY_UNIT = 2e-6  # s, of the register Return_Delay_Time
_LATE = 0.06  # s by which a late response is delayed; LeRobot's driver waits for 0.05
_TCGETS2, _TERMIOS2 = 0x802C542A, "4I20B2I"  # Linux: terminal settings with the speed as a number


class VirtualBus:
    """Emulated servos on a pseudo-terminal.

    Args:
        servos: all servos of the arm; `attach` selects those on the cable.
        link: path of a symbolic link to the port, whose own name changes each time it is opened.

    Attributes:
        lock: held while a packet is executed and in `tick`; hold it to read several registers consistently.
    """

    def __init__(
        self, servos: Sequence[Servo], link: Path | None = None, faults: Faults | None = None
    ) -> None:
        self.servos, self.link, self.faults = list(servos), link, faults or Faults()
        self.lock = threading.RLock()
        self._attached = list(self.servos)
        self._unpowered_for = 0.0  # s until the power returns
        self._thread: threading.Thread | None = None
        self._fds: tuple[int, ...] = ()
        self._port = ""

    # -- port --------------------------------------------------------------------------------------

    @property
    def port(self) -> str:
        """Path to pass to a driver.

        Raises:
            ConnectionError: if the port is not open.
        """
        if self._thread is None:
            raise ConnectionError("the virtual bus has no port: call plug_in() first.")
        return str(self.link or self._port)

    @property
    def is_plugged_in(self) -> bool:
        return self._thread is not None

    def plug_in(self) -> None:
        """Open the port and start to respond.

        Raises:
            FileExistsError: if the link's path is taken.
        """
        if self._thread is not None:
            return
        if self.link is not None:
            _check_link(self.link)
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        stop_read, stop_write = os.pipe()
        self._fds, self._port = (master, slave, stop_read, stop_write), os.ttyname(slave)
        if self.link is not None:
            self.link.unlink(missing_ok=True)
            self.link.symlink_to(self._port)
        arguments = (master, stop_read)
        self._thread = threading.Thread(target=self._serve, args=arguments, name="virtual-bus", daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        """Stop responding and close the port; a connected driver gets an error at its next access."""
        if self._thread is None:
            return
        os.write(self._fds[3], b"x")
        self._thread.join()
        self._thread = None
        for fd in self._fds:
            os.close(fd)
        if self.link is not None:
            self.link.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.plug_in()
        return self

    def __exit__(self, *_) -> None:
        self.unplug()

    # -- servos ------------------------------------------------------------------------------------

    def servo(self, name: str) -> Servo:
        """Return the servo of this name.

        Raises:
            ValueError: if there is none.
        """
        for servo in self.servos:
            if servo.name == name:
                return servo
        raise ValueError(f"servo: found {name!r}, expected one of {', '.join(s.name for s in self.servos)}.")

    def attach(self, *names: str) -> None:
        """Connect these servos to the cable and disconnect all others. A newly connected servo starts up.

        Raises:
            ValueError: if a name is unknown.
        """
        servos = [self.servo(name) for name in names]
        with self.lock:
            for servo in self.servos:
                if servo not in servos:
                    servo.power_off()
                elif not servo.powered and not self._unpowered_for:
                    servo.power_on()
            self._attached = servos

    def brown_out(self, seconds: float = 0.2) -> None:
        """Interrupt the power: servos lose torque, do not respond, and start up again."""
        with self.lock:
            self._unpowered_for = seconds
            for servo in self.servos:
                servo.power_off()

    def tick(self, seconds: float) -> None:
        """Run the control loop of every servo once."""
        with self.lock:
            if self._unpowered_for:
                self._unpowered_for = max(0.0, self._unpowered_for - seconds)
                if not self._unpowered_for:
                    for servo in self._attached:
                        servo.power_on()
            for servo in self.servos:
                servo.tick(seconds)

    # -- protocol ----------------------------------------------------------------------------------

    def respond(self, packet: Packet, baud_rate: int | None = None) -> list[bytes]:
        """Execute an instruction.

        Args:
            baud_rate: rate at which it is sent [1/s]; None for one that every servo receives.

        Returns:
            The servos' responses in the order in which they are sent.
        """
        code, params = packet.code, packet.params
        with self.lock:
            receivers = [s for s in self._attached if s.powered and baud_rate in (None, s.baud_rate)]
            if code in (sts.SYNC_READ, sts.SYNC_WRITE) and len(params) < 2:
                return []
            if code == sts.SYNC_READ:
                address, size, *ids = params
                found = [(i, s, _read(s, address, size)) for i in ids for s in receivers if s.id == i]
                return self._encode(found)
            if code == sts.SYNC_WRITE:  # address, size, and for each servo its id and `size` bytes
                address, size = params[:2]
                for begin in range(2, len(params) - size, size + 1):
                    for servo in receivers:
                        if servo.id == params[begin]:
                            servo.write(address, params[begin + 1 : begin + 1 + size])
                return []
            addressed = [s for s in receivers if packet.id in (sts.BROADCAST, s.id)]
            # A servo responds with the id it was addressed by, even if the instruction changes it.
            results = [(s.id, s, _execute(s, packet)) for s in sorted(addressed, key=lambda s: s.id)]
            return self._encode(results) if packet.id != sts.BROADCAST or code == sts.PING else []

    def _encode(self, results: Sequence[tuple[int, Servo, bytes | None]]) -> list[bytes]:
        """Encode one response per id: servos with equal ids send at the same time and collide."""
        sent = [
            (id, Packet(id, servo.get("Status"), params).encode())
            for id, servo, params in results
            if params is not None and servo.name not in self.faults.silent
        ]
        return [_collide([data for _, data in same]) for _, same in groupby(sent, key=itemgetter(0))]

    # -- thread ------------------------------------------------------------------------------------

    def _serve(self, master: int, stop: int) -> None:
        parser = Parser()
        while True:
            timeout = _PACKET_TIMEOUT if parser.is_waiting else None
            ready, _, _ = select.select([master, stop], [], [], timeout)
            if stop in ready:
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
        baud_rate = _baud_rate(master)
        if self.faults.occurs("unheard"):
            return
        responses = self.respond(packet, baud_rate)
        late = _LATE if responses and self.faults.occurs("late") else 0.0
        time.sleep(self._time_on_wire(packet, responses, baud_rate) + late)
        data = b"".join(self.faults.deliver(response) for response in responses)
        # If the driver does not read, the buffer is full: discard the response, as a wire does.
        with contextlib.suppress(BlockingIOError):
            os.write(master, data)

    def _time_on_wire(self, packet: Packet, responses: list[bytes], baud_rate: int | None) -> float:
        """Return the duration [s] of an instruction and its responses, with the servos' return delays."""
        n_bytes = len(packet.encode()) + sum(map(len, responses))
        delays = {servo.id: servo.get("Return_Delay_Time") for servo in self._attached}
        delay = sum(delays.get(response[2], 0) for response in responses) * _RETURN_DELAY_UNIT
        return n_bytes * _BITS_PER_BYTE / (baud_rate or 1_000_000) + delay


def _read(servo: Servo, address: int, size: int) -> bytes:
    return servo.read(address, min(size, sts.MAX_LENGTH - 2))


def _execute(servo: Servo, packet: Packet) -> bytes | None:
    """Execute an instruction on one servo; return the response's parameters, or None for no response."""
    acknowledge = b"" if servo.get("Response_Status_Level") else None
    code, params = packet.code, packet.params
    if code == sts.PING:
        return b""
    if code == sts.READ and len(params) == 2:
        return _read(servo, *params)
    if code == sts.WRITE and len(params) >= 2:
        servo.write(params[0], params[1:])
    elif code == sts.REG_WRITE and len(params) >= 2:
        servo.prepare(params[0], params[1:])
    elif code == sts.ACTION:
        servo.act()
    else:
        return None
    return acknowledge


def _collide(responses: list[bytes]) -> bytes:
    """Combine responses sent at the same time: on this wire a 0 wins over a 1."""
    return bytes(reduce(and_, column) for column in zip(*responses, strict=False))


def _baud_rate(terminal: int) -> int | None:
    """Return the baud rate set by the driver at its end of the terminal, or None if it is unknown."""
    try:
        if sys.platform == "linux":
            settings = fcntl.ioctl(terminal, _TCGETS2, bytes(struct.calcsize(_TERMIOS2)))
            return struct.unpack(_TERMIOS2, settings)[-1]
        return termios.tcgetattr(terminal)[5]
    except OSError:
        return None


def _check_link(link: Path) -> None:
    if link.is_symlink() and link.exists():
        raise FileExistsError(
            f"port: {link} leads to {link.readlink()}, perhaps of another virtual arm; stop that one, remove "
            "the link, or choose another path for the port."
        )
    if link.exists():
        raise FileExistsError(f"port: {link} exists and is no link; choose another path for the port.")
