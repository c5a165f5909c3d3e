import json

import pytest
import torch

from benchmarks import operations


def test_views_and_allocations_are_left_out():
    with operations.OperationLog() as log:
        (torch.empty(3, 3).fill_(1).T[:, None].expand(3, 2, 3) * 2).unbind(1)[0].detach().sum()
    assert log.counts == {"fill_": 1, "mul": 1, "sum": 1}


def test_the_backward_pass_counts():
    weight = torch.ones(3, requires_grad=True)
    with operations.OperationLog() as log:
        (weight * 2).sum().backward()
    assert log.counts["mul"] == 2


def test_a_count_that_grew_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(operations, "RECORDED", tmp_path / "operations.json")
    operations.main(["enumerate", "--record"])
    recorded = json.loads((tmp_path / "operations.json").read_text())
    assert f"enumerate       {recorded['enumerate']:6}" in capsys.readouterr().out and recorded["enumerate"] > 100
    operations.main(["enumerate", "--check"])
    (tmp_path / "operations.json").write_text(json.dumps({"enumerate": recorded["enumerate"] - 1}))
    with pytest.raises(SystemExit, match=f"enumerate grew from {recorded['enumerate'] - 1} to {recorded['enumerate']}"):
        operations.main(["enumerate", "--check"])
