"""Noise, dropout and the MLP of layers that may not look nearby."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ecgad.parts.neighbours import EncoderLayer, Places, jittered, mlp, sinusoids


def test_noise_is_normal_in_proportion_to_a_token_s_length_and_each_number_s_own():
    """Within 5 deviations of what is estimated, of 120,000 numbers."""
    torch.manual_seed(0)
    n, width = 20_000, 6
    f = torch.randn(2, 3, width) * torch.tensor([0.1, 1.0, 10.0])[:, None]
    deviation = 0.7 * f.norm(dim=-1, keepdim=True) / width**0.5
    many = f.repeat(n // 2, 1, 1)
    z = ((jittered(many, 0.7) - many) / deviation.repeat(n // 2, 1, 1)).double()  # (n, 3, 6)
    for token in z.unbind(1):
        assert token.mean(0).abs().max() < 5 / n**0.5
        assert (token.T @ token / n - torch.eye(width)).abs().max() < 5 * (2 / n) ** 0.5
        assert (token**4).mean(0).sub(3).abs().max() < 5 * (96 / n) ** 0.5
    assert (z[:, 0] * z[:, 1]).mean(0).abs().max() < 5 / n**0.5  # other tokens
    assert (z[1:] * z[:-1]).mean(0).abs().max() < 5 / n**0.5  # other records


def test_what_is_dropped_is_what_attention_and_the_mlp_add_and_the_mlp_s_hidden_numbers():
    """All of it at a dropout of 1; in evaluation nothing."""
    z, p, mask = torch.randn(2, 7, 12), torch.randn(7, 12), torch.eye(7, dtype=torch.bool)
    layer = EncoderLayer(12, 3, 2, dropout=1.0)
    for norm, shift in zip(layer.norms, (1.0, 2.0), strict=True):
        torch.nn.init.constant_(norm.get_parameter("bias"), shift)
    whole = layer.norms[1](layer.norms[0](z))
    torch.testing.assert_close(layer.train()(z, p, mask), whole)
    assert not torch.allclose(layer.eval()(z, p, mask), whole, atol=0.1)
    alone = mlp(12, 2, 1.0)
    torch.testing.assert_close(alone(z), alone[3].bias.expand(2, 7, 12))


def test_a_token_s_place_is_part_of_its_query_and_of_its_key():
    z, p, mask = torch.randn(2, 7, 12), torch.randn(7, 12), torch.eye(7, dtype=torch.bool)
    layer = EncoderLayer(12, 3, 2, dropout=0.5).eval()
    y = layer.norms[0](z + layer.attention(z + p, z + p, z, mask))
    torch.testing.assert_close(layer(z, p, mask), layer.norms[1](y + layer.mlp(y)))


def test_places_are_learned_or_sinusoids_that_never_change():
    fixed, learned = (Places((3, 5), 12, learned=learned) for learned in (False, True))
    assert list(fixed.parameters()) == []
    rows, columns = sinusoids(3, 6), sinusoids(5, 6)
    at = [(i, j) for i in range(3) for j in range(5)]
    assert torch.equal(fixed(), torch.stack([torch.cat([rows[i], columns[j]]) for i, j in at]))
    assert [tuple(p.shape) for p in learned.parameters()] == [(3, 6), (5, 6)]
    rows, columns = learned.parameters()
    assert torch.equal(learned(), torch.stack([torch.cat([rows[i], columns[j]]) for i, j in at]))


def test_the_mlp_is_as_wide_inside_as_its_ratio_says_and_leaves_out_what_is_below_0():
    made, z = mlp(4, 3, 0.5).eval(), torch.randn(5, 4)
    first, last = made[0], made[3]
    assert first.out_features == 12
    wanted = F.linear(F.linear(z, first.weight, first.bias).clamp(min=0), last.weight, last.bias)
    torch.testing.assert_close(made(z), wanted)
