import json
from pathlib import Path
from types import SimpleNamespace

import torch


def test_it_times_what_it_says(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    script = __import__("bench_renderer")
    rendered, poses = script.render, []

    def render(shape, pose, present, view):
        assert shape.shape == present.shape == (2, 3) and view.image_size == 8
        poses.append(pose)
        return rendered(shape, pose, present, view)

    monkeypatch.setattr(script, "render", render)

    class Timer:
        """Takes as many seconds as poses have been rendered, and a half where they got gradients."""

        def __init__(self, statement, globals, num_threads):
            assert statement == "way()" and num_threads == torch.get_num_threads()
            self.way = globals["way"]

        def blocked_autorange(self, min_run_time):
            for pose in poses:
                pose.grad = None
            self.way()
            return SimpleNamespace(median=len(poses) + (poses[0].grad is not None) / 2)

    monkeypatch.setattr(script, "Timer", Timer)
    monkeypatch.setattr(script.torch, "compile", lambda way: way)
    script.main(["--scenes", "2", "--image-size", "8", "--json", str(tmp_path / "renderer.json")])
    assert (poses[-1].grad[..., :2] != 0).any((0, 1)).all() and all(each is poses[0] for each in poses)
    times = json.loads((tmp_path / "renderer.json").read_text())["ms"]  # each way is run once before it is timed
    assert times == {"forward": 2000, "forward and backward": 4500, "forward, compiled": 6000,
                     "forward and backward, compiled": 8500}
    assert "| forward and backward | 4500.0 |" in capsys.readouterr().out
