# SPDX-License-Identifier: Apache-2.0
"""Results of episodes on hardware, one line each, written to the disk when the episode ends."""

import json
import logging
import os
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lerobot_processor_so101.success_rates import percent

logger = logging.getLogger(__name__)


class Results:
    """The results file of an evaluation; naming an existing file resumes its evaluation.

    Args:
        path: a JSON Lines file; created with the first result.
        initial_states: names of those to evaluate; results of others in the file are not counted.
        policy: path of the policy; None if it is unknown.

    Raises:
        ValueError: if the file holds results of another policy.
    """

    def __init__(self, path: Path, initial_states: Collection[str], policy: str | None = None) -> None:
        self.path, self._policy = path, policy
        rows = list(_rows(path.read_text())) if path.is_file() else []
        others = {str(row["policy"]) for row in rows if row.get("policy", policy) != policy}
        if others:
            raise ValueError(
                f"--env.results: {path} holds results of {', '.join(sorted(others))}, and this is {policy}. "
                "Name another file."
            )
        self.rows = [row for row in rows if row["start"] in initial_states]

    @property
    def done(self) -> set[str]:
        """Names of the initial states that have a result."""
        return {row["start"] for row in self.rows}

    def add(self, initial_state: str, success: bool, **details: Any) -> None:
        """Write a result; it is on the disk when this returns."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"start": initial_state, "success": success, "policy": self._policy, **details, "time": time}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        complete = not self.path.is_file() or self.path.read_bytes()[-1:] in (b"", b"\n")
        with self.path.open("a") as file:
            file.write(("" if complete else "\n") + json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def summary(self) -> str:
        """Success rate so far with a Wilson 95 % interval."""
        successes = [row["success"] for row in self.rows]
        return percent(sum(successes), len(successes)) if successes else "no results yet"


def _rows(text: str) -> Iterator[dict[str, Any]]:
    """Parse the complete lines; a power cut may have left the last one incomplete."""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.strip():
                yield json.loads(line)
        except json.JSONDecodeError:
            logger.warning("--env.results: line %d is incomplete and left out: %s", number, line[:60])
