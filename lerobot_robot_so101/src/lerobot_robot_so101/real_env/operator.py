# SPDX-License-Identifier: Apache-2.0
"""Questions to the operator beside the arm, and the keys they press during an episode."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from lerobot.utils.keyboard_input import create_key_listener

KEYS = "space = pause, n = end and judge, r = repeat this initial state, q = stop the evaluation"


class Aborted(SystemExit):
    """The operator has stopped the evaluation; a SystemExit ends a command without a traceback."""


class Operator:
    """Ask the operator at the terminal.

    Args:
        ask: prints a question and returns what was typed.
        listen: calls a function with the name of each pressed key; returns an object with `stop`, or None
            where keys cannot be read.
    """

    def __init__(
        self,
        ask: Callable[[str], str] = input,
        listen: Callable[[Callable[[str], None]], object] = partial(create_key_listener, controls_help=KEYS),
    ) -> None:
        self._ask, self._listen = ask, listen
        self._listener: Any = None
        self.paused = self.ended = self.retake = self.aborted = False

    def ready(self, description: str) -> None:
        """Wait until the operator has set up the scene.

        Raises:
            Aborted: if the operator stops.
        """
        answer = self._ask(f"{description}\nENTER when the scene is set up, q to stop: ")
        if answer.strip().lower().startswith("q"):
            raise Aborted

    def begin(self) -> None:
        """Listen to keys from now on."""
        self.paused = self.ended = self.retake = self.aborted = False
        self._listener = self._listen(self._on_key)

    def end(self) -> None:
        """Stop listening, because the answers to questions are typed."""
        if self._listener is not None:
            self._listener.stop()
        self._listener = None

    def judge(self) -> bool | None:
        """Ask whether the episode was a success; None repeats it.

        Raises:
            Aborted: if the operator stops.
        """
        while True:
            answer = self._ask("\nSuccess? y, n, r = repeat, q = stop: ").strip().lower()[:1]
            if answer == "q":
                raise Aborted
            if answer in ("y", "n", "r"):
                return None if answer == "r" else answer == "y"
            print(f"found {answer!r}, expected y, n, r or q.", file=sys.stderr)

    def _on_key(self, key: str) -> None:
        match key.lower():
            case "space" | " ":
                self.paused = not self.paused
            case "n" | "right":
                self.ended = True
            case "r" | "left":
                self.ended = self.retake = True
            case "q" | "esc":
                self.ended = self.aborted = True
