"""What programs print, and what becomes of them where that is not possible."""

import io
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from tqdm import tqdm

import train
from air import predict
from air.files.console import Console, console, open_standard_descriptors, printable
from tests.conftest import FEW

ROOT = Path(__file__).parent.parent


class Broken(io.StringIO):
    """A stream that fails once it has taken some characters."""

    def __init__(self, room=0):
        super().__init__()
        self.room = room

    def write(self, text):
        self.room -= len(text)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_after_an_error_nothing_more_is_written():
    stream = Broken(room=4)
    watched = Console(stream)
    for text in ("one\n", "three\n", "2\n"):
        assert watched.write(text) == len(text)
        watched.flush()
    assert stream.getvalue() == "one\n" and watched.error.errno == 28 and not watched.isatty()


@pytest.mark.parametrize("stream", [None, Broken()])
def test_printing_and_progress_bars_work_where_nothing_can_be_written(stream):
    watched = Console(stream)
    print("a line", file=watched, flush=True)
    for _ in tqdm(range(3), file=watched):
        pass
    stream = io.StringIO()
    stream.close()
    print("a line", file=Console(stream))
    assert not Console(stream).isatty()


@pytest.mark.parametrize("encoding, written", [("ascii", b"\\xe9 \\udcff \\U0001f600\n"),
                                               ("utf-8", "é \\udcff \U0001f600\n".encode())])
def test_what_the_encoding_does_not_have_is_escaped_and_each_line_is_written_at_once(encoding, written):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    print("é \udcff \U0001f600", file=Console(stream))
    assert raw.getvalue() == written


def test_control_characters_are_escaped():
    assert printable("a\x1b[2J\r\n\x9b\x00\u202e b\udcff\u2028") == r"a\x1b[2J\r\n\x9b\x00\u202e b\udcff\u2028"
    assert printable("plain, é, 数字 and \\n") == "plain, é, 数字 and \\n"


def test_warnings_are_one_line_and_the_streams_come_back(capsys):
    before = sys.stdout, sys.stderr, warnings.formatwarning
    with console("train.py"):
        assert isinstance(sys.stdout, Console) and isinstance(sys.stderr, Console)
        assert warnings.formatwarning("two\nlines", UserWarning, "f", 3) == "train.py: WARNING: two\\nlines\n"
    assert (sys.stdout, sys.stderr, warnings.formatwarning) == before


def test_closed_descriptors_are_not_left_for_files_to_take(tmp_path):
    code = (f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "for number in (0, 1, 2): os.close(number)\n"
            "from air.files.console import open_standard_descriptors\n"
            "open_standard_descriptors()\n"
            f"os.write(os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY), b'%d' % os.dup(1))")
    subprocess.run([sys.executable, "-c", code], check=True)
    assert int((tmp_path / "file").read_text()) > 3
    open_standard_descriptors()  # where they are open, nothing happens


def shell(command, **variables):
    """Run a command line of the shell, in which TRAIN and PREDICT start the programs."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables,
           "TRAIN": f"{sys.executable} {ROOT / 'train.py'}", "PREDICT": f"{sys.executable} -m air.predict"}
    return subprocess.run(["bash", "-c", command], env=env, capture_output=True, cwd=ROOT, timeout=120,
                          preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL))


TINY = " ".join(["--dataset sprites --batch-size 8 --steps 3 --run.eval-every 1", *FEW])


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>&1 | true",
                                     pytest.param(">/dev/full 2>/dev/full", marks=pytest.mark.slow)])
def test_a_run_goes_on_without_a_console(tmp_path, streams):
    done = shell(f"$TRAIN {TINY} --out {tmp_path / 'run'} {streams}; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "run" / "metrics.json").exists()
    for file in (tmp_path / "run").iterdir():  # none of which the console's lines have gone to
        assert b"elbo " not in file.read_bytes() and b"training scenes" not in file.read_bytes()


def test_help_is_shown_in_ascii():
    done = shell("$TRAIN --help", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0 and done.stdout.isascii() and b"usage" in done.stdout and not done.stderr
    assert predict.build_parser().format_help().isascii()


def test_predict_ends_with_its_reader_and_says_when_its_lines_are_lost(tmp_path, few_scenes, capsys):
    """`| head` has seen enough; a full disk is an error; names of any bytes are shown."""
    run, images = tmp_path / "run", tmp_path / "images"
    train.main(["--dataset", "sprites", "--batch-size", "8", "--steps", "1", "--out", str(run)])
    images.mkdir()
    picture = (run / "reconstructions.png").read_bytes()
    names = [b"a\xff.png", b"b\x1b[2J\n.png", b"c.png"]
    for name in names:
        (images / os.fsdecode(name)).write_bytes(picture)
    done = shell(f"$PREDICT {run} {images} | head -1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 1, b"")
    done = shell(f"$PREDICT {run} {images} >/dev/full")
    assert (done.returncode, done.stderr) == (
        2, b"air.predict: error: standard output cannot be written ([Errno 28] No space left on device)\n")
    table = tmp_path / "found.csv"
    capsys.readouterr()
    predict.main([str(run), str(images)])
    said, errors = capsys.readouterr()
    shown = [line.split(": ")[0] for line in said.splitlines()]
    assert shown == [f"{images}/{name}" for name in (r"a\udcff.png", r"b\x1b[2J\n.png", "c.png")] and not errors
    predict.main([str(run), str(images), "--csv", str(table)])
    assert all(os.fsencode(images) + b"/" + name in table.read_bytes() for name in names)
