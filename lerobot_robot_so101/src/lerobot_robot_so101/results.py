# SPDX-License-Identifier: Apache-2.0
"""Results of episodes on hardware: a line each, written when the episode is over, so that no abort loses one."""

import json
import logging
import os
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

logger = logging.getLogger(__name__)


class Results:
    """The file of an evaluation; going on with one that was stopped is to name it again.

    Args:
        path: a JSON Lines file; made with the first result.
        starts: names of those that are evaluated; results of others are left alone.
        policy: whose results they are, by its path; None if that is not known.

    Raises:
        ValueError: the file holds results of another policy.
    """

    def __init__(self, path: Path, starts: Collection[str], policy: str | None = None) -> None:
        self.path, self._policy = path, policy
        written = list(_rows(path.read_text())) if path.is_file() else []
        others = {str(row["policy"]) for row in written if row.get("policy", policy) != policy}
        if others:
            raise ValueError(
                f"--env.results: {path} holds results of {', '.join(sorted(others))}, and this is {policy}. Name another "
                "file."
            )
        self.rows = [row for row in written if row["start"] in starts]

    @property
    def done(self) -> set[str]:
        """Names of the starts that have a result."""
        return {row["start"] for row in self.rows}

    def add(self, start: str, success: bool, **what: Any) -> None:
        """Write one down; it is on the disk when this returns."""
        row = {
            "start": start,
            "success": success,
            "policy": self._policy,
            **what,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = not self.path.is_file() or self.path.read_bytes()[-1:] in (b"", b"\n")
        with self.path.open("a") as file:
            file.write(("" if whole else "\n") + json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def summary(self) -> str:
        """Successes so far with a Wilson 95 % interval, as those of the simulator are told."""
        count, total = sum(row["success"] for row in self.rows), len(self.rows)
        if not total:
            return "no results yet"
        low, high = binomtest(count, total).proportion_ci(method="wilson")
        return f"{100 * count / total:.1f} % ({count}/{total}, {100 * low:.1f} to {100 * high:.1f})"


def _rows(text: str) -> Iterator[dict[str, Any]]:
    """The lines that are whole: of the last one a power cut may have left a piece."""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.strip():
                yield json.loads(line)
        except json.JSONDecodeError:
            logger.warning("--env.results: line %d is cut off and left out: %s", number, line[:60])
