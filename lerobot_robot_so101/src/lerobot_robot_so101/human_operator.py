# SPDX-License-Identifier: Apache-2.0
"""The person beside the arm: asked before and after an episode, and heard while it lasts."""

import sys
from collections.abc import Callable

from lerobot.utils.keyboard_input import create_key_listener

KEYS = "space = pause, n = end and judge, r = lay out again, q = stop the evaluation"


class Aborted(SystemExit):
    """The operator has stopped the evaluation; what is written down stays. It ends a command without a traceback."""


class Operator:
    """Asks at the terminal.

    Args:
        ask: shows a question and returns what was typed.
        listen: starts to call back with the names of keys; what it returns has `stop`, or is None where keys cannot be heard.
    """

    def __init__(
        self,
        ask: Callable[[str], str] = input,
        listen: Callable[[Callable[[str], None]], object] = lambda heard: create_key_listener(
            heard, controls_help=KEYS
        ),
    ) -> None:
        self._ask, self._listen = ask, listen
        self._listener: object = None
        self.paused = self.ended = self.retake = self.aborted = False

    def ready(self, words: str) -> None:
        """Wait until the scene is laid out.

        Raises:
            Aborted: the operator stops instead.
        """
        if self._ask(f"{words}\nENTER when it lies there, q to stop: ").strip().lower().startswith("q"):
            raise Aborted

    def begin(self) -> None:
        """Listen to keys from now on."""
        self.paused = self.ended = self.retake = self.aborted = False
        self._listener = self._listen(self._heard)

    def end(self) -> None:
        """Listen no longer: questions are typed."""
        stop = getattr(self._listener, "stop", None)
        if stop is not None:
            stop()
        self._listener = None

    def judge(self) -> bool | None:
        """Whether the episode was a success; None to have it again.

        Raises:
            Aborted: the operator stops instead.
        """
        while True:
            answer = self._ask("\nSuccess? y, n, r = lay it out again, q = stop: ").strip().lower()[:1]
            if answer == "q":
                raise Aborted
            if answer in ("y", "n", "r"):
                return None if answer == "r" else answer == "y"
            print(f"found {answer!r}, expected y, n, r or q.", file=sys.stderr)

    def _heard(self, key: str) -> None:
        match key.lower():
            case "space" | " ":
                self.paused = not self.paused
            case "n" | "right":
                self.ended = True
            case "r" | "left":
                self.ended = self.retake = True
            case "q" | "esc":
                self.ended = self.aborted = True
