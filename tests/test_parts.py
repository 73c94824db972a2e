"""What methods are made of, against loops and against torch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_attention import shaken
from torch import nn

from ecgad import flops
from ecgad.export import export_onnx, run_onnx
from ecgad.parts.detector import Detector, Evidence
from ecgad.parts.layers import (
    Attention,
    Block,
    CrossAttention,
    average_pool,
    batch_norm,
    conv,
    conv_transpose,
    initialise,
    pick,
    positions,
    resize,
)
from ecgad.parts.masks import complement, complement_schedule, masked_count, random_split
from ecgad.parts.tokens import Tokens

GRIDS = [((12,), (4,)), ((6, 8), (3, 2)), ((4, 6, 2), (2, 3, 1))]
CPU = torch.device("cpu")


def cut(x: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """Tokens by loops: places in row-major order, in each the channels, then its samples."""
    counts = [g // p for g, p in zip(x.shape[2:], patch, strict=True)]
    rows = []
    for sample in x:
        tokens = []
        for place in itertools.product(*map(range, counts)):
            block = [slice(i * p, (i + 1) * p) for i, p in zip(place, patch, strict=True)]
            tokens.append([v for channel in sample for v in channel[tuple(block)].flatten()])
        rows.append(tokens)
    return np.array(rows)


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize(("grid", "patch"), GRIDS)
def test_tokens_are_cut_as_loops_cut_them_and_join_again(channels, grid, patch):
    x = torch.randn(2, channels, *grid)
    tokens = Tokens((channels, *grid), patch)
    split = tokens.split(x)
    assert np.array_equal(split.numpy(), cut(x.numpy(), patch))
    assert split.shape[1:] == (tokens.n, tokens.size)
    assert torch.equal(tokens.join(split), x)


@pytest.mark.parametrize("patch", [(5,), (4, 4), (0,), (-4,)])
def test_a_patch_that_does_not_tile_is_refused(patch):
    with pytest.raises(ValueError, match=r"does not tile grid \(12,\)"):
        Tokens((1, 12), patch)


@pytest.mark.parametrize(("grid", "patch", "size"), [((12,), (2,), (3,)), ((6, 8), (2, 2), (2, 3))])
def test_windows_are_all_blocks_of_adjacent_tokens(grid, patch, size):
    tokens = Tokens((1, *grid), patch)
    blocks = []
    for corner in itertools.product(
        *(range(g - s + 1) for g, s in zip(tokens.grid, size, strict=True))
    ):
        block = []
        for step in itertools.product(*map(range, size)):
            place = [c + s for c, s in zip(corner, step, strict=True)]
            block.append(int(np.ravel_multi_index(place, tokens.grid)))
        blocks.append(block)
    assert tokens.windows(size).tolist() == blocks


@pytest.mark.parametrize("size", [(7,), (0,), (2, 2)])
def test_a_window_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match=r"does not fit the tokens \(6,\)"):
        Tokens((1, 12), (2,)).windows(size)


def test_a_ratio_hides_the_nearest_number_of_tokens_at_least_one_and_leaves_one():
    counts = [masked_count(10, ratio) for ratio in (0.01, 0.24, 0.26, 0.5, 0.99)]
    assert counts == [1, 2, 3, 5, 9]


def test_one_token_cannot_be_masked():
    with pytest.raises(ValueError, match="1 token cannot be both"):
        masked_count(1, 0.5)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 12), st.integers(0, 9))
def test_a_schedule_hides_every_token_equally_often_up_to_one(n, ratio, more, seed):
    masked = masked_count(n, ratio)
    rounds = math.ceil(n / masked) + more
    schedule = complement_schedule(n, ratio, rounds, seed)
    assert all(len(set(hand)) == masked for hand in schedule.tolist())
    times = torch.bincount(schedule.flatten(), minlength=n)
    assert 1 <= times.min() <= times.max() <= times.min() + 1
    assert times.sum() == rounds * masked


def test_a_schedule_belongs_to_its_seed_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    one, same, other = (complement_schedule(20, 0.5, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_too_few_rounds_are_refused_with_the_number_that_would_do():
    with pytest.raises(ValueError, match="at least 4 rounds are needed at ratio 0.3"):
        complement_schedule(10, 0.3, 3, seed=0)
    with pytest.raises(ValueError, match="at least 2 rounds are needed"):
        complement_schedule(3, 0.9, 1, seed=0)  # one round may not hide all


@pytest.mark.parametrize("n", [2, 5, 49, 99])
def test_two_halves_hide_every_token_of_an_odd_number_too(n: int):
    masks = complement_schedule(n, 0.5, 2, seed=0)
    assert set(masks.flatten().tolist()) == set(range(n))
    assert masks.shape == (2, (n + 1) // 2)


def test_the_complement_is_what_a_mask_leaves():
    masks = torch.tensor([[0, 3], [4, 1]])
    assert complement(masks, 5).tolist() == [[1, 2, 4], [0, 2, 3]]


def test_a_random_split_parts_each_sample_in_a_way_of_its_own():
    visible, masked = random_split(50, 12, 5, CPU)
    assert masked.shape == (50, 5)
    both = torch.cat([visible, masked], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(12).expand(50, 12))
    assert len({tuple(sorted(row)) for row in masked.tolist()}) > 40


def test_a_random_split_hides_every_token_equally_often():
    _, masked = random_split(4000, 8, 2, CPU)
    share = torch.bincount(masked.flatten(), minlength=8) / 4000
    assert torch.allclose(share, torch.full((8,), 0.25), atol=0.03)


def test_attention_equals_torch_with_the_same_weights():
    torch.manual_seed(0)
    mine, reference = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    reference.in_proj_weight.data, reference.in_proj_bias.data = mine.qkv.weight, mine.qkv.bias
    reference.out_proj.weight.data, reference.out_proj.bias.data = mine.out.weight, mine.out.bias
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(mine(x), reference(x, x, x)[0])


class Crossing(Detector):
    """Masked attention of the first 4 tokens of 9 over the other 5, by itself."""

    def __init__(self) -> None:
        super().__init__((9, 12))
        self.attention = CrossAttention(12, 3)
        self.register_buffer("mask", torch.eye(4, 5, dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> Evidence:
        q, k = x[:, :4], x[:, 4:]
        found = self.attention(q, k, k.square(), self.get_buffer("mask"))
        return Evidence(found, found.mean(1))

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).map.mean()


@pytest.mark.parametrize("mask", [None, torch.eye(4, 5, dtype=torch.bool)])
def test_attention_over_other_tokens_equals_torch_with_the_same_weights(mask):
    torch.manual_seed(0)
    mine, reference = CrossAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    parts = (mine.q, mine.k, mine.v)
    reference.in_proj_weight.data = torch.cat([part.weight for part in parts])
    reference.in_proj_bias.data = torch.cat([part.bias for part in parts])
    reference.out_proj.load_state_dict(mine.out.state_dict())
    q, k, v = torch.randn(2, 4, 12), torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    torch.testing.assert_close(mine(q, k, v, mask), reference(q, k, v, attn_mask=mask)[0])


def test_picking_is_indexing_along_the_second_axis():
    x, index = torch.randn(4, 5, 6), torch.tensor([[3, 0], [1, 1], [2, 3]])
    assert torch.equal(pick(x, index), x[:, index])


def test_masked_attention_is_the_same_in_onnx_for_any_batch(tmp_path):
    torch.manual_seed(0)
    model, x = Crossing().eval(), torch.randn(3, 9, 12)
    export_onnx(model, tmp_path / "model.onnx", x.numpy())
    found = run_onnx(tmp_path / "model.onnx")(x.numpy())[0]
    torch.testing.assert_close(torch.from_numpy(found), model(x).map.detach())


def test_masked_attention_costs_its_projections_and_all_its_products():
    projections = (4 + 5 + 5 + 4) * 12 * 12  # q, k, v, out
    assert flops.count(Crossing()).macs_record == projections + 2 * 4 * 5 * 12


@pytest.mark.parametrize("kind", [Attention, CrossAttention])
def test_a_width_that_heads_do_not_divide_is_refused(kind):
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 3"):
        kind(10, 3)


def test_a_block_equals_torch_with_norms_first():
    torch.manual_seed(0)
    mine = shaken(Block(12, 3, mlp_ratio=2))  # so that the order of norms shows
    its = nn.TransformerEncoderLayer(12, 3, 24, 0.0, "gelu", batch_first=True, norm_first=True)
    names = {
        "norm1": "norm1", "norm2": "norm2", "attention.out": "self_attn.out_proj",
        "mlp.0": "linear1", "mlp.2": "linear2",
    }  # fmt: skip
    for ours, theirs in names.items():
        its.get_submodule(theirs).load_state_dict(mine.get_submodule(ours).state_dict())
    its.self_attn.in_proj_weight.data = mine.attention.qkv.weight
    its.self_attn.in_proj_bias.data = mine.attention.qkv.bias
    x = 3 + torch.randn(2, 7, 12)
    torch.testing.assert_close(mine(x), its(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine(x, last=3), its(x)[:, -3:], rtol=1e-4, atol=1e-4)


def test_initialisation_is_xaviers_for_linear_layers_and_no_others():
    torch.manual_seed(0)
    linear, other = nn.Linear(300, 500), nn.Conv1d(3, 5, 3)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    nn.Sequential(linear, other).apply(initialise)
    most = math.sqrt(6 / (300 + 500))
    assert linear.weight.abs().max().item() == pytest.approx(most, rel=1e-3)  # evenly up to it
    assert linear.weight.std().item() == pytest.approx(most / math.sqrt(3), rel=0.01)
    assert not linear.bias.any()
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_positions_start_small_and_normal():
    torch.manual_seed(0)
    table = positions(500, 64).detach() / 0.02
    assert table.shape == (500, 64)
    moments = [(table**power).mean().item() for power in (1, 2, 4)]
    assert moments == pytest.approx([0, 1, 3], abs=0.2)


# Layers over a grid of any number of axes


def blocks(grid: tuple[int, ...], size: int) -> list[tuple[slice, ...]]:
    """All adjoining blocks of `size` on every axis, in row-major order."""
    corners = itertools.product(*(range(0, side, size) for side in grid))
    return [tuple(slice(i, i + size) for i in corner) for corner in corners]


@pytest.mark.parametrize("grid", [(6,), (4, 6), (4, 2, 6)])
def test_layers_over_a_grid_join_its_blocks_or_make_them(grid):
    axes, x = len(grid), torch.randn(3, 2, *grid)
    join, make = conv(axes)(2, 5, 2, stride=2), conv_transpose(axes)(2, 5, 2, stride=2)
    joined, made, mean = join(x), make(x), average_pool(axes)(2)(x)
    for at, block in zip(blocks(grid, 1), blocks(tuple(2 * n for n in grid), 2), strict=True):
        slow = torch.einsum("bi,io...->bo...", x[:, :, *at].flatten(1), make.weight)
        slow = slow + make.bias.reshape(-1, *[1] * axes)
        torch.testing.assert_close(made[:, :, *block], slow)
    for at, block in zip(blocks(tuple(n // 2 for n in grid), 1), blocks(grid, 2), strict=True):
        own = x[:, :, *block].flatten(2)
        slow = torch.einsum("bik,oik->bo", own, join.weight.flatten(2)) + join.bias
        torch.testing.assert_close(joined[:, :, *at].flatten(1), slow)
        torch.testing.assert_close(mean[:, :, *at].flatten(1), own.mean(-1))


@pytest.mark.parametrize("grid", [(6,), (4, 6), (4, 2, 6)])
def test_a_batch_norm_levels_each_channel_by_its_batch_and_later_by_what_it_learned(grid):
    norm, x = batch_norm(len(grid))(2, momentum=0.25), 3 + 2 * torch.randn(5, 2, *grid)
    usual = x.transpose(0, 1).flatten(1)  # (c, all else)
    mean, var = usual.mean(1), usual.var(1, correction=0)
    slow = (usual - mean[:, None]) / (var[:, None] + 1e-5).sqrt()
    torch.testing.assert_close(norm(x).transpose(0, 1).flatten(1), slow)
    mean, var = 0.25 * mean, 0.75 + 0.25 * usual.var(1)
    slow = (usual - mean[:, None]) / (var[:, None] + 1e-5).sqrt()
    torch.testing.assert_close(norm.eval()(x).transpose(0, 1).flatten(1), slow)


@pytest.mark.parametrize(
    ("grid", "shape"), [((4,), (9,)), ((4, 3), (9, 5)), ((4, 3, 2), (9, 5, 6))]
)
def test_resizing_is_linear_between_the_middles_of_the_places_on_every_axis(grid, shape):
    x = slow = torch.randn(2, 3, *grid).numpy()
    for axis, (n, m) in enumerate(zip(grid, shape, strict=True)):
        places, wanted = ((np.arange(k) + 0.5) / k for k in (n, m))
        slow = np.apply_along_axis(lambda v, a=wanted, b=places: np.interp(a, b, v), axis + 2, slow)
    np.testing.assert_allclose(resize(torch.from_numpy(x), shape), slow, atol=1e-5)


@pytest.mark.parametrize("layer", [conv, conv_transpose, average_pool, batch_norm])
@pytest.mark.parametrize("axes", [0, 4])
def test_a_number_of_axes_that_torch_has_no_layer_for_is_refused(layer, axes):
    with pytest.raises(ValueError, match=f"over {axes} axes; torch has them over 1, 2 and 3"):
        layer(axes)
