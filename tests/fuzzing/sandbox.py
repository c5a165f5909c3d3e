"""Run the programs in forked children, as in a process of their own, and judge what they did.

Importing torch costs three seconds; a child forked from a process that has imported it starts at once. It runs the
program as `python train.py` would: its file from the first line to the last, its own exit code, its streams in files.
"""

import contextlib
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT = 60.0  # seconds of one run
MEMORY = 2 * 2**30  # bytes of one run above those of the process it is forked from
SPARE = 2 * 2**30  # bytes of address space beyond that
TEMPORARY = re.compile(r"^\..+\.[a-z0-9_]{8}$")  # what air.files.atomic_write calls a file until it is whole
Program = str | Callable[[], None]  # "train", "predict", or a function that stands in for one


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    argv: Sequence[str]
    code: int | None  # None: it did not end; minus the signal that ended it
    out: str
    err: str
    seconds: float
    memory: int  # bytes at most, above those at the start
    leftovers: Sequence[str]  # temporary files

    @property
    def complaints(self) -> list[str]:
        """Lines on stderr but for warnings and the usage."""
        return [line for line in self.err.splitlines() if line and "WARNING" not in line and line[:6] != "usage:"]


@dataclass
class Sandbox:
    """Where runs happen, one after the other."""

    cache: Path  # for $XDG_CACHE_HOME
    programs: dict[str, Program] = field(default_factory=dict)  # stand-ins

    def run(self, program: str, argv: Sequence[str], folder: Path, limit: float = LIMIT,
            signals: Sequence[tuple[float, int]] = (), fresh: bool = False) -> Outcome:
        """Run a program in a folder.

        Args:
            program: "train" or "predict".
            argv: its arguments.
            folder: where it runs.
            limit: seconds after which it is ended.
            signals: seconds from the start, and the signal sent then.
            fresh: start a new process instead of a fork, for what happens during the imports.
        """
        before = set(self._temporary(folder))
        streams = [tempfile.TemporaryFile() for _ in range(2)]
        start = self._start_process if fresh else self._fork
        began = time.monotonic()
        process = start(program, argv, folder, [stream.fileno() for stream in streams])
        # What a fork shares with this process, unless it has ended already.
        held = (0 if fresh else memory_of(process)) or memory_of("self")
        code, memory = _wait(process, began, limit, signals)
        texts = []
        for stream in streams:
            stream.seek(0)
            texts.append(stream.read().decode(errors="backslashreplace"))
            stream.close()
        left = sorted(set(self._temporary(folder)) - before)
        return Outcome(argv, code, *texts, time.monotonic() - began, memory - held, left)

    def _temporary(self, folder: Path) -> list[str]:
        return [os.path.join(place, name) for root in (folder, self.cache) for place, _, names in os.walk(root)
                for name in names if TEMPORARY.match(name)]

    def _start_process(self, program: str, argv: Sequence[str], folder: Path, streams: Sequence[int]) -> int:
        command = [str(ROOT / "train.py")] if program == "train" else ["-m", "air.predict"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.cache), "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, *command, *argv], cwd=folder, env=environment, start_new_session=True,
                                stdin=subprocess.DEVNULL, stdout=streams[0], stderr=streams[1]).pid

    def _fork(self, program: str, argv: Sequence[str], folder: Path, streams: Sequence[int]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process == 0:
            code = 70
            try:
                _become(program, argv, folder, streams, self.cache)
                code = _execute(self.programs.get(program, program))
            finally:
                os._exit(code)
        return process


def _become(program: str, argv: Sequence[str], folder: Path, streams: Sequence[int], cache: Path) -> None:
    """Make this child what a new process would be."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    for source, target in zip((nowhere, *streams), range(3)):
        os.dup2(source, target)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, errors="backslashreplace", buffering=1)
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(cache)
    sys.argv = [f"{program}.py", *argv]
    warnings.resetwarnings()
    warnings.simplefilter("default")
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY + SPARE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _execute(program: Program) -> int:
    """Run the program as the interpreter would; its exit code."""
    code = 0
    try:
        if callable(program):
            program()
        elif program == "train":
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        else:
            sys.modules.pop("air.predict", None)
            runpy.run_module("air.predict", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code is not None and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    return code


def _wait(process: int, began: float, limit: float, signals: Sequence[tuple[float, int]]) -> tuple[int | None, int]:
    """Send the signals, and wait until the process has ended: its code, None if it had to be ended; and its memory."""
    waiting, late = sorted(signals), False
    while True:
        ended, status, used = os.wait4(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return None if late else code, used.ru_maxrss * 1024
        now = time.monotonic() - began
        while waiting and waiting[0][0] <= now:
            os.kill(process, waiting.pop(0)[1])
        if now > limit and not late:
            late = True
            os.killpg(process, signal.SIGKILL)
        time.sleep(0.002 if waiting else 0.01)


def faults(outcome: Outcome, program: str, refused: bool | None = None, codes: Sequence[int] = (0, 1, 2)) -> list[str]:
    """What is wrong with a run, whatever it was asked for; empty if nothing is.

    Args:
        outcome: the run's.
        program: "train" or "predict"; the latter names each image that it cannot read on a line of its own.
        refused: True if it must end with code 2, False if it must not.
        codes: the exit codes that it may end with.
    """
    found = []
    words = outcome.out + outcome.err
    if "Traceback (most recent call last)" in words:
        last = re.findall(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Warning|Exit).*$", words, re.MULTILINE)
        found.append(f"traceback: {ascii(last[-1])[1:101] if last else '?'}")
    if outcome.code is None:
        found.append("hang")
    elif outcome.code not in codes:
        found.append(f"exit code {outcome.code}")
    elif outcome.code == 2 and len(outcome.complaints) != 1 or (
            outcome.code == 1 and program == "train" and len(outcome.complaints) != 1):
        found.append(f"{len(outcome.complaints)} lines on stderr with exit code {outcome.code}")
    elif outcome.code == 0 and any(program == "train" or line[:13] != "air.predict: " for line in outcome.complaints):
        found.append("complaints on stderr with exit code 0")
    if any(not (char.isprintable() or char in "\n\r\t") for char in words):
        found.append("control characters are echoed")
    if len(max(outcome.complaints, key=len, default="")) > 3000:
        found.append("more than 3,000 characters in a sentence")
    if outcome.memory > MEMORY:
        found.append(f"memory: {outcome.memory / 2**30:.1f} GB")
    if outcome.leftovers:
        found.append("temporary files left behind")
    if refused is True and outcome.code in (0, 1) and not found:
        found.append(f"accepted nonsense: exit code {outcome.code} where 2 is right")
    if refused is False and outcome.code == 2 and not found:
        found.append("refused what is right")
    return found


def memory_of(process: int | str) -> int:
    """Bytes that a process holds; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def not_finite(content: Any) -> bool:
    """Whether a number in nested JSON values is nan or infinite."""
    if isinstance(content, dict | list):
        return any(not_finite(value) for value in (content.values() if isinstance(content, dict) else content))
    return isinstance(content, float) and not abs(content) < float("inf")
