import json
from types import SimpleNamespace

import torch

from benchmarks import renderer


def test_each_way_is_timed_with_gradients_only_where_it_says_so(tmp_path, capsys, monkeypatch):
    render, poses = renderer.render, []

    def recorded(shape, pose, present, view):
        assert shape.shape == present.shape == (2, 3) and view.image_size == 8
        poses.append(pose)
        return render(shape, pose, present, view)

    monkeypatch.setattr(renderer, "render", recorded)

    class Timer:
        """Measures the number of calls of render in seconds, and half a second more if poses have gradients."""

        def __init__(self, statement, globals, num_threads):
            assert statement == "way()" and num_threads == torch.get_num_threads()
            self.way = globals["way"]

        def blocked_autorange(self, min_run_time):
            for pose in poses:
                pose.grad = None
            self.way()
            return SimpleNamespace(median=len(poses) + (poses[0].grad is not None) / 2)

    monkeypatch.setattr(renderer, "Timer", Timer)
    monkeypatch.setattr(renderer.torch, "compile", lambda way: way)
    renderer.main(["--scenes", "2", "--image-size", "8", "--json", str(tmp_path / "renderer.json")])
    assert (poses[-1].grad[..., :2] != 0).any((0, 1)).all() and all(each is poses[0] for each in poses)
    times = json.loads((tmp_path / "renderer.json").read_text())["ms"]  # each way runs once before it is timed
    assert times == {"forward": 2000, "forward and backward": 4500, "forward, compiled": 6000,
                     "forward and backward, compiled": 8500}
    assert "| forward and backward | 4500.0 |" in capsys.readouterr().out
