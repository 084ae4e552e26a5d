# SPDX-License-Identifier: Apache-2.0
"""The simulated world: one arm, one task, stepped at 30 Hz. Environment, robot and demonstrations stand on it."""

from __future__ import annotations

import math
from collections import deque

import mujoco
import numpy as np

from . import arm, scene
from .arm import Servos, check_action, read_encoders, to_radians
from .names import check_cameras, check_level, check_size, check_task
from .rendering import Frame, Renderer, make_renderer
from .start import Start, props_of
from .tasks import TASKS
from .variation import Applier

HOLD_TICKS = 10  # a goal counts once it has been met for a third of a second
_N_JOINTS = len(arm.JOINTS)
# Between the finger tips, where a cube is held: gripper frame, metres.
PINCH = np.array([0.0135, 0.0, -0.0945])


class World:
    """A task's scene in MuJoCo.

    Args:
        task: a name in `TASKS`.
        level: `clean`, `distractors` or `randomised`.
        renderer: backend of the cameras, see `rendering.BACKENDS`.
        shadows: draw shadows (slower).

    Attributes:
        ticks: control periods since the present start was laid out.
        start, goal: the present start and what is to be done.
    """

    def __init__(
        self, task: str, level: str = "clean", renderer: str = "auto", shadows: bool = False
    ) -> None:
        self.task, self.level = TASKS[check_task(task)], check_level(level)
        self.props = props_of(task, level)
        self.class_names = scene.class_names(self.props)
        self.model = scene.build(self.props, shadows)
        self.data = mujoco.MjData(self.model)
        self._classes = scene.classes_of_geoms(self.model, self.props)
        self._applier = Applier(self.model, self.props)
        self._servos = Servos()
        self._backend = renderer
        self._renderer: Renderer | None = None
        self._gripper = self.model.body("gripper").id
        self._bodies = {prop.name: self.model.body(prop.name).id for prop in self.props}
        self._fingers = _contact_sides(self.model)
        self._late: deque[np.ndarray] = deque()
        self._forcerange = self.model.actuator_forcerange.copy()

    # -- time ------------------------------------------------------------------------------------------------

    def reset(self, start: Start) -> None:
        """Begin an episode."""
        mujoco.mj_resetData(self.model, self.data)
        self.model.actuator_forcerange[:] = self._forcerange
        joints = to_radians(np.array(start.joints))
        self.data.qpos[:_N_JOINTS] = self.data.ctrl[:] = joints
        self._servos.reset(joints)
        self.place(start)

    def place(self, start: Start) -> None:
        """Lay out the props, goal and variation of a start and leave the arm where it is."""
        self.start, self.goal = start, start.goal
        self._applier.apply(start.variation)
        for prop in self.props:
            x, y, yaw = start.poses[prop.name]
            joint = self.data.joint(prop.name)
            joint.qpos[:] = [x, y, scene.REST_HEIGHT[prop.shape], np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
            joint.qvel[:] = 0.0
        latency = start.variation.latency_ticks if start.variation else 0
        self._late = deque([self.data.ctrl.copy()] * latency)
        self.ticks = self._held_ticks = self._substeps = 0
        mujoco.mj_forward(self.model, self.data)
        self._finite = True

    def step(self, action: np.ndarray, disturbance: np.ndarray | None = None) -> None:
        """Advance one control period of 1/30 s.

        Args:
            action: goal positions (6,) in LeRobot units.
            disturbance: added to the action on its way to the servos (6,), same units.

        Raises:
            ValueError: the action has the wrong size or is not finite.
        """
        action = check_action(action)
        if disturbance is not None:
            action = action + disturbance
        self.ticks += 1
        self._late.append(self._servos.drive(to_radians(action)).copy())
        self.data.ctrl[:] = self._late.popleft()
        mujoco.mj_step(self.model, self.data, nstep=scene.SUBSTEPS)
        self._look()

    def drive(self, goal: np.ndarray, torque: np.ndarray) -> None:
        """Advance one physics step of 1/180 s under servos that are emulated elsewhere; not to be mixed with `step`.

        Args:
            goal: what the servos drive their shafts to (6,) [rad]; gear play is added here.
            torque: the most they push with (6,), as shares of the stall torque; 0 lets a joint go.
        """
        self.data.ctrl[:] = self._servos.drive(goal)
        self.model.actuator_forcerange[:, 0] = -arm.STALL_TORQUE * torque
        self.model.actuator_forcerange[:, 1] = arm.STALL_TORQUE * torque
        mujoco.mj_step(self.model, self.data)
        self._substeps += 1
        if self._substeps % scene.SUBSTEPS == 0:
            self.ticks += 1
            self._look()

    def hold(self, radians: np.ndarray) -> None:
        """Put the joints at `radians` (6,), as a hand does that holds the arm; nothing else moves and no time passes."""
        self.data.qpos[:_N_JOINTS] = radians
        self.data.qvel[:_N_JOINTS] = 0.0
        self._servos.reset(radians)
        mujoco.mj_forward(self.model, self.data)

    def _look(self) -> None:
        """Find out what the case is at the end of a control period."""
        # A sum is NaN or infinite if any of its terms is.
        self._finite = math.isfinite(self.data.qpos.sum() + self.data.qvel.sum())
        if self._finite:
            # After a step MuJoCo's body poses are those of the step's beginning; cameras want them now.
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_camlight(self.model, self.data)
            self._held_ticks = self._held_ticks + 1 if self.task.is_success(self) else 0

    # -- what is the case ------------------------------------------------------------------------------------

    def is_finite(self) -> bool:
        """Whether the simulation has not diverged."""
        return self._finite

    def is_success(self) -> bool:
        """Whether the goal has been met for `HOLD_TICKS` ticks in a row."""
        return self.is_finite() and self._held_ticks >= HOLD_TICKS

    def terms(self) -> dict[str, float]:
        """Named parts of the progress, each in [0, 1]; nothing once the simulation has diverged."""
        return self.task.terms(self) if self.is_finite() else {}

    def progress(self, terms: dict[str, float] | None = None) -> float:
        """How far along the task is: 0 to 1, and 1 exactly at success. `terms` saves computing them again."""
        if self.is_success():
            return 1.0
        terms = self.terms() if terms is None else terms
        return 0.99 * sum(terms.values()) / len(terms) if terms else 0.0

    def instruction(self) -> str:
        return self.task.instruction(self.goal)

    def joints(self) -> np.ndarray:
        """Present positions (6,) in LeRobot units, as the servos' encoders report them."""
        return read_encoders(self.data.qpos[:_N_JOINTS])

    def upcoming_joints(self) -> np.ndarray:
        """Where the body joints (6,) will be when a command given now takes effect, in LeRobot units.

        Without latency that is the present position; with it, the last command that is still under way.
        """
        joints = self.joints()
        if self._late:
            joints[: arm.GRIPPER] = arm.from_radians(self._late[-1])[: arm.GRIPPER]
        return joints

    def position(self, prop: str) -> np.ndarray:
        """Position (3,) of a prop [m]."""
        return self.data.xpos[self._bodies[prop]].copy()

    def rotation(self, prop: str) -> np.ndarray:
        """Rotation matrix (3, 3) of a prop."""
        return self.data.xmat[self._bodies[prop]].reshape(3, 3).copy()

    def pinch_point(self) -> np.ndarray:
        """Point between the finger tips (3,) [m]."""
        return self.data.xpos[self._gripper] + self.data.xmat[self._gripper].reshape(3, 3) @ PINCH

    def touching_fingers(self, prop: str) -> set[str]:
        """Which fingers ("static", "moving") touch a prop."""
        body = self._bodies[prop]
        contacts = self.data.contact.geom
        on_prop = self.model.geom_bodyid[contacts] == body
        others = contacts[:, ::-1][on_prop]
        return {self._fingers[geom] for geom in others if geom in self._fingers}

    def is_touched(self, prop: str) -> bool:
        return bool(self.touching_fingers(prop))

    def is_gripped(self, prop: str) -> bool:
        return len(self.touching_fingers(prop)) == 2

    # -- pictures --------------------------------------------------------------------------------------------

    def render(self, camera: str, height: int, width: int, **what: bool) -> Frame:
        """What a camera sees; `what` asks for `rgb`, `ids` and `depth` (see `rendering.Frame`)."""
        check_cameras([camera], "camera"), check_size(height, width)
        return self.renderer.render(self.data, camera, height, width, **what)

    @property
    def renderer(self) -> Renderer:
        """The renderer, created on first use: a vectorised environment forks before it draws."""
        if self._renderer is None:
            self._renderer = make_renderer(self.model, self._classes, self._backend)
        return self._renderer

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _contact_sides(model: mujoco.MjModel) -> dict[int, str]:
    """Which finger each colliding geom of the gripper belongs to."""
    sides = {"gripper": "static", "moving_jaw_so101_v1": "moving"}
    return {
        geom: sides[model.body(model.geom_bodyid[geom]).name]
        for geom in range(model.ngeom)
        if model.geom_contype[geom] and model.body(model.geom_bodyid[geom]).name in sides
    }
