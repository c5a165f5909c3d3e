import json

import pytest
import torch

from air.data import Scenes
from experiments.studies import representations


def test_tasks_read_the_digits_from_left_to_right():
    boxes = torch.zeros(3, 2, 4)
    boxes[:, 0, 0], boxes[:, 1, 0] = 20, 5  # the second digit stands to the left of the first
    scenes = Scenes(torch.zeros(3, 1, 9, 9), torch.full((3,), 2), boxes, torch.tensor([[7, 2], [2, 7], [4, 4]]))
    labels = {name: labels.tolist() for name, labels in representations.tasks(scenes).items()}
    assert labels == {"sum": [9, 9, 8], "order": [1, 0, 1]}


def test_codes_are_sorted_from_left_to_right_with_absent_objects_last(make_model, images):
    model = make_model(count_prior=0.9)
    codes, seen = representations.air_codes(model, images), model.infer(images)
    for code, z_pres, z_where, z_what in zip(codes, seen.z_pres, seen.z_where, seen.z_what):
        count = int(z_pres.sum())
        order = sorted(range(count), key=lambda t: (-z_where[t, 1] / z_where[t, 0]).item())
        expected = [torch.cat((torch.ones(1), z_where[t], z_what[t])) for t in order]
        torch.testing.assert_close(code[:count], torch.stack(expected) if count else code[:0])
        assert (code[count:] == 0).all()


def test_looks_are_shifts_of_the_image():
    image = torch.zeros(1, 1, 4, 5, dtype=torch.uint8)
    image[0, 0, 1, 2] = 9
    places = [tuple(look[0, 0].nonzero()[0].tolist()) for look in representations.looks(image)]
    assert places == [(1 + down, 2 + right) for right, down in representations.LOOKS] and len(set(places)) == 5
    image[:] = 7  # black moves in at the edges
    assert [int((look == 0).sum()) for look in representations.looks(image)] == [0, 8, 8, 8, 8]


def test_the_most_frequent_answers_are_nine_and_ascending():
    assert representations.usual_answer("sum") == 0.1 and representations.usual_answer("order") == 0.55


def test_the_table_has_mean_and_worst():
    records = [{"task": task, "method": method, "labels": size, "seed": seed, "accuracy": 0.5 + seed / 10}
               for task in representations.CLASSES for method in ("AIR", "CNN") for size in (50, 1000)
               for seed in (0, 1)]
    lines = representations.table(records).splitlines()
    assert lines[2] == "| sum | AIR | 55.0 (50.0) | 55.0 (50.0) |" and "1,000" in lines[0] and len(lines) == 6


def test_the_table_covers_all_seeds_with_a_result_file(tmp_path, capsys):
    arguments = ["--table", "--results", str(tmp_path), "--plot", str(tmp_path / "plot.png")]
    with pytest.raises(SystemExit):
        representations.main(arguments)
    assert f"there are no results in {tmp_path}" in capsys.readouterr().err
    for seed in (0, 1):
        records = [{"task": task, "method": "AIR", "labels": 50, "seed": seed, "accuracy": 0.5 + seed / 10}
                   for task in representations.CLASSES]
        (tmp_path / f"seed{seed}.json").write_text(json.dumps({"records": records}))
    representations.main(arguments)
    assert "| sum | AIR | 55.0 (50.0) |" in capsys.readouterr().out and (tmp_path / "plot.png").stat().st_size > 1000
