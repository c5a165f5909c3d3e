"""Load a state_dict with Pyro's names and compare the model with the nn.LSTMCell and layers that it came from."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import air
from air.files import CheckpointError
from air.models.spatial import image_to_window
from tests.conftest import SMALL

KEYWORDS = {**SMALL, "predict_net": [9], "embed_net": [11], "non_linearity": "Tanh", "decoder_output_bias": -1.0,
            "decoder_output_use_sigmoid": True}


def layers(*sizes):
    """Linear layers with a Tanh between them."""
    places = [None] * (2 * len(sizes) - 3)
    places[::2] = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in zip(sizes, sizes[1:])]
    return nn.Sequential(*(place or nn.Tanh() for place in places))


def holder(**children):
    module = nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


@pytest.fixture
def theirs():
    """A module whose state_dict has Pyro's names, with random weights."""
    torch.manual_seed(4)
    module = holder(rnn=nn.LSTMCell(11 + 8, 8), bl_rnn=nn.LSTMCell(11 + 8, 8), embed=holder(seq=layers(144, 11)),
                    bl_embed=holder(seq=layers(144, 11)), bl_predict=holder(seq=layers(8, 5, 1)),
                    **{name: holder(mlp=holder(seq=layers(*sizes))) for name, sizes in {
                        "encode": (36, 7, 8), "decode": (4, 7, 36), "predict": (8, 9, 7)}.items()})
    for name, shape in {"h_init": 8, "c_init": 8, "bl_h_init": 8, "bl_c_init": 8, "z_where_init": 3,
                        "z_what_init": 4}.items():
        setattr(module, name, nn.Parameter(torch.randn(1, shape)))
    module.z_where_loc_prior = nn.Parameter(torch.tensor([2.0, 0.1, -0.1]), requires_grad=False)
    module.z_where_scale_prior = nn.Parameter(torch.tensor([0.3, 0.9, 0.8]), requires_grad=False)
    return module.double()


def saved(module, tmp_path, **changes):
    state = {**module.state_dict(), **changes}
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "pyro.pt")
    return tmp_path / "pyro.pt"


def test_the_loaded_model_has_the_same_distributions(theirs, images, tmp_path):
    model = air.load_pyro_checkpoint(saved(theirs.float(), tmp_path), **KEYWORDS).double()
    theirs.double()
    torch.manual_seed(0)
    attended = model.attend(images)
    logits, where, what = attended.logits, attended.latents["where"], attended.latents["what"]
    state = theirs.h_init.expand(5, -1), theirs.c_init.expand(5, -1)
    z_where, z_what = theirs.z_where_init.expand(5, -1), theirs.z_what_init.expand(5, -1)
    for t in range(3):
        embedded = theirs.embed.seq(images.flatten(1)).tanh()
        state = theirs.rnn(torch.cat((embedded, z_where, z_what, torch.ones(5, 1)), 1), state)
        out = theirs.predict.mlp.seq(state[0])
        torch.testing.assert_close(logits[:, t].sigmoid(), out[:, 0].sigmoid())
        torch.testing.assert_close(where.loc[:, t], out[:, 1:4] + theirs.z_where_loc_prior)
        torch.testing.assert_close(where.scale[:, t], F.softplus(out[:, 4:]) * theirs.z_where_scale_prior)
        z_where, z_what = attended.z_where[:, t], attended.z_what[:, t]
        code = theirs.encode.mlp.seq(image_to_window(images, z_where, 6).flatten(1))
        torch.testing.assert_close(what.loc[:, t], code[:, :4])
        torch.testing.assert_close(what.scale[:, t], F.softplus(code[:, 4:]))
        window = (theirs.decode.mlp.seq(z_what) - 1).sigmoid().view(5, 1, 6, 6)
        torch.testing.assert_close(model.decode(z_what), window)
    assert model.z_where_prior_scale.tolist() == pytest.approx([0.3, 0.9, 0.8])
    assert attended.painted.shape == (5, 3, 1, 12, 12)


def test_without_an_embedding_the_cell_reads_the_pixels(images, tmp_path, theirs):
    theirs.rnn, theirs.embed, theirs.bl_embed = nn.LSTMCell(144 + 8, 8), nn.Identity(), nn.Identity()
    model = air.load_pyro_checkpoint(saved(theirs.float(), tmp_path), **{**KEYWORDS, "embed_net": None})
    assert model.guide_net.rnn.image_gates.weight.shape == (32, 144)
    seen = model.infer(images.float())
    cell = theirs.rnn(torch.cat((images.float().flatten(1), *(init.expand(5, -1) for init in (
        theirs.z_where_init, theirs.z_what_init)), torch.ones(5, 1)), 1),
        (theirs.h_init.expand(5, -1), theirs.c_init.expand(5, -1)))
    none = 1 - theirs.predict.mlp.seq(cell[0])[:, 0].sigmoid()
    torch.testing.assert_close(seen.count_probs[:, 0], none)


def test_mismatches_are_named(theirs, tmp_path):
    theirs.float()
    changed = {"encode.mlp.seq.0.bias": None, "decode.mlp.seq.9.weight": torch.zeros(2),
               "rnn.weight_hh": torch.zeros(32, 9)}
    with pytest.raises(CheckpointError) as error:
        air.load_pyro_checkpoint(saved(theirs, tmp_path, **changed), **KEYWORDS)
    for words in ("missing: encode.mlp.seq.0.bias (7,)", "not expected: decode.mlp.seq.9.weight (2,)",
                  "rnn.weight_hh: expected (32, 8), found (32, 9)"):
        assert words in str(error.value)
    with pytest.raises(CheckpointError, match="z_what_init: expected .1, 5., found .1, 4."):
        air.load_pyro_checkpoint(saved(theirs, tmp_path), **{**KEYWORDS, "z_what_size": 5})
    with pytest.raises(ValueError, match="has the recurrent guide, not guide='search'"):
        air.load_pyro_checkpoint(saved(theirs, tmp_path), **KEYWORDS, guide="search")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read|can be read"):
        air.load_pyro_checkpoint(tmp_path / "text.pt", **KEYWORDS)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="expected tensors by name"):
        air.load_pyro_checkpoint(tmp_path / "list.pt", **KEYWORDS)


def test_damage_is_named(theirs, tmp_path):
    """Altered bytes of weights, weights that are nan, a type or a name that no weight has, torch's first format."""
    theirs.float()
    path = saved(theirs, tmp_path)
    whole, weights = path.read_bytes(), theirs.state_dict()["encode.mlp.seq.0.weight"].numpy().tobytes()
    path.write_bytes(whole.replace(weights, weights[:50] + bytes(10) + weights[60:]))
    with pytest.raises(CheckpointError, match="its contents were altered, as their checksums show"):
        air.load_pyro_checkpoint(path, **KEYWORDS)
    for changes, words in (({"h_init": theirs.h_init * torch.nan}, "weights that are nan or infinite: h_init"),
                           ({"h_init": theirs.h_init.long()}, "expected tensors by name, all of floats"),
                           ({3: theirs.h_init.detach()}, "expected tensors by name, all of floats")):
        path = tmp_path / "other.pt"
        torch.save({**theirs.state_dict(), **changes}, path)
        with pytest.raises(CheckpointError, match=words):
            air.load_pyro_checkpoint(path, **KEYWORDS)
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"other.pt cannot be read as a checkpoint: it has the format of torch "
                                              r"before 1.6; torch.save\(torch.load\(FILE, weights_only=True\), FILE\)"):
        air.load_pyro_checkpoint(path, **KEYWORDS)
    torch.save(torch.load(path, weights_only=True), path)
    air.load_pyro_checkpoint(path, **KEYWORDS)
