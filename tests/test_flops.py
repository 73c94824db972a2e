"""The counts, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ecgad import flops, methods
from ecgad.methods.mmae import Config, Model
from ecgad.parts.detector import Detector, Evidence


def mmae_by_hand(leads: int, t: int, c: Config) -> int:
    """Embedding, encoder, decoder and head, written out from the paper's figure."""
    n, size, d = t // c.segment[0], leads * c.segment[0], c.width
    delta, rounds, depth = c.local[0], c.rounds, c.depth
    masked = round(c.hidden * n) + round(c.hidden * delta)
    visible = n + delta - masked

    def block(tokens: int, asking: int) -> int:
        projections = 2 * d * d * tokens + 2 * d * d * asking  # K, V; Q, out
        mlp = 2 * 4 * d * d * asking
        products = 2 * asking * tokens * d  # Q K^T and its product with V, all heads
        return projections + mlp + products

    embed = n * size * d  # once: the rounds share it
    narrow = visible * d * d
    head = masked * d * size
    encode = depth * block(visible, visible)
    return embed + rounds * (encode + narrow + block(n + delta, masked) + head)


class Toy(Detector):
    """One operation on (1, 1, 6), for counting."""

    def __init__(self, operation: nn.Module) -> None:
        super().__init__((1, 6))
        self.operation = operation

    def forward(self, x: Tensor) -> Evidence:
        return Evidence(x, self.operation(x).sum().reshape(1, 1))

    def loss(self, x: Tensor) -> Tensor:
        return x.sum()


class Operation(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def macs(function) -> int:
    return flops.count(Toy(Operation(function))).macs_record


PAPER = {"rounds": 8, "hidden": 0.25}  # two turns of all segments, each with a quarter hidden


@pytest.mark.parametrize("more", [{}, PAPER])
@pytest.mark.parametrize(("t", "segment"), [(4800, 48), (1000, 10)])
def test_mmae_costs_what_the_formula_says(t, segment, more):
    config = Config(segment=(segment,), beside=(), **more)
    cost = flops.count(Model((12, t), config))
    assert cost.macs_record == mmae_by_hand(12, t, config)


@pytest.mark.parametrize(("t", "segment"), [(4800, 48), (1000, 10)])
def test_what_stands_beside_mmaes_map_costs_what_its_products_say(t, segment):
    model = Model((12, t), Config(segment=(segment,), error=2))  # reconstructs all, as the paper
    tokens = 2 * 50 * 128 * (64 + 1)  # rounds, visible segments, centres of the bank, width
    stretches, samples = 97, 4 * segment // model.patches.pool
    patches = stretches * (128 + 64) * (samples + 1) + stretches * model.tokens.n  # and the means
    pieces, samples = model.rhythm.pieces.shape
    first, last = (k * segment // model.rhythm.pool for k in (3, 25))  # lags: 0.3 .. 2.5 s
    shifts, frequencies = last - first + 1, (samples + last) // 2 + 1
    rhythm = pieces * frequencies * (2 * samples + shifts)  # to its power, and back
    rhythm += pieces * (shifts + 1) * (128 + 64)  # the bank
    rhythm += pieces * model.tokens.n  # each segment's mean
    quantiles = (12 * 7) ** 2  # seven of each lead, whitened
    paper = flops.count(Model(model.shape, Config(segment=(segment,), beside=())))
    found = flops.count(model).macs_record - paper.macs_record
    assert found == tokens + 12 * patches + rhythm + quantiles


@pytest.mark.parametrize("settings", [{}, PAPER])
def test_mmae_keeps_the_published_size_ratios_to_mcf(settings):
    cost = flops.count(methods.build("mmae", (12, 4800), settings))
    assert cost.parameters <= flops.MCF.parameters // 18
    assert cost.macs_record <= flops.MCF.macs_pass * flops.MCF.passes[0] / 78
    assert cost.macs_record <= 280_000_000


def test_one_round_costs_what_a_pass_does_when_the_embedding_is_left_out():
    one = flops.count(
        methods.build("mmae", (3, 96), {"segment": (48,), "local": (2,), "rounds": 2, "beside": ()})
    )
    two = flops.count(
        methods.build("mmae", (3, 96), {"segment": (48,), "local": (2,), "rounds": 4, "beside": ()})
    )
    embed = 96 * 3 * 64
    assert two.macs_record - embed == 2 * (one.macs_record - embed)


WEIGHT = torch.ones(4, 1, 3)


@pytest.mark.parametrize(
    ("function", "by_hand"),
    [
        (lambda x: x @ torch.ones(6, 5), 6 * 5),
        (lambda x: torch.ones(7, 1, 6) @ x.mT, 7 * 6),  # the smaller operand is broadcast
        (lambda x: x.reshape(6) @ torch.ones(6), 6),
        (lambda x: nn.functional.linear(x, torch.ones(5, 6)), 6 * 5),
        (lambda x: torch.einsum("bct,dt->bcd", x, torch.ones(5, 6)), 6 * 5),
        (lambda x: nn.functional.conv1d(x, WEIGHT), 4 * 4 * 3),  # 4 kernels of 3, 4 places
        (lambda x: nn.functional.conv1d(x.expand(1, 4, 6), WEIGHT, groups=4), 4 * 4 * 3),
        (lambda x: nn.functional.conv_transpose1d(x.expand(1, 4, 6), WEIGHT), 6 * 4 * 3),
        (lambda x: torch.cdist(x, torch.ones(1, 9, 6)), 9 * 6),
        (lambda x: nn.functional.layer_norm(x, (6,)).softmax(-1), 0),
    ],
)
def test_each_operation_costs_its_products(function, by_hand):
    assert macs(function) == by_hand


def test_attention_costs_both_of_its_products():
    def attend(x: Tensor) -> Tensor:
        q, kv = torch.ones(1, 2, 3, 5), torch.ones(1, 2, 7, 5)  # 2 heads, 3 queries, 7 keys
        return nn.functional.scaled_dot_product_attention(q * x.sum(), kv, kv)

    assert macs(attend) == 2 * (2 * 3 * 7 * 5)


def test_an_operation_of_unknown_cost_stops_the_count():
    with pytest.raises(NotImplementedError, match="linalg_inv"):
        macs(lambda x: torch.linalg.inv(torch.eye(6) + x.mT @ x))


def test_a_fused_layer_stops_the_count_and_does_not_hide_its_products():
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    with pytest.raises(NotImplementedError, match="_native_multi_head_attention"):
        flops.count(Toy(layer))


def test_a_frozen_encoder_is_told_apart():
    model = Toy(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)))
    model.operation[0].requires_grad_(False)
    cost = flops.count(model)
    assert (cost.parameters, cost.frozen_parameters) == (5 * 2 + 2, 6 * 5 + 5)
    assert (cost.macs_record, cost.frozen_macs) == (6 * 5 + 5 * 2, 6 * 5)


def test_numbers_computed_by_warm_up_are_counted_as_stored():
    model = Toy(nn.Linear(6, 5))
    model.register_buffer("centre", torch.zeros(11))
    model.register_buffer("derived", torch.zeros(13), persistent=False)
    assert flops.count(model).stored == 11


def test_counting_leaves_the_model_as_it_was():
    model = Toy(nn.Sequential(nn.Linear(6, 5), nn.Dropout()))
    model.operation[0].eval()
    flops.count(model)
    assert [m.training for m in model.modules()] == [True, True, False, True]
