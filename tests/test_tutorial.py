"""Every block of the tutorial runs, in order, with fewer scenes and steps."""

import re
from pathlib import Path

import pytest
import torch

TUTORIAL = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text()


def test_the_tutorial_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TUTORIAL, re.S)
    code = "\n".join(blocks)
    assert len(blocks) == 7
    for written, quick in {"STEPS = 1500": "STEPS = 3",
                           "Sprites()": "Sprites(train_scenes=600, held_out_scenes=100)"}.items():
        assert written in code
        code = code.replace(written, quick)
    names: dict[str, object] = {}
    exec(compile(code, "tutorial.md", "exec"), names)
    said = capsys.readouterr().out
    assert "Enumerate elbo" in said and "NVIL elbo" in said and "VIMCO elbo" in said and "counts right" in said
    assert (tmp_path / "found.png").exists() and (tmp_path / "drawn.png").exists()
    count = names["count"]
    assert isinstance(count, torch.Tensor)
    share = count.bincount(minlength=4) / 4000
    assert share.tolist() == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15], abs=0.03)  # as the text says
