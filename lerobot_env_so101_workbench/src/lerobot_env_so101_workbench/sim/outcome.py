# SPDX-License-Identifier: Apache-2.0
"""How an episode ended: success, or the kind of failure."""

from collections import Counter

from ..tasks.base import is_in
from .world import World

SUCCESS = "success"
FAILURES = ("never gripped", "dropped", "wrong object", "time out", "diverged")
_GRIP_TICKS = 3  # both fingers touch a prop for a tenth of a second


class EpisodeOutcome:
    """Observes an episode tick by tick and names its outcome.

    Of a failure, the first that applies:

    - `diverged`: the simulation is no longer finite;
    - `wrong object`: another prop was gripped, and the goal's never;
    - `never gripped`: no prop was;
    - `dropped`: the goal's prop was gripped, and at the end is neither gripped nor where it belongs;
    - `time out`: all others, and every other failure of a task without a grasp.
    """

    def __init__(self) -> None:
        self._gripped_ticks: Counter[str] = Counter()
        self._gripped: set[str] = set()

    def update(self, world: World) -> None:
        """Observe the state after a tick."""
        for prop in world.props:
            ticks = self._gripped_ticks[prop.name] + 1 if world.is_gripped(prop.name) else 0
            self._gripped_ticks[prop.name] = ticks
            if ticks == _GRIP_TICKS:
                self._gripped.add(prop.name)

    def name(self, world: World) -> str:
        """Return the outcome: `SUCCESS` or one of `FAILURES`."""
        goal = world.goal
        if not world.is_finite():
            return "diverged"
        if world.is_success():
            return SUCCESS
        if goal.around is not None:
            return "time out"
        if goal.pick not in self._gripped:
            return "wrong object" if self._gripped - {goal.into} else "never gripped"
        if world.is_gripped(goal.pick) or (goal.into and is_in(world, goal.pick, goal.into)):
            return "time out"
        return "dropped"
