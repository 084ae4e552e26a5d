# SPDX-License-Identifier: Apache-2.0
"""Results of episodes on hardware: a line each, written when the episode is over, so that no abort loses one."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scipy.stats import binomtest


class Results:
    """The file of an evaluation; going on with one that was stopped is to name it again.

    Args:
        path: a JSON Lines file; made with the first result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            self.rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]

    @property
    def done(self) -> set[str]:
        """Names of the starts that have a result."""
        return {row["start"] for row in self.rows}

    def add(self, start: str, success: bool, **what: Any) -> None:
        """Write one down; it is on the disk when this returns."""
        row = {
            "start": start,
            "success": success,
            **what,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
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
