"""Frozen encoders: the same tokens as the network they were taken from, standardised."""

from __future__ import annotations

import numpy as np
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
    small = [F.interpolate(y, size=(8, 8), mode="bilinear") for y in seen.values()]
    expected = torch.cat(small, dim=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.encode(picture)[:, 0], expected)


@pytest.mark.parametrize("spec", ["raw:20", "mmae:20:16:2:2", "mmae-12lead"])
def test_tokens_of_what_it_warmed_up_on_are_centred_at_each_position_and_of_deviation_one(spec, x):
    encoder = encoders.build(spec, SHAPE)
    encoder.warm_up([x[:4], x[4:]])
    z = encoder(x).numpy().astype(np.float64)
    assert np.abs(z.mean(0)).max() < 1e-3
    np.testing.assert_allclose(z.std(0, ddof=0).__pow__(2).mean(1), 1, atol=2e-3)


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


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("mmea:20", SHAPE, "'mmea:20' is neither raw:SIZE"),
        ("raw:7", SHAPE, r"patch \(7,\) does not tile grid \(1000,\)"),
        ("raw", SHAPE, "'raw' cannot be made"),
        ("mmae:20:64:5:7", SHAPE, "width 64 is not a multiple of heads 7"),
        ("mmae-12lead", (2, 1000), r"for shape \(12, 1000\); an encoder for shape \(2, 1000\)"),
        ("lite2", (2, 32, 32), r"images of 1 or 3 channels, not for shape \(2, 32, 32\)"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(spec, shape, message):
    with pytest.raises(ValueError, match=message):
        encoders.build(spec, shape)
