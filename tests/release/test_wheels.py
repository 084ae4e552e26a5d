# SPDX-License-Identifier: Apache-2.0
"""The wheels: what is in them, and whether they work in an environment of their own."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from release.build import ROOT, absolute_links, build, members

URL = "https://forge.example/owner/name"
IMAGES = ["--height=48", "--width=64"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("dist")
    for member in members():
        build(member, URL, "v0", out)
    assert len(list(out.glob("*.tar.gz"))) == len(members())
    return {path.name.partition("-")[0]: path for path in out.glob("*.whl")}


@pytest.mark.slow
def test_wheels_are_complete(wheels):
    assert len(wheels) == len(members())
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as file:
            files = file.namelist()
            metadata = file.read(next(path for path in files if path.endswith("/METADATA"))).decode()
        assert f"{name}/py.typed" in files
        assert any(path.endswith("licenses/LICENSE") for path in files)
        for field in ("Author", "License-Expression", "Project-URL", "Classifier", "Keywords"):
            assert re.search(rf"^{field}: .", metadata, re.M), f"{name}: no {field}"
        links = re.findall(r"\]\(([^)]*)\)", metadata)
        assert links
        assert all(link.startswith(URL) for link in links), links
        source = {path.name for path in (ROOT / _folder(name) / "src" / name).rglob("*") if path.is_file()}
        packed = {Path(path).name for path in files}
        assert {path for path in source if not path.endswith(".pyc")} <= packed


def _folder(name: str) -> str:
    return "processors" if name == "lerobot_processor_so101" else name


def test_links_that_lead_nowhere_are_refused():
    page = "[a](../LICENSE), [b](https://x.example), [c](#here), [d](../docs/imf.md#options)"
    expected = f"[a]({URL}/blob/v1/LICENSE), [b](https://x.example), [c](#here), "
    expected += f"[d]({URL}/blob/v1/docs/imf.md#options)"
    assert absolute_links(page, ROOT / "processors", URL, "v1") == expected
    with pytest.raises(ValueError, match=r"found a link to missing\.md"):
        absolute_links("[a](missing.md)", ROOT / "processors", URL, "v1")


@pytest.mark.slow
def test_wheels_work_outside_the_repository(wheels, tmp_path):
    """Demonstrate, precompute, train, evaluate; dependencies come from the environment of the tests."""
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *map(str, wheels.values())]
    subprocess.run([python, *install], check=True)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": f"{python.parent}:{os.environ['PATH']}"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    modules = ", ".join(wheels)
    found = run(str(python), "-c", f"import {modules}\nfor m in ({modules}): print(m.__file__)")
    assert all(path.startswith(str(site)) for path in found.splitlines()), found
    run("so101-demos", "--root=demos", "--episodes=1", "--rgb=true", "--video=false", *IMAGES)
    run("so101-precompute", "--root=demos", "--output=seen", "--segmenter=workbench", "--depth=segmenter",
        "--device=cpu")  # fmt: skip
    run(str(python), "-m", "lerobot.scripts.lerobot_train", "--policy.type=segdepth", "--policy.device=cpu",
        "--policy.push_to_hub=false", "--policy.segmenter=workbench", "--policy.depth=segmenter", "--steps=2",
        "--dataset.repo_id=local/d", "--dataset.root=seen", "--output_dir=train", "--batch_size=4",
        "--num_workers=0")  # fmt: skip
    run(str(python), "-m", "lerobot.scripts.lerobot_eval", "--policy.device=cpu", "--env.type=so101_sim",
        "--policy.path=train/checkpoints/last/pretrained_model", "--eval.n_episodes=1", "--eval.batch_size=1",
        "--env.height=48", "--env.width=64", "--output_dir=eval")  # fmt: skip
    assert (tmp_path / "eval" / "eval_info.json").is_file()
