# SPDX-License-Identifier: Apache-2.0
"""`so101-improve`: the commands of each round, resuming after an interrupt, and the report."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lerobot_env_so101_workbench import CameraSetup
from lerobot_env_so101_workbench.improve import command, plan
from lerobot_env_so101_workbench.improve.command import improve, owned
from lerobot_env_so101_workbench.improve.plan import ImproveConfig
from lerobot_env_so101_workbench.improve.process import Cost, Job, copyable, run_jobs
from lerobot_processor_so101.models import class_names_of

FRAMES = 10  # of a fake episode


class FakeCommands:
    """Records commands instead of running them, and writes the files that their successors need.

    Args:
        interrupt: step at which to raise KeyboardInterrupt, after half of its work.
    """

    def __init__(self, interrupt: str | None = None) -> None:
        self.interrupt, self.steps, self.commands = interrupt, [], {}

    def __call__(self, jobs, inherited) -> None:
        for job in jobs:
            self.steps.append(job.name)
            self.commands[job.name] = job.command
            if job.command[0] == "cp":
                assert not Path(job.command[3]).exists()
                write_info(Path(job.command[3]), read_info(Path(job.command[2])))
                job.ended(Cost(60.0, 30.0), job.name != self.interrupt)
                continue
            options = dict(argument.removeprefix("--").split("=", 1) for argument in job.command[1:])
            cut = job.name == self.interrupt
            getattr(self, "run_" + job.command[0].replace("-", "_"))(options, cut)
            job.ended(Cost(60.0, 30.0), not cut)
        if self.interrupt in [job.name for job in jobs]:
            raise KeyboardInterrupt

    def run_so101_demos(self, options, half) -> None:
        root, episodes = Path(options["root"]), int(options["episodes"])
        assert (root / "meta").exists() == ("resume" in options)
        write_info(root, read_info(root) + (episodes // 2 if half else episodes))

    def run_so101_arrays(self, options, half) -> None:
        assert not Path(options["output"]).exists()
        if not half:
            write_info(Path(options["output"]), read_info(Path(options["root"])))

    def run_lerobot_train(self, options, half) -> None:
        if "resume" in options:
            assert Path(options["config_path"]).is_file()
            return
        assert Path(options["dataset.root"]).is_dir()
        assert not Path(options["output_dir"]).exists()
        saved = Path(options["output_dir"], "checkpoints", "last", "pretrained_model")
        saved.mkdir(parents=True)
        (saved / "train_config.json").write_text("{}")

    def run_lerobot_eval(self, options, half) -> None:
        log = Path(options["env.episode_log"])
        assert not log.exists()
        assert Path(options["policy.path"]).is_dir()
        log.parent.mkdir(parents=True)
        outcomes = ["success", "dropped", "success", "never gripped"][: 2 if half else 4]
        rows = [{"seed": seed, "outcome": outcome} for seed, outcome in enumerate(outcomes)]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_info(root: Path) -> int:
    path = root / "meta" / "info.json"
    return json.loads(path.read_text())["total_episodes"] if path.exists() else 0


def write_info(root: Path, episodes: int) -> None:
    info = {"codebase_version": "v3.0", "fps": 30, "features": {}, "robot_type": "so101_sim"}
    info |= {"total_episodes": episodes, "total_frames": FRAMES * episodes, "total_tasks": 1}
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))


def config(root: Path, **changes) -> ImproveConfig:
    settings = {"episodes": 6, "takeovers": 4, "rounds": 2, "eval_episodes": 4, "compare": True}
    return ImproveConfig(root=root, **{**settings, **changes})


def run(monkeypatch, settings: ImproveConfig, interrupt: str | None = None) -> FakeCommands:
    fake = FakeCommands(interrupt)
    monkeypatch.setattr(command, "run_jobs", fake)
    if interrupt is None:
        improve(settings)
    else:
        with pytest.raises(KeyboardInterrupt):
            improve(settings)
    return fake


ROUNDS = ["round 0", "round 1", "round 2", "plain 2"]
STEPS = [f"round 0: {kind}" for kind in ("demonstrate", "arrays", "train")]
for before, name in pairwise(ROUNDS):
    record = "demonstrate" if name == "plain 2" else "take over"
    STEPS += [f"{name}: {kind}" for kind in ("copy", record, "arrays", "train")] + [f"{before}: evaluate"]
STEPS.append("plain 2: evaluate")


def test_the_steps_of_two_rounds_and_the_comparison(monkeypatch, tmp_path):
    fake = run(monkeypatch, config(tmp_path / "run"))
    assert fake.steps == STEPS
    root = tmp_path / "run"
    for number in (1, 2):
        takeovers = fake.commands[f"round {number}: take over"]
        former = root / f"round_{number - 1}" / "train" / "checkpoints" / "last" / "pretrained_model"
        assert f"--policy.path={former}" in takeovers
        assert "--episodes=4" in takeovers
        assert f"--root={root / f'round_{number}/dataset'}" in takeovers
        assert "--resume=true" in takeovers
    assert fake.commands["round 2: copy"][2:] == [str(root / f"round_{n}/dataset") for n in (1, 2)]
    assert f"--root={root / 'round_2/dataset'}" in fake.commands["round 2: arrays"]
    assert f"--dataset.root={root / 'round_2/arrays'}" in fake.commands["round 2: train"]
    assert f"--steps={6 * FRAMES * 14 // 32}" in fake.commands["round 2: train"]  # six times over the frames
    # as many frames as both rounds of takeovers: 8 of the 6 + 8 episodes
    assert "--episodes=8" in fake.commands["plain 2: demonstrate"]
    seeds = [
        argument
        for name in STEPS
        if name.endswith(("demonstrate", "take over"))
        for argument in fake.commands[name]
        if argument.startswith("--seed")
    ]
    assert len(set(seeds)) == 4
    for name in ROUNDS:
        assert "--env.starts=validation" in fake.commands[f"{name}: evaluate"]
    assert (
        '--policy.watched_classes=["target", "container", "static_finger", "moving_finger"]'
        in fake.commands["plain 2: train"]
    )


def test_the_default_policy_sorts_by_roles(monkeypatch, tmp_path):
    settings = config(tmp_path / "run", task="sort_cubes", rounds=0, compare=False)
    command = run(monkeypatch, settings).commands["round 0: train"]
    assert '--policy.roles={"target": "cube", "container": "bowl"}' in command
    watched = ["target", "container", "static_finger", "moving_finger"]
    assert f"--policy.watched_classes={json.dumps(watched)}" in command


def test_the_default_policy_acts_from_rgb_with_a_segmenter(monkeypatch, tmp_path):
    needed = CameraSetup(("top", "wrist"), 240, 320)
    monkeypatch.setattr(plan, "read_config", lambda path: None)
    monkeypatch.setattr(plan, "needed_images", lambda *_: needed)
    options = {"task": "sort_cubes", "segmenter": "sorting", "width": 112, "shadows": True, "compare": False}
    commands = run(monkeypatch, config(tmp_path / "run", rounds=1, **options)).commands
    assert "--segmenter=sorting" in commands["round 1: arrays"]
    assert {"--policy.segmenter=sorting", "--policy.depth=segmenter"} <= set(commands["round 0: train"])
    assert f"--policy.class_names={json.dumps(class_names_of('sorting'))}" in commands["round 0: train"]
    recorded = {"--rgb=false", "--seg=true", "--depth=true", "--width=112", "--shadows=true"}
    assert recorded <= set(commands["round 1: take over"])
    assert {*needed.flags("--env."), "--env.shadows=true"} <= set(commands["round 1: evaluate"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 84}, r"--width, --height: found 84x84, .* 320x240: give --width=112"),
        ({"train": Path(__file__)}, "--segmenter: found sorting beside --train"),
        ({"segmenter": "sortin"}, "perception model 'sortin'"),
    ],
)
def test_a_segmenter_that_does_not_fit_is_refused(tmp_path, changes, message):
    options = {"segmenter": "sorting", "width": 112, **changes}
    with pytest.raises(ValueError, match=message):
        improve(config(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_the_report_has_rates_failures_and_times(monkeypatch, tmp_path):
    run(monkeypatch, config(tmp_path / "run"))
    outcomes, costs = (tmp_path / "run" / "report.md").read_text().split("\n\n")
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in outcomes.splitlines()]
    assert header == [
        *("policy", "episodes", "frames", "success (Wilson 95 %)"),
        *("never gripped", "dropped"),
    ]
    assert [row[:3] for row in rows] == [
        ["round 0", "6", "60"],
        ["round 1", "10", "100"],
        ["round 2", "14", "140"],
        ["plain 2", "14", "140"],
    ]
    assert rows[0][3:] == ["50.0 % (2/4, 15.0 to 85.0)", "1", "1"]
    assert costs.splitlines()[-1].split() == ["|", "all", "|", "|", "19.0", "|", "9.5", "|"]
    assert (tmp_path / "run" / "report.png").stat().st_size > 1000


def test_without_matplotlib_there_is_a_table_and_no_plot(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run(monkeypatch, config(tmp_path / "run", rounds=0, compare=False))
    assert sorted(path.name for path in (tmp_path / "run").glob("report.*")) == ["report.md"]


@pytest.mark.parametrize("cut", STEPS)
def test_an_interrupted_run_resumes_at_the_step_that_was_cut(monkeypatch, tmp_path, cut):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # plots would take most of the time
    settings = config(tmp_path / "run")
    before = run(monkeypatch, settings, interrupt=cut)
    after = run(monkeypatch, settings)
    assert cut in before.steps
    assert after.steps[0] == cut
    # nothing else is run twice, also not what had ended beside it
    assert sorted([*before.steps, *after.steps]) == sorted([*STEPS, cut])
    kind = cut.partition(": ")[2]
    if kind in ("demonstrate", "take over", "train"):
        assert "--resume=true" in after.commands[cut]
    table = (tmp_path / "run" / "report.md").read_text()
    assert "| round 2 | 14 " in table
    assert "| plain 2 | 14 " in table
    assert "| 20.0 " in table  # minutes: those of the part that was cut count too


def test_a_step_that_was_complete_when_it_was_cut_is_not_run_again(monkeypatch, tmp_path):
    settings = config(tmp_path / "run", rounds=0, compare=False)
    run(monkeypatch, settings, interrupt="round 0: demonstrate")
    write_info(settings.root / "round_0" / "dataset", 6)
    assert run(monkeypatch, settings).steps == [
        f"round 0: {kind}" for kind in ("arrays", "train", "evaluate")
    ]


def test_a_recording_that_ended_early_is_not_trained_on(monkeypatch, tmp_path):
    class Early(FakeCommands):
        def run_so101_demos(self, options, half) -> None:
            super().run_so101_demos(options, half=True)

    monkeypatch.setattr(command, "run_jobs", fake := Early())
    with pytest.raises(RuntimeError, match="round 0: demonstrate ended before its work was done"):
        improve(config(tmp_path / "run"))
    assert fake.steps == ["round 0: demonstrate"]


def test_other_options_are_refused_by_name(monkeypatch, tmp_path):
    recipe = tmp_path / "train.yaml"
    recipe.write_text("steps: 1")
    settings = {"rounds": 0, "compare": False, "train": recipe}
    run(monkeypatch, config(tmp_path / "run", **settings))
    with pytest.raises(ValueError, match=r"--takeovers: .* began with 4, the command has 5"):
        improve(config(tmp_path / "run", **{**settings, "takeovers": 5}))
    more = run(monkeypatch, config(tmp_path / "run", **{**settings, "rounds": 1}))
    assert more.steps == [f"round 1: {kind}" for kind in ("copy", "take over", "train", "evaluate")]
    assert f"--config_path={tmp_path / 'run' / 'train.yaml'}" in more.commands["round 1: train"]
    recipe.write_text("steps: 2")
    with pytest.raises(ValueError, match=r"--train: .* began with 'steps: 1'"):
        improve(config(tmp_path / "run", **settings))


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="left as it was"):
        improve(config(tmp_path))
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seg": False}, "--seg, --depth: found false"),
        ({"episodes": 0}, "--episodes: found 0, expected 1 or more"),
        ({"eval_episodes": 201}, "--eval_episodes: found 201, expected at most 200"),
        ({"rounds": 0}, "--compare: found true without takeovers"),
        ({"train": Path("typo.yaml")}, "--train: found no file typo.yaml"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        improve(config(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_two_runs_cannot_share_a_folder(tmp_path):
    with owned(tmp_path) as lock:
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    try:  # as after a kill: the command outlives the run that started it
        with pytest.raises(BlockingIOError, match="a command of one that was killed"), owned(tmp_path):
            pass
    finally:
        orphan.communicate(b"\n")
    with owned(tmp_path):
        pass


# -- running commands ----------------------------------------------------------------------------------------


def test_a_command_is_printed_as_a_shell_reads_it():
    arguments = ["echo", "--task=Lift the 'red' cube", '--cameras=["top", "wrist"]', "a b --c", "$HOME"]
    assert shlex.split(copyable(arguments).replace("\\\n", "")) == arguments


class Scripts:
    """Jobs that run Python scripts.

    Attributes:
        ended: (name, succeeded) of the jobs that have ended.
    """

    def __init__(self, folder: Path, **scripts: str) -> None:
        self.folder, self.ended, self.costs = folder, [], []
        self.jobs = [self._job(name, script) for name, script in scripts.items()]

    def _job(self, name: str, script: str) -> Job:
        def ended(cost: Cost, succeeded: bool) -> None:
            self.ended.append((name, succeeded))
            self.costs.append(cost)

        return Job(name, [sys.executable, "-c", script], self.folder / f"{name}.log", ended)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


def test_the_first_output_is_shown_and_both_are_logged(tmp_path):
    shown = []
    scripts = Scripts(tmp_path, a=r"print('begin'); print('\r50 %\r100 %\nend', end='')", b="print('other')")
    run_jobs(scripts.jobs, shown.append)
    assert shown == ["begin\n", "\r", "50 %\r", "100 %\n", "end"]
    assert scripts.log("a") == "begin\n\n50 %\n100 %\nend"  # read with universal newlines
    assert scripts.log("b") == "other\n"
    assert sorted(scripts.ended) == [("a", True), ("b", True)]
    assert all(cost.wall_s > 0 and cost.cpu_s > 0 for cost in scripts.costs)


def test_a_failure_shows_the_last_lines_and_the_log_once_the_others_have_ended(tmp_path):
    failing = "import sys; print('the reason', file=sys.stderr); sys.exit(3)"
    scripts = Scripts(tmp_path, good="import time; time.sleep(1)", bad=failing)
    with pytest.raises(RuntimeError) as error:
        run_jobs(scripts.jobs)
    for part in ("bad: ", "exit code 3", "the reason", str(tmp_path / "bad.log")):
        assert part in str(error.value)
    assert sorted(scripts.ended) == [("bad", False), ("good", True)]


def test_an_interrupt_lets_all_commands_finish_their_work(tmp_path):
    waiting = """
import time
from pathlib import Path
try:
    Path(r"{ready}").touch()
    while not Path(r"{other}").exists():
        time.sleep(0.05)
    print("ready", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("x" * 1_000_000)  # more than a pipe holds
    print("saved")
"""
    one, two = tmp_path / "one", tmp_path / "two"
    first, second = waiting.format(ready=one, other=two), waiting.format(ready=two, other=one)
    scripts = Scripts(tmp_path, a=first, b=second)

    def interrupt(line: str) -> None:
        if line == "ready\n":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_jobs(scripts.jobs, interrupt)
    for name in ("a", "b"):
        assert scripts.log(name).endswith("saved\n")
    assert sorted(scripts.ended) == [("a", False), ("b", False)]


def test_a_log_that_cannot_be_written_ends_the_command(tmp_path):
    scripts = Scripts(tmp_path, full="import time; print('x', flush=True); time.sleep(600)")

    def show(line: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_jobs(scripts.jobs, show)
    assert scripts.ended == [("full", False)]


# -- everything together -------------------------------------------------------------------------------------

RECIPE = """
policy: {type: segdepth, device: cpu, push_to_hub: false, cameras: [top], hidden_dim: 16}
steps: 2
batch_size: 2
num_workers: 0
"""


@pytest.mark.slow
def test_a_tiny_run_of_the_real_commands(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    arguments = ["--task=lift_cube", "--level=clean", "--episodes=2", "--rounds=1", "--takeovers=1"]
    arguments += ["--eval_episodes=1", "--cameras=[top]", "--height=32", "--width=32"]
    arguments += [f"--train={tmp_path / 'recipe.yaml'}", f"--root={tmp_path / 'run'}"]
    script = Path(sys.executable).parent / "so101-improve"
    done = subprocess.run([script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    table = (tmp_path / "run" / "report.md").read_text()
    assert "| round 0 | 2 " in table
    assert "| round 1 | 3 " in table
