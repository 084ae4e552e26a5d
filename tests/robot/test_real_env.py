# SPDX-License-Identifier: Apache-2.0
"""Evaluation on hardware, with the simulated arm in its place and an operator with a list of answers."""

import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot.configs.default import EvalConfig
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.robots import make_robot_from_config
from lerobot.scripts import lerobot_eval

from lerobot_env_so101_workbench import SO101SimConfig
from lerobot_processor_so101 import models
from lerobot_processor_so101.arm import HOME, JOINTS
from lerobot_robot_so101 import SO101GuardedConfig, SO101RealEnvConfig
from lerobot_robot_so101.real_env import operator as human_operator
from lerobot_robot_so101.real_env.env import RealEnv
from lerobot_robot_so101.real_env.initial_states import read_initial_states
from lerobot_robot_so101.real_env.operator import Aborted, Operator
from lerobot_robot_so101.real_env.results import Results
from lerobot_robot_so101.real_env.success import CHECKS, SceneMasks, SuccessCheck
from tests.tiny import tiny_act


class Person:
    """Answers questions from a list, and presses keys at given ticks."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked, self.press = list(answers), [], None

    def ask(self, words: str) -> str:
        self.asked.append(words)
        return self.answers.pop(0)

    def listen(self, on_key):
        self.press = on_key

    def operator(self) -> Operator:
        return Operator(self.ask, self.listen)


@pytest.fixture
def starts(tmp_path):
    entries = [
        {"name": f"s{i}", "description": f"cube at {i} cm", "instruction": "Lift the cube."} for i in range(3)
    ]
    path = tmp_path / "starts.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def config(starts, tmp_path):
    def make(**changes):
        robot = SO101SimConfig(
            views=["top"], height=32, width=32, renderer="ray", world=f"real-{tmp_path.name}", **changes
        )
        return SO101RealEnvConfig(
            robot=robot,
            starts=starts,
            results=tmp_path / "results.jsonl",
            episode_time_s=0.1,
            home_time_s=0.05,
            fps=100,
        )

    return make


@pytest.fixture
def env(config):
    made = []

    def make(person, **changes):
        made.append(RealEnv(config(**changes), person.operator()))
        return made[-1]

    yield make
    for each in made:
        each.close()


def episode(env, keys=(), person=None):
    """Run to the end; press a key at some ticks."""
    observation, info = env.reset(seed=7)
    assert env.observation_space.contains(observation)
    over, ticks = False, 0
    while not over:
        for tick, key in keys:
            if tick == ticks:
                person.press(key)
        observation, _, terminated, truncated, info = env.step(HOME)
        over, ticks = terminated or truncated, ticks + 1
    return info["is_success"], ticks


def test_an_episode_is_set_up_judged_and_written(env):
    person = Person("", "y", "", "n")
    real = env(person)
    assert episode(real) == (True, 10)
    assert real.task_description == "Lift the cube."
    assert "Initial state 1 of 3, s0: cube at 0 cm" in person.asked[0]
    rows = [json.loads(line) for line in real.config.results.read_text().splitlines()]
    assert [(row["start"], row["success"], row["judged_by"]) for row in rows] == [("s0", True, "key")]
    assert episode(real)[0] is False
    assert "Initial state 2 of 3, s1" in person.asked[2]
    assert real._results.summary() == "50.0 % (1/2, 9.5 to 90.5)"


def results_of(config, policy=None) -> Results:
    return Results(config().results, {"s0", "s1", "s2"}, policy)


def test_results_are_of_one_policy_and_of_these_initial_states(config, tmp_path, monkeypatch):
    results = results_of(config, "a")
    results.add("s0", True)
    Results(config().results, {"other"}, "a").add("other", False)
    assert results_of(config, "a").summary().startswith("100.0 % (1/1")
    assert [json.loads(line)["policy"] for line in config().results.read_text().splitlines()] == ["a", "a"]
    (tmp_path / "b").mkdir()
    (tmp_path / "last").symlink_to("b")
    monkeypatch.setattr("sys.argv", ["lerobot-eval", f"--policy.path={tmp_path / 'last'}"])
    with pytest.raises(ValueError, match=rf"holds results of a, and this is {tmp_path / 'b'}\. Name another"):
        RealEnv(config())


def test_an_incomplete_line_loses_no_other(config, caplog):
    results_of(config).add("s0", True)
    with config().results.open("a") as file:
        file.write('{"start": "s1", "suc')
    results = results_of(config)
    assert "line 2 is incomplete" in caplog.text
    assert results.done == {"s0"}
    results.add("s1", False)
    assert results_of(config).done == {"s0", "s1"}


def test_the_next_initial_state_is_the_first_without_a_result(config):
    results = results_of(config)
    results.add("s0", True)
    results.add("s2", False)
    person = Person("", "y")
    real = RealEnv(config(), person.operator())
    real.reset()
    assert real._initial_state.name == "s1"
    real.close()
    results.add("s1", True)
    with pytest.raises(ValueError, match=r"all 3 initial states have results in .*66.7 % \(2/3"):
        RealEnv(config(), person.operator()).reset()


def test_keys_end_and_repeat_an_episode(env):
    person = Person("", "y", "", "", "y")
    real = env(person)
    assert episode(real, [(3, "n")], person) == (True, 4)
    assert episode(real, [(2, "r")], person) == (False, 3)
    assert real._results.done == {"s0"}  # s1 has no result and is repeated
    assert episode(real)[0]
    assert real._results.done == {"s0", "s1"}


def test_stopping_keeps_the_results_of_finished_episodes_only(env):
    person = Person("", "y", "", "q")
    real = env(person)
    episode(real)
    with pytest.raises(Aborted):
        episode(real, [(2, "q")], person)
    assert real._results.done == {"s0"}
    assert real._robot is None  # disconnected
    with pytest.raises(Aborted):
        real.reset()


def test_a_pause_drops_the_action_that_was_chosen_before_it(env, monkeypatch):
    person = Person("", "y")
    real = env(person)
    real.reset()
    sent = []
    monkeypatch.setattr(real._robot, "send_action", lambda action: sent.append(action))
    person.press("space")

    def go_on(seconds):
        if real._operator.paused:
            assert not sent
            person.press("space")

    monkeypatch.setattr("lerobot_robot_so101.real_env.env.time.sleep", go_on)
    real.step(HOME)
    assert not sent
    real.step(HOME)
    assert len(sent) == 1


def test_an_episode_waits_until_the_arm_is_home(env, monkeypatch):
    real = env(Person("", "y", ""))
    real.reset()
    robot, sent = real._robot, []
    joints = {f"{joint}.pos": value for joint, value in zip(JOINTS, HOME, strict=True)}

    def slow(action):
        sent.append(action)
        joints["elbow_flex.pos"] = max(30.0, 60.0 - len(sent))  # 5 sent in home_time_s; near at the 27th

    monkeypatch.setattr(robot, "send_action", slow)
    monkeypatch.setattr(robot, "get_observation", lambda: dict(joints))
    monkeypatch.setattr("lerobot_robot_so101.real_env.env.precise_sleep", lambda seconds: None)
    real._go_home()
    assert len(sent) == 27
    joints["elbow_flex.pos"] = 60.0
    monkeypatch.setattr(robot, "send_action", lambda action: None)
    with pytest.raises(TimeoutError, match="elbow_flex is 30 from home"):
        real._go_home()


def test_the_guards_report_is_logged_and_stored(env, caplog):
    class Counting:
        reports = iter(["guard: home", "guard: episode"])

        def report(self):
            return next(self.reports)

    caplog.set_level("INFO")
    real = env(Person("", "y"))
    real._robot = make_robot_from_config(real.config.robot)
    real._robot.connect()
    real._robot.guard = Counting()
    episode(real)
    assert real._results.rows[0]["guard"] == "guard: episode"
    assert "homing: guard: home" in caplog.text
    assert "s0: guard: episode" in caplog.text


def test_sigterm_is_handled_as_ctrl_c(config):
    before = signal.getsignal(signal.SIGTERM)
    try:
        envs = config().create_envs(1)["real"][0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        envs.close()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_default_home_is_refused_for_an_arm_in_percent(config):
    made = config()
    made.robot = SO101GuardedConfig(port="none", use_degrees=False)
    with pytest.raises(ValueError, match=r"--env.home: the default is in degrees"):
        made.check()
    made.home = [0.0] * 6
    made.check()


def test_an_unclear_answer_is_asked_again():
    person = Person("what", "r")
    assert person.operator().judge() is None
    assert len(person.asked) == 2


def test_lerobot_eval_asks_once_per_episode(config, tmp_path, monkeypatch):
    person = Person("", "y", "", "n")
    monkeypatch.setattr(human_operator.Operator.__init__, "__defaults__", (person.ask, person.listen))
    lerobot_eval.eval_main(
        EvalPipelineConfig(
            env=config(),
            eval=EvalConfig(n_episodes=2, batch_size=1, use_async_envs=False),
            policy=tiny_act(tmp_path / "act", (32, 32), ("top",), chunk=4),
            output_dir=tmp_path / "eval",
        )
    )
    overall = json.loads((tmp_path / "eval" / "eval_info.json").read_text())["overall"]
    assert overall["pc_success"] == 50.0
    assert not person.answers
    assert len(person.asked) == 4


def test_one_arm_is_one_environment(config):
    with pytest.raises(ValueError, match=r"--eval.batch_size: found 2, expected 1"):
        config().create_envs(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"success": "wish"}, "--env.success: found 'wish', expected one of key, inside, lifted"),
        ({"success": "inside", "segmenter": "workbench"}, "no value of --env.target, --env.container"),
        ({"home": [0.0]}, "--env.home: found 1 numbers, expected 6"),
    ],
)
def test_invalid_options_are_named(config, changes, message):
    made = config()
    for name, value in changes.items():
        setattr(made, name, value)
    with pytest.raises(ValueError, match=message):
        made.check()


def test_initial_states_that_are_missing_or_incomplete_are_refused(tmp_path):
    with pytest.raises(ValueError, match="so101-starts"):
        read_initial_states(tmp_path / "none.json")
    path = tmp_path / "starts.json"
    path.write_text(json.dumps([{"name": "a", "instruction": "b"}]))
    with pytest.raises(ValueError, match=r"entry 0 .* lacks description"):
        read_initial_states(path)
    complete = {"name": "a", "instruction": "b", "description": "c"}
    path.write_text(json.dumps([complete, complete]))
    with pytest.raises(ValueError, match=r"each name once \(\['a'\]\)"):
        read_initial_states(path)
    path.write_text(json.dumps([{**complete, "picture": "a.png"}]))
    with pytest.raises(ValueError, match="an image that does not exist"):
        read_initial_states(path)


def masks(target, container=None):
    made = []
    for box in (target, container):
        mask = np.zeros((40, 40), bool)
        if box:
            mask[box[0] : box[1], box[2] : box[3]] = True
        made.append(mask)
    return made


def test_inside_compares_with_the_outline_of_the_container():
    cube, bowl = masks((10, 16, 10, 16), (5, 25, 5, 25))
    bowl &= ~cube  # the cube covers a part of it
    assert CHECKS["inside"](SceneMasks(cube, bowl, None, None))
    beside, _ = masks((28, 34, 10, 16))
    assert not CHECKS["inside"](SceneMasks(beside, bowl, None, None))
    assert not CHECKS["inside"](SceneMasks(np.zeros_like(cube), bowl, None, None))


def test_lifted_compares_with_the_initial_depth():
    cube, none = masks((10, 16, 10, 16))
    before = np.full((40, 40), 500.0)
    assert CHECKS["lifted"](SceneMasks(cube, none, before - 60 * cube, before))
    assert not CHECKS["lifted"](SceneMasks(cube, none, before - 20 * cube, before))
    with pytest.raises(ValueError, match="no depth"):
        CHECKS["lifted"](SceneMasks(cube, none, None, None))


def test_success_needs_two_positive_checks_in_a_row(monkeypatch):
    class Segmenter:
        class_names = ("table", "cube", "bowl")
        frames = iter([True, False, True, True])

        def __call__(self, images):
            cube, bowl = masks((10, 16, 10, 16) if next(self.frames) else (28, 34, 10, 16), (5, 25, 5, 25))
            return SimpleNamespace(ids=lambda size: torch.from_numpy(np.where(cube, 1, 2 * bowl))[None])

    monkeypatch.setattr(models, "make_segmenter", lambda name: Segmenter())
    with pytest.raises(ValueError, match=r"found \['cup'\], expected classes of 'tiny'"):
        SuccessCheck("inside", "top", "tiny", "cup", "bowl")
    check = SuccessCheck("inside", "top", "tiny", "cube", "bowl", every=2)
    frame = {"top": np.zeros((40, 40, 3), np.uint8)}
    assert [check(frame) for _ in range(8)] == [False] * 7 + [True]
