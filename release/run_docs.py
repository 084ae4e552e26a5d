# SPDX-License-Identifier: Apache-2.0
"""Execute the commands of the documentation and of the configurations, at reduced size.

    python -m release.run_docs [pages or configurations]

Each page runs in a folder of its own, which contains the repository without its outputs. The blocks of a page
run in their order, with the commands of this environment and the options of `reduced_size.py`. Models of the
Hub are tiny ones with random weights. A block after the line `<!-- not executed: reason -->` is not executed;
neither is a configuration with the comment `# not executed: reason`.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from release.build import ROOT, members
from release.reduced_size import EMULATED, SERVERS, SUBSTITUTES, program, reduced

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(folder / "README.md" for folder in members()),
]
CONFIGURATIONS = sorted(ROOT.glob("*/src/*/configs/*.yaml"))
COMMANDS = {
    point.name: point
    for point in metadata.entry_points(group="console_scripts")
    if point.name.startswith(("so101-", "lerobot-", "hlrp-"))
}
SHARED = ("make", "python")  # other programs whose options are reduced
TIMEOUT_S = 900
_BLOCK = re.compile(r"^(?:<!-- not executed:([^\n]*)-->\n)?```bash\n(.*?)^```", re.M | re.S)
_STAND_IN = """#!{python}
import sys
sys.path.insert(0, {root!r})
from release.run_docs import stand_in
stand_in({real!r}, sys.argv)
"""


@dataclass(frozen=True)
class Block:
    """Commands of a page.

    Args:
        line: number of the first line, from 1.
        text: the commands.
        excuse: why they are not executed; None if they are.
    """

    line: int
    text: str
    excuse: str | None = None


@dataclass
class Report:
    """What became of the blocks of a page.

    Args:
        page: path in the repository.
        executed: number of blocks that ended with exit code 0.
        excused: reasons of the blocks that are not executed.
        failed: name and the end of the output of each block that failed.
        seconds: wall-clock time, with what the page needs from elsewhere.
    """

    page: str
    executed: int = 0
    excused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> list[str]:
        blocks = self.executed + len(self.excused) + len(self.failed)
        reasons = ", ".join(f"{reason} ({n})" for reason, n in Counter(self.excused).items())
        numbers = (blocks, self.executed, len(self.excused), len(self.failed), round(self.seconds))
        return [self.page, *map(str, numbers), reasons]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, or the commands in the first comment of a configuration as one block."""
    text = page.read_text()
    if page.suffix == ".yaml":
        commands = "\n".join(re.findall(r"^#   (.*)$", text, re.M)) + "\n"
        excuses = re.findall(r"^# not executed:(.*)$", text, re.M)
        return [Block(1, commands, excuses[0].strip() if excuses else None)]
    found = []
    for match in _BLOCK.finditer(text):
        excuse = None if match[1] is None else match[1].strip()
        found.append(Block(text.count("\n", 0, match.start(2)) + 1, match[2], excuse))
    return found


def run_page(page: Path, home: Path) -> Report:
    """Execute the blocks of a page.

    Args:
        page: a page or configuration of the repository.
        home: folder of the Hub's models, shared by all pages.

    Returns:
        The report. After a block that failed, the next ones are executed too.
    """
    begin = time.monotonic()
    name = os.path.relpath(page, ROOT)
    report = Report(name)
    with tempfile.TemporaryDirectory(prefix="run-docs-") as temporary, _servers(Path(temporary)):
        environment = _environment(Path(temporary), home)
        steps = [Block(0, f"bash {ROOT}/release/before.sh {name}"), *blocks(page)]
        for block in steps:
            if block.excuse is not None:
                report.excused.append(block.excuse)
            elif error := _run_block(block, Path(temporary), environment):
                report.failed.append(f"{name}:{block.line}: {error}")
            elif block.line:
                report.executed += 1
    report.seconds = time.monotonic() - begin
    return report


def _run_block(block: Block, folder: Path, environment: dict[str, str]) -> str:
    """Execute a block and keep its variables in `environment`; return the end of its output if it fails."""
    text, state = block.text, folder / "variables"
    for found, substitute in SUBSTITUTES.items():
        text = text.replace(found, substitute)
    script = f"set -aeu\ntrap 'env -0 > {state}' EXIT\n{text}"
    (folder / "answers").write_text("n\n" * 50_000)  # no to every question
    with (folder / "log").open("w") as log, (folder / "answers").open() as answers:
        done = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder / "work",
            env=environment,
            stdin=answers,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = done.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(done.pid, signal.SIGKILL)
            code = done.wait()
        output = (folder / "log").read_text(errors="replace")
    if state.exists():
        variables = dict(line.split("=", 1) for line in state.read_text().split("\0") if "=" in line)
        environment.update({key: value for key, value in variables.items() if key not in ("PATH", "_")})
    return f"exit code {code}\n" + "\n".join(output.splitlines()[-30:]) if code else ""


def _environment(folder: Path, home: Path) -> dict[str, str]:
    """Make the working folder of a page and the commands on its PATH; return its environment variables."""
    work, programs = folder / "work", folder / "bin"
    for new in (work, programs, folder / "servers"):
        new.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("outputs", "data", "dist", ".git"):
            (work / path.name).symlink_to(path)
    scripts = Path(sys.executable).parent
    for name in (*COMMANDS, *SHARED):
        real = shutil.which(name) if name == "make" else str(scripts / name)
        (programs / name).write_text(_STAND_IN.format(python=sys.executable, root=str(ROOT), real=real))
        (programs / name).chmod(0o755)
    return {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "PATH": os.pathsep.join([str(programs), str(scripts), os.environ["PATH"]]),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_LEROBOT_HOME": str(folder / "lerobot"),
        "RUN_DOCS_SERVERS": str(folder / "servers"),
        "SO101_ONNX_RUNTIME": "0",
        "WANDB_MODE": "disabled",
    }


def stand_in(real: str, command: Sequence[str]) -> None:
    """Run a command at reduced size, in place of this process unless it is a server.

    Args:
        real: path of its program.
        command: its name and arguments.
    """
    name = program(command)
    arguments = [real, *reduced(command)[1:]]
    if name not in SERVERS:
        if any(EMULATED in word for word in command):
            arguments = [sys.executable, "-m", "tests.slow_machine", name, *arguments[1:]]
        os.execv(arguments[0], arguments)
    folder = Path(os.environ["RUN_DOCS_SERVERS"])
    _stop(folder / name)
    log = folder / f"{name}.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    (folder / name).write_text(str(server.pid))
    for _ in range(600):
        if SERVERS[name] in log.read_text() or server.poll() is not None:
            break
        time.sleep(0.2)
    print(log.read_text())
    sys.exit(SERVERS[name] not in log.read_text())


@contextlib.contextmanager
def _servers(folder: Path) -> Iterator[None]:
    """Stop the servers of a page when it ends."""
    try:
        yield
    finally:
        for name in SERVERS:
            _stop(folder / "servers" / name)


def _stop(process: Path) -> None:
    """Stop the server whose number is in a file, if there is one."""
    if not process.exists():
        return
    number = int(process.read_text())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(number, signal.SIGTERM)
        for _ in range(50):
            time.sleep(0.1)
            os.killpg(number, 0)
        os.killpg(number, signal.SIGKILL)
    process.unlink()


def table(reports: Sequence[Report]) -> str:
    """Format the reports, with a last row of sums."""
    total = Report("all")
    for report in reports:
        total.executed += report.executed
        total.excused += report.excused
        total.failed += report.failed
        total.seconds += report.seconds
    head = ["page", "blocks", "executed", "excused", "failed", "seconds", "reasons"]
    rows = [head, *(report.row() for report in (*reports, total))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, help="pages and configurations (default: all)")
    pages = [path.resolve() for path in parser.parse_args().pages]
    reports = []
    with tempfile.TemporaryDirectory(prefix="run-docs-hub-") as home:
        hub = {**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, "-m", "tests.tiny_hub"], cwd=ROOT, env=hub, check=True)
        for page in pages or [page for page in (*PAGES, *CONFIGURATIONS) if blocks(page)]:
            reports.append(run_page(page, Path(home)))
            print("  ".join(reports[-1].row()), *reports[-1].failed, sep="\n", flush=True)
    print("\n" + table(reports))
    sys.exit(any(report.failed for report in reports))


if __name__ == "__main__":
    main()
