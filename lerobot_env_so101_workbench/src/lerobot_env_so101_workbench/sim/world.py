# SPDX-License-Identifier: Apache-2.0
"""The simulated world of environment, robot and demonstrations: one arm and one task, stepped at 30 Hz."""

import math
from collections import deque

import mujoco
import numpy as np

from lerobot_processor_so101 import arm
from lerobot_processor_so101.arm import to_radians

from ..names import check_cameras, check_level, check_size, check_task
from ..tasks import TASKS
from . import scene, servos
from .initial_states import InitialState, props_of
from .rendering import Frame, Renderer, make_renderer
from .servos import Servos, check_action, read_encoders
from .variation import VariationApplier

HOLD_TICKS = 10  # the goal must be met for a third of a second
_N_JOINTS = len(arm.JOINTS)


class World:
    """A task's scene in MuJoCo.

    Args:
        task: a name in `TASKS`.
        level: `clean`, `distractors` or `randomised`.
        renderer: backend of the cameras, see `rendering.BACKENDS`.
        shadows: draw shadows (slower).

    Attributes:
        ticks: control periods since the last reset of the scene.
        initial_state, goal: of the present episode.
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
        self._variation = VariationApplier(self.model, self.props)
        self._servos = Servos()
        self._backend = renderer
        self._renderer: Renderer | None = None
        self._gripper = self.model.body("gripper").id
        self._bodies = {prop.name: self.model.body(prop.name).id for prop in self.props}
        jaw = self.model.body("moving_jaw_so101_v1").id
        self._fingers = {self._gripper: "static", jaw: "moving"}  # by body
        self._pending: deque[np.ndarray] = deque()  # commands delayed by latency
        self._forcerange = self.model.actuator_forcerange.copy()

    # -- time --------------------------------------------------------------------------------------

    def reset(self, state: InitialState) -> None:
        """Start an episode."""
        mujoco.mj_resetData(self.model, self.data)
        self.model.actuator_forcerange[:] = self._forcerange
        joints = to_radians(np.array(state.joints))
        self.data.qpos[:_N_JOINTS] = self.data.ctrl[:] = joints
        self._servos.reset(joints)
        self.place(state)

    def place(self, state: InitialState) -> None:
        """Reset the scene: props, goal and variation of an initial state; the arm keeps its pose."""
        self.initial_state, self.goal = state, state.goal
        self._variation.apply(state.variation)
        for prop in self.props:
            x, y, yaw = state.poses[prop.name]
            joint = self.data.joint(prop.name)
            joint.qpos[:] = [x, y, scene.REST_HEIGHT[prop.shape], np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
            joint.qvel[:] = 0.0
        latency = state.variation.latency_ticks if state.variation else 0
        self._pending = deque([self.data.ctrl.copy()] * latency)
        self.ticks = self._held_ticks = self._substeps = 0
        mujoco.mj_forward(self.model, self.data)
        self._finite = True

    def step(self, action: np.ndarray, disturbance: np.ndarray | None = None) -> None:
        """Advance one control period of 1/30 s.

        Args:
            action: goal positions (6,) in LeRobot units.
            disturbance: added to the executed action (6,), same units.

        Raises:
            ValueError: if the action has the wrong size or is not finite.
        """
        action = check_action(action)
        if disturbance is not None:
            action = action + disturbance
        self.ticks += 1
        self._pending.append(self._servos.drive(to_radians(action)))
        self.data.ctrl[:] = self._pending.popleft()
        mujoco.mj_step(self.model, self.data, nstep=scene.SUBSTEPS)
        self._update()

    def drive(self, goal: np.ndarray, torque: np.ndarray) -> None:
        """Advance one physics step of 1/180 s with servos emulated elsewhere; do not mix with `step`.

        Args:
            goal: target positions of the shafts (6,) [rad]; gear play is added here.
            torque: torque limits (6,) as shares of the stall torque; 0 for no torque.
        """
        self.data.ctrl[:] = self._servos.drive(goal)
        self.model.actuator_forcerange[:] = servos.STALL_TORQUE * np.column_stack([-torque, torque])
        mujoco.mj_step(self.model, self.data)
        self._substeps += 1
        if self._substeps % scene.SUBSTEPS == 0:
            self.ticks += 1
            self._update()

    def hold(self, radians: np.ndarray) -> None:
        """Set the joints to `radians` (6,), as a hand that holds the arm; the simulation does not advance."""
        self.data.qpos[:_N_JOINTS] = radians
        self.data.qvel[:_N_JOINTS] = 0.0
        self._servos.reset(radians)
        mujoco.mj_forward(self.model, self.data)

    def _update(self) -> None:
        """Update what is derived from the state, at the end of a control period."""
        self._finite = math.isfinite(self.data.qpos.sum() + self.data.qvel.sum())  # as each of the terms
        if self._finite:
            # MuJoCo leaves body poses at the beginning of the step; cameras need those at its end.
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_camlight(self.model, self.data)
            self._held_ticks = self._held_ticks + 1 if self.task.is_success(self) else 0

    # -- state -------------------------------------------------------------------------------------

    def is_finite(self) -> bool:
        """Whether the simulation has not diverged."""
        return self._finite

    def is_success(self) -> bool:
        """Whether the goal has been met for `HOLD_TICKS` ticks in a row."""
        return self._finite and self._held_ticks >= HOLD_TICKS

    def terms(self) -> dict[str, float]:
        """Named parts of the progress, each in [0, 1]; nothing once the simulation has diverged."""
        return self.task.terms(self) if self._finite else {}

    def progress(self, terms: dict[str, float] | None = None) -> float:
        """Return the progress, 0 to 1; 1 exactly at success. Pass `terms` if they are known already."""
        if self.is_success():
            return 1.0
        terms = self.terms() if terms is None else terms
        return 0.99 * sum(terms.values()) / len(terms) if terms else 0.0

    def instruction(self) -> str:
        return self.task.instruction(self.goal)

    def joints(self) -> np.ndarray:
        """Return the present positions (6,) in LeRobot's units, as the encoders measure them."""
        return read_encoders(self.data.qpos[:_N_JOINTS])

    def upcoming_joints(self) -> np.ndarray:
        """Predict the joints (6,) at the time when a command given now takes effect, in LeRobot's units.

        Without latency these are the present positions, else the body joints of the last pending command.
        """
        joints = self.joints()
        if self._pending:
            joints[: arm.GRIPPER] = arm.from_radians(self._pending[-1])[: arm.GRIPPER]
        return joints

    def position(self, prop: str) -> np.ndarray:
        """Position (3,) of a prop [m]."""
        return self.data.xpos[self._bodies[prop]].copy()

    def rotation(self, prop: str) -> np.ndarray:
        """Rotation matrix (3, 3) of a prop."""
        return self.data.xmat[self._bodies[prop]].reshape(3, 3).copy()

    def pinch_point(self) -> np.ndarray:
        """Return the point between the fingertips (3,) [m]."""
        return self.data.xpos[self._gripper] + self.data.xmat[self._gripper].reshape(3, 3) @ arm.PINCH_POINT

    def touching_fingers(self, prop: str) -> set[str]:
        """Return the fingers ("static", "moving") in contact with a prop."""
        bodies = self.model.geom_bodyid[self.data.contact.geom]  # (contacts, 2)
        others = bodies[:, ::-1][bodies == self._bodies[prop]]
        return {self._fingers[body] for body in others if body in self._fingers}

    def is_touched(self, prop: str) -> bool:
        return bool(self.touching_fingers(prop))

    def is_gripped(self, prop: str) -> bool:
        return len(self.touching_fingers(prop)) == 2

    # -- images ------------------------------------------------------------------------------------

    def render(
        self, camera: str, height: int, width: int, rgb: bool = True, ids: bool = False, depth: bool = False
    ) -> Frame:
        """Render the images of a camera, see `Frame`."""
        check_cameras([camera], "camera")
        check_size(height, width)
        return self.renderer.render(self.data, camera, (height, width), rgb, ids, depth)

    @property
    def renderer(self) -> Renderer:
        """The renderer, created on first use: a vectorised environment forks before it renders."""
        if self._renderer is None:
            self._renderer = make_renderer(self.model, self._classes, self._backend)
        return self._renderer

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
