import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_beside(tmp_path, torchvision, *command):
    """Run a command with this as the installed torchvision."""
    (tmp_path / "torchvision.py").write_text(torchvision)
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    return subprocess.run([sys.executable, *command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths},
                          capture_output=True, text=True)


def test_a_torchvision_that_does_not_load_is_explained(tmp_path):
    done = run_beside(tmp_path, "raise RuntimeError('operator torchvision::nms does not exist')",
                      str(ROOT / "train.py"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "not a matching pair" in done.stderr and "pip install --upgrade torch torchvision" in done.stderr


def test_air_predict_says_so_as_well(tmp_path):
    done = run_beside(tmp_path, "raise OSError('libcudart.so: cannot open')", "-m", "air.predict")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("air.predict: torch ") and "not a matching pair" in done.stderr


def test_using_air_raises_an_import_error_that_says_so(tmp_path):
    done = run_beside(tmp_path, "raise ImportError('undefined symbol')", "-c",
                      "try:\n    from air import AIR\nexcept ImportError as error:\n    print(error)")
    assert done.stdout.startswith("torch ") and "not a matching pair" in done.stdout
