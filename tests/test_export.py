import pytest
import torch

import air

EVERYTHING = {"guide": "difference", "background": True, "channels": 3}
LAYERS = {"guide": "search", "background": True, "compositing": "over", "likelihood_sd": 0.05}


@pytest.mark.parametrize("options", [{}, {"guide": "search"}, LAYERS, pytest.param(EVERYTHING, marks=pytest.mark.slow)])
def test_the_program_gives_what_infer_gives(make_model, images, tmp_path, options):
    model = make_model(count_prior=0.5, **options).float()
    images = images.float().expand(-1, model.channels, -1, -1)
    with torch.no_grad():
        head = model.guide_net.mlp if options.get("guide") == "search" else model.guide_net.predict.mlp
        head[-1].bias[0] += 1  # it finds something
    air.export(model, tmp_path / "infer.pt2")
    program = torch.export.load(tmp_path / "infer.pt2").module()
    for batch in (1, 2, 5):
        expected, found = model.infer(images[:batch]), program(images[:batch])
        assert list(found) == list(expected.as_dict()) and expected.count.sum() > 0
        for name, value in found.items():
            torch.testing.assert_close(value, getattr(expected, name))
