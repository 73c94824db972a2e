"""What is particular to UniAD: who may look at whom, queries, noise, and the residual as map."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from naive_attention import attend, encoded, normed, shaken, widened
from torch import Tensor, nn

from ecgad import methods
from ecgad.methods.uniad import Config, Model
from ecgad.parts.neighbours import jittered, neighbours, sinusoids

SMALL = {"width": 12, "heads": 3, "mlp_ratio": 2, "encoder_depth": 1, "decoder_depth": 1}
GRIDS = [((9,), (3,)), ((9,), (4,)), ((5, 7), (3, 5)), ((5, 7), (2, 2)), ((3, 4, 5), (1, 3, 3))]


def model(shape: tuple[int, ...] = (2, 50), **settings) -> Model:
    """By default 10 tokens of 5 samples of 2 leads; not trained."""
    torch.manual_seed(0)
    made = methods.build("uniad", shape, SMALL | {"encoder": "raw:5", "window": (3,)} | settings)
    assert isinstance(made, Model)
    return made.eval()


def reach(function, tokens: Tensor) -> Tensor:
    """True where token i of the result depends on token j of (1, n, d): (n, n)."""
    slope = torch.autograd.functional.jacobian(lambda z: function(z[None])[0], tokens[0])
    return torch.as_tensor(slope).abs().sum((1, 3)) > 0


# The mask


@pytest.mark.parametrize(("grid", "window"), GRIDS)
def test_the_mask_hides_what_is_within_half_a_window_on_every_axis(grid, window):
    places = list(itertools.product(*map(range, grid)))
    naive = [
        [all(abs(a - b) <= w // 2 for a, b, w in zip(i, j, window, strict=True)) for j in places]
        for i in places
    ]
    assert neighbours(grid, window).tolist() == naive


def test_the_papers_window_hides_49_of_196_places_in_the_middle_and_16_in_a_corner():
    hidden = neighbours((14, 14), (7,)).sum(1).reshape(14, 14)
    assert (hidden[7, 7], hidden[0, 0], hidden[13, 0]) == (49, 16, 16)
    assert hidden.sum().item() / 196**2 == pytest.approx(0.19, abs=0.005)


def test_no_window_hides_nothing():
    assert not neighbours((4, 4), ()).any()


@pytest.mark.parametrize("side", range(2, 12))
def test_a_window_is_refused_just_when_it_leaves_some_token_nothing_to_see(side):
    most = 2 * math.ceil((side - 1) / 2) - 1  # window // 2 < ceil((side - 1) / 2)
    assert not neighbours((side,), (most,)).all(1).any()
    with pytest.raises(ValueError, match="hides all tokens"):
        neighbours((side,), (most + 1,))
    neighbours((side, 3 + side), (most + 1,))  # what one axis hides another shows


@pytest.mark.parametrize("window", [(3, 3), (0,), (-1,)])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(ValueError, match="does not fit the tokens"):
        neighbours((9,), window)


# Who sees whom


@pytest.mark.parametrize(("shape", "size"), [((2, 50), 5), ((1, 20, 20), 4)])
def test_one_decoder_layer_rebuilds_each_token_from_those_outside_its_window(shape, size):
    uniad = model(shape, encoder=f"raw:{size}", encoder_depth=0)
    f = torch.randn(1, uniad.encoder.n, uniad.enter.in_features)
    assert torch.equal(reach(uniad.rebuild, f), ~uniad.get_buffer("mask"))


def test_a_second_layer_lets_every_token_come_back_over_a_distant_one():
    uniad = model()
    assert reach(uniad.rebuild, torch.randn(1, 10, uniad.enter.in_features)).all()


def test_the_encoder_sees_itself_through_the_sum_and_neighbours_not_at_all():
    uniad = model()
    mask, p, layer = uniad.get_buffer("mask"), uniad.places(), uniad.encoding[0]
    seen = reach(lambda z: layer(z, p, mask), torch.randn(1, 10, 12))
    assert torch.equal(seen, ~mask | torch.eye(10, dtype=torch.bool))


# The layers


@torch.no_grad()
@pytest.mark.parametrize("queries", ["shared", "position"])
def test_features_are_rebuilt_as_the_equations_say(queries):
    uniad: Any = shaken(model(queries=queries, encoder_depth=2, decoder_depth=3))
    p = uniad.places.axes[0] if queries == "position" else sinusoids(10, 12)
    near = (torch.arange(10)[:, None] - torch.arange(10)).abs() <= 1
    f = torch.randn(2, 10, 10)
    for row, found in zip(f, uniad.rebuild(f), strict=True):
        m = uniad.enter(row)
        for layer in uniad.encoding:
            m = encoded(layer, 3, m, p, near)
        o = m
        for layer, q in zip(uniad.decoding, uniad.queries, strict=True):
            one, two, three = layer.norms
            t = normed(one, q + attend(layer.look, 3, (q + p), m + p, m, near))
            t = normed(two, t + attend(layer.refine, 3, t + p, o + p, o, near))
            o = normed(three, t + widened(layer.mlp, t))
        torch.testing.assert_close(found, uniad.leave(normed(uniad.norm, o)), rtol=1e-4, atol=1e-4)


def test_dropout_takes_from_all_that_is_added_and_leaves_the_query():
    uniad: Any = shaken(model(dropout=0.35, mlp_ratio=3, encoder_depth=2, decoder_depth=2))
    drops = [part for part in uniad.modules() if isinstance(part, nn.Dropout)]
    assert [part.p for part in drops] == [0.35] * 2 * 4  # of each layer the sums, and in its MLP
    for part in drops:
        part.p = 1.0
    z, p, mask = torch.randn(1, 10, 12), uniad.places(), uniad.mask
    for layer in uniad.train().encoding:
        torch.testing.assert_close(layer(z, p, mask), layer.norms[1](layer.norms[0](z)))
        torch.testing.assert_close(layer.mlp(z)[0, 0], layer.mlp[-1].bias)
    for layer, query in zip(uniad.decoding, uniad.queries, strict=True):
        one, two, three = layer.norms
        torch.testing.assert_close(layer(query, z, z, p, mask)[0, :1], three(two(one(query))))
        torch.testing.assert_close(layer.mlp(z)[0, 0], layer.mlp[-1].bias)


def test_with_the_papers_settings_it_has_the_7_72_million_weights_of_the_release():
    widths = {"width": 256, "encoder_depth": 4, "decoder_depth": 4, "heads": 8, "mlp_ratio": 4}
    uniad = model((17, 56, 56), encoder="raw:4", queries="position", **widths)  # 272 channels
    assert round(sum(p.numel() for p in uniad.parameters()) / 1e6, 2) == 7.72


def test_what_is_set_of_the_layers_is_what_they_have():
    uniad = model(mlp_ratio=3, encoder_depth=1, decoder_depth=3)
    wide = [m for name, m in uniad.named_modules() if name.endswith("mlp.0")]
    assert [m.weight.shape for m in wide] == [(36, 12)] * 4
    assert (len(uniad.encoding), len(uniad.decoding)) == (1, 3)


def test_it_begins_with_no_bias_and_with_small_queries():
    uniad = model(width=120, decoder_depth=3, queries="position")
    linear = [m for m in uniad.modules() if isinstance(m, nn.Linear)]
    assert not any(m.bias.any() for m in linear)
    assert [q.std().item() for q in uniad.queries] == pytest.approx([0.02] * 3, rel=0.1)


# Queries and positions


@pytest.mark.parametrize(("queries", "alike"), [("shared", True), ("position", False)])
def test_a_shared_query_knows_of_its_place_by_the_sinusoids_alone(queries, alike):
    uniad = model(queries=queries, window=(1,))  # hides itself: the same in any order
    for table in [
        *uniad.places.axes,
        *(v for k, v in uniad.named_buffers() if k == "places.waves"),
    ]:
        table.data.zero_()
    f, order = torch.randn(1, 10, uniad.enter.in_features), torch.randperm(10)
    same = torch.allclose(uniad.rebuild(f[:, order]), uniad.rebuild(f)[:, order], atol=1e-5)
    assert same == alike


def test_sinusoids_follow_the_formula():
    table = sinusoids(6, 8)
    for at, k in itertools.product(range(6), range(4)):
        angle = at / 10_000 ** (2 * k / 8)
        assert table[at, 2 * k].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[at, 2 * k + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("queries", ["shared", "position"])
def test_the_position_of_a_picture_s_token_is_its_row_s_beside_its_column_s(queries):
    uniad = model((1, 12, 20), encoder="raw:4", queries=queries)
    rows, columns = list(uniad.places.axes) or [sinusoids(side, 6) for side in (3, 5)]
    for token, (i, j) in enumerate(itertools.product(range(3), range(5))):
        assert torch.equal(uniad.places()[token], torch.cat([rows[i], columns[j]]))


def test_a_width_that_axes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="width 6 cannot be shared by 2 axes: .* multiple of 4"):
        model((1, 20, 20), width=6)


# Noise, loss and map


@pytest.mark.parametrize("ratio", [0.3, 1.21])
def test_noise_has_its_share_of_each_tokens_length_in_training_and_is_off_after(ratio):
    uniad = model(jitter=ratio, shape=(40, 50))  # C = 200
    f = torch.randn(200, 10, 200) * torch.tensor([0.1, 10.0]).repeat(5)[:, None]
    assert uniad.jittered(f) is f
    noise = uniad.train().jittered(f) - f
    share = (noise.norm(dim=-1) / f.norm(dim=-1)).mean(0)  # of tokens weak and strong
    torch.testing.assert_close(share, torch.full((10,), ratio), rtol=0.03, atol=0)


def test_noise_is_normal_and_drawn_for_each_record_token_and_channel():
    f = torch.linspace(1, 9, 100)[:, None, None] * torch.randn(100, 20, 50)
    length = f.square().sum(-1, keepdim=True).sqrt()
    torch.manual_seed(2)
    e = (jittered(f, 0.3) - f) / (0.3 * 50**0.5 * length / 50)  # ratio sqrt(C) |f| / C
    moments = [(e**power).mean().item() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.2)
    for axis, count in enumerate(e.shape):  # one for all of an axis would have a variance of 1
        assert e.mean(axis).square().mean().item() == pytest.approx(1 / count, rel=0.3)


def test_no_share_of_noise_is_none_in_training_too():
    f = torch.randn(3, 10, 10)
    assert torch.equal(model(jitter=0.0).train().jittered(f), f)


def test_the_loss_asks_for_the_clean_features():
    uniad, x = model(), torch.randn(3, 2, 50)
    uniad.jittered = lambda f: f + 1  # type: ignore
    f = uniad.features(x)
    torch.testing.assert_close(uniad.loss(x), (uniad.rebuild(f + 1) - f).square().mean())


def test_the_map_is_the_length_of_what_a_token_differs_by():
    uniad, x = model(), torch.randn(1, 2, 50)
    change = torch.zeros(1, 10, 10)
    change[0, 4, :2] = torch.tensor([3.0, -4.0])
    uniad.rebuild = lambda f: f + change  # type: ignore
    found = uniad(x).map[0, 0]
    assert found[22] == pytest.approx(5)  # the middle of samples 20 .. 24
    assert found[:18].max() == found[27:].max() == 0


# What it stands on


def test_features_are_all_layers_of_each_token_standardised_with_normals():
    uniad, x = model((2, 60), encoder="mmae:10:8:3:2"), 3 + torch.randn(50, 2, 60)
    uniad.warm_up(iter(x.split(20)))
    f = uniad.features(x)
    assert f.shape == (50, 6, 2 * 8)
    torch.testing.assert_close(f.mean(0), torch.zeros(6, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(f.square().mean((0, 1)), torch.ones(16), rtol=0.01, atol=0)
    assert torch.equal(f[:, :, 8:], uniad.encoder(x)[:, 1])


def test_a_learned_encoder_leaves_its_structure_in_the_settings():
    uniad = methods.build("uniad", (12, 1000), SMALL | {"encoder": "mmae-12lead"})
    assert isinstance(uniad, Model)
    assert uniad.config.encoder.startswith("mmae:10:")


REFUSED = [
    ("queries", "own"), ("jitter", -0.1), ("dropout", -0.1), ("dropout", 1.0),
    ("encoder_depth", -1), ("decoder_depth", 0), ("width", 0), ("heads", 0), ("mlp_ratio", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_setting_that_cannot_be_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}( is)? {value!r}"):
        Config(**{name: value})
