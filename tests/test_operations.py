import json

import pytest
import torch

from benchmarks import operations


def test_views_and_allocations_are_left_out():
    weight = torch.ones(3, 3, requires_grad=True)
    with operations.OperationLog() as log:
        (torch.empty(3, 3).copy_(weight).T.reshape(9) * 2).sum().backward()
    # reshape of a transposed tensor copies; the gradients of copies, views and sums are not all operations
    assert log.counts["copy_"] == 1 and log.counts["mul"] == 2 and log.counts["sum"] == 1
    assert not {"t", "view", "expand", "empty", "detach", "permute"} & log.counts.keys()


def test_a_count_that_grew_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(operations, "RECORDED", tmp_path / "operations.json")
    operations.main(["enumerate", "--record"])
    recorded = json.loads((tmp_path / "operations.json").read_text())
    assert f"enumerate       {recorded['enumerate']:6}" in capsys.readouterr().out and recorded["enumerate"] > 100
    operations.main(["enumerate", "--check"])
    (tmp_path / "operations.json").write_text(json.dumps({"enumerate": recorded["enumerate"] - 1}))
    with pytest.raises(SystemExit, match=f"enumerate grew from {recorded['enumerate'] - 1} to {recorded['enumerate']}"):
        operations.main(["enumerate", "--check"])
