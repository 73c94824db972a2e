"""What is particular to FADeR: the gates, what they are taught, and the mask beside them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecgad.methods import fader
from ecgad.methods.fader import Config, Model

SMALL = {"width": 16, "depth": 1, "heads": 2, "reduction": 2}
LINE, SQUARE = (3, 72), (2, 12, 12)


def built(shape: tuple[int, ...] = LINE, **more: object) -> Model:
    """An untrained model whose every parameter has something to say."""
    torch.manual_seed(0)
    settings = SMALL | {"segment": (6,) if len(shape) == 2 else (4, 4)} | more
    model = Model(shape, Config(**settings))  # type: ignore[arg-type]
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


def gates_at(model: Model, logit: float) -> Model:
    """The same model with every gate at sigmoid(logit); in float32, +-200 are exactly 1 and 0."""
    model = copy.deepcopy(model)
    for p in model.gate.parameters():
        p.data.zero_()
    model.gate[-1].bias.data.fill_(logit)  # type: ignore[union-attr]
    return model


def inpainted(model: Model, u: Tensor, visible: list[int]) -> Tensor:
    """The base alone, of one record (n, p): encoder on what is visible, mask and hint elsewhere."""
    z = model.encoder((model.embed(u) + model.position)[visible][None])[0]
    means = torch.stack([part.mean(-1) for part in u.chunk(model.shape[0], dim=-1)], dim=-1)
    y = model.hint(means)
    for k, j in enumerate(visible):
        y[j] = z[k]
    return model.head(model.decoder((y + model.decoder_position)[None]))[0]


# The base


def test_the_base_learns_all_of_a_record_from_what_its_own_mask_or_a_random_one_shows(monkeypatch):
    model, x = built(), torch.randn(4, *LINE)
    model.scale.copy_(torch.tensor([[0.5], [1.0], [2.0]]))
    drawn = torch.tensor([[0, 1, 3, 4, 6, 7, 9, 10, 11], [1, 2, 3, 5, 6, 7, 8, 10, 11]])
    asked = []
    monkeypatch.setattr(fader, "random_split", lambda *a: asked.append(a) or (drawn, None))
    loss = model.loss(x)
    u = model.split(x)
    assert asked[0][:3] == (2, 12, 3)
    own = model.hide(model.first_pass(u[:2])[0])
    rebuilt = [inpainted(model, v, w.tolist()) for v, w in zip(u, [*own, *drawn], strict=True)]
    expected = model.distance(torch.stack(rebuilt), u)
    torch.testing.assert_close(loss, expected)
    gradients = (torch.autograd.grad(v, model.head.weight)[0] for v in (loss, expected))
    torch.testing.assert_close(*gradients)


# The gates


def test_without_a_share_of_the_budget_the_gates_stay_as_they_begin():
    assert [(s.name, s.share) for s in built(gate_share=0.0).stages()] == [("base", 1.0)]
    assert [s.name for s in built(gate_share=0.3).stages()] == ["base", "gates"]


@pytest.mark.parametrize("shape", [LINE, SQUARE])
@torch.no_grad()
def test_open_gates_leave_the_reconstructor_as_it_is_to_the_last_bit(shape):
    model, x = built(shape), torch.randn(2, *shape)
    u = model.tokens.split(x)
    e, _ = model.first_pass(u)
    visible = model.hide(e)
    z = model.encode(u, visible)
    base = model.decode(u, z, torch.ones_like(z[..., :1]), visible)
    assert torch.equal(gates_at(model, 200.0).repair(u, e), base)
    for k in range(2):
        torch.testing.assert_close(base[k], inpainted(model, u[k], visible[k].tolist()))


@torch.no_grad()
def test_a_closed_gate_makes_a_token_a_hidden_one():
    model, u = built(), torch.randn(1, 12, 18)
    visible = torch.tensor([[0, 2, 3, 5, 7, 8, 9, 11]])
    z = model.encode(u, visible)
    g = torch.ones(1, 8, 1)
    g[0, 3] = 0
    other = z.clone()
    other[0, 3] += torch.randn(16)
    closed = model.decode(u, z, g, visible)
    assert torch.equal(model.decode(u, other, g, visible), closed)
    assert not torch.equal(model.decode(u, other, torch.ones_like(g), visible), closed)
    kept = [0, 1, 2, 4, 5, 6, 7]
    without = model.decode(u, z[:, kept], torch.ones(1, 7, 1), visible[:, kept])
    torch.testing.assert_close(closed, without)


def test_gates_begin_open():
    torch.manual_seed(0)
    model = Model((12, 1000), Config())
    _, g = model.first_pass(model.tokens.split(10 * torch.randn(2, 12, 1000)))
    assert 0.98 < g.min() <= g.max() < 1


def test_the_plug_in_is_two_small_layers():
    for width, reduction in ((64, 4), (48, 8), (32, 1)):
        model = Model((12, 1000), Config(width=width, reduction=reduction))
        narrow = width // reduction
        size = width * narrow + narrow + narrow + 1
        assert sum(p.numel() for p in model.stages()[1].parameters) == size


def test_what_the_gates_learn_leaves_the_reconstructor_as_it_was():
    model = built()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    base, gates = model.stages()
    optimizer = torch.optim.AdamW(gates.parameters, lr=0.1)
    gates.loss(torch.randn(4, *LINE)).backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("gate.")}
    assert not {id(p) for p in base.parameters} & {id(p) for p in gates.parameters}


# What they are taught


def test_the_target_falls_with_the_error_and_with_the_share_that_was_damaged():
    model = built()
    model.q.fill_(0.7)
    model.tau.fill_(0.2)
    e = torch.linspace(0, 3, 50)
    a = model.wanted(e, torch.zeros(50))
    assert ((a >= 0) & (a <= 1)).all()
    assert (a.diff() < 0).all()
    assert model.wanted(torch.tensor(0.7), torch.tensor(0.0)).item() == pytest.approx(0.5)
    assert model.wanted(torch.tensor(0.9), torch.tensor(0.0)).item() == pytest.approx(
        1 / (1 + np.e), rel=1e-5
    )
    torch.testing.assert_close(model.wanted(e, torch.full((50,), 0.25)), 0.75 * a)
    assert (model.wanted(e, torch.ones(50)) == 0).all()


def test_q_and_tau_come_to_be_those_of_the_training_normals():
    model, x = built(), torch.randn(7, *LINE)
    with torch.no_grad():
        for _ in range(150):
            model.loss(x)
        e = model.first_pass(model.tokens.split(x[:4]))[0].numpy()  # the half with its own mask
    low, high, q = np.quantile(e, [0.25, 0.75, 0.95])
    assert model.q.item() == pytest.approx(q, rel=1e-4)
    assert model.tau.item() == pytest.approx((high - low) / 2, rel=1e-4)


def test_gates_learn_from_damage_and_from_errors_to_give_back_what_was_there(monkeypatch):
    model, x = built(active=2.0, beta=0.5, ratio=0.1), torch.randn(2, *LINE)
    model.q.fill_(0.8)
    model.tau.fill_(0.1)
    mask = torch.zeros_like(x)
    mask[0, 1, 12:21] = 1  # all of token 2 and half of token 3
    damaged = x + 3 * mask
    monkeypatch.setattr(fader, "pseudo_anomalies", lambda x, recordwide: (damaged, mask))
    with torch.no_grad():
        u = model.tokens.split(damaged)
        e, _ = model.first_pass(u)
        visible, total, count = model.hide(e), 0.0, 0
        z = model.encode(u, visible)
        g = model.gate(z).sigmoid()
        for i in range(2):
            for k, j in enumerate(visible[i].tolist()):
                strange = 1 / (1 + np.exp(-(e[i, j].item() - 0.8) / 0.1))
                hurt = {2: 1.0, 3: 0.5}.get(j, 0.0) if i == 0 else 0.0
                a, p = (1 - hurt) * (1 - strange), g[i, k].item()
                bce = -a * np.log(p) - (1 - a) * np.log(1 - p)
                total, count = total + (1 + 2.0 * strange) * bce, count + 1
        rebuilt = model.distance(model.decode(u, z, g, visible), model.tokens.split(x))
        assert {2, 3} & set(visible[0].tolist())
    assert model.gate_loss(x).item() == pytest.approx(total / count + 0.5 * rebuilt.item(), 1e-4)


@pytest.mark.parametrize("shape", [LINE, SQUARE, (1, 3)])
def test_the_reconstruction_is_compared_in_values_and_in_gradients_of_three_scales(shape):
    model = built(shape, **({"segment": (1,)} if shape == (1, 3) else {}))
    x, y = np.random.default_rng(0).normal(size=(2, 2, *shape)).astype(np.float32)
    gradients = []
    for axis in range(2, x.ndim):
        for s in (1, 2, 4):
            if s < x.shape[axis]:
                ahead, here = (np.arange(s, x.shape[axis]), np.arange(x.shape[axis] - s))
                fx, fy = (v.take(ahead, axis) - v.take(here, axis) for v in (x, y))
                gradients.append(((fx - fy) ** 2).mean())
    expected = ((x - y) ** 2).mean() + np.mean(gradients)
    found = model.distance(*(model.tokens.split(torch.from_numpy(v)) for v in (x, y)))
    assert found.item() == pytest.approx(expected, rel=1e-4)


# The binary mask


@pytest.mark.parametrize("n", [3, 7, 24, 51, 100])
@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.3, 0.49])
def test_the_first_pass_hides_and_shows_every_token(n, ratio):
    model = Model((1, n), Config(segment=(1,), ratio=ratio, width=4, depth=1, heads=1))
    assert torch.allclose(model.of_hidden.sum(0), torch.ones(n))
    assert torch.allclose(model.of_shown.sum(0), torch.ones(n))


@pytest.mark.parametrize("shape", [LINE, SQUARE])
@torch.no_grad()
def test_the_first_pass_is_the_mean_over_maskings_one_by_one(shape):
    model, x = built(shape, ratio=0.3), torch.randn(2, *shape)
    u = model.tokens.split(x)
    n = model.tokens.n
    for k in range(2):
        errors, gates = ([[] for _ in range(n)] for _ in range(2))
        for visible in model.shown.tolist():
            out = inpainted(model, u[k], visible)
            z = model.encoder((model.embed(u[k]) + model.position)[visible][None])[0]
            for j in set(range(n)) - set(visible):
                errors[j].append((out[j] - u[k, j]).abs().mean().item())
            for j, g in zip(visible, model.gate(z).sigmoid()[:, 0].tolist(), strict=True):
                gates[j].append(g)
        e, g = (v[k].numpy() for v in model.first_pass(u))
        np.testing.assert_allclose(e, [np.mean(v) for v in errors], rtol=1e-4)
        np.testing.assert_allclose(g, [np.mean(v) for v in gates], rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.2, 0.25, 0.4])
def test_as_many_tokens_are_hidden_as_asked_and_the_same_at_every_call(ratio):
    model = Model((1, 100), Config(segment=(1,), ratio=ratio, margin=0, width=4, heads=1))
    e = torch.rand(5, 100)
    visible = model.hide(e)
    assert torch.equal(model.hide(e), visible)
    for k in range(5):
        largest = np.argsort(e[k].numpy())[100 - round(100 * ratio) :]
        assert set(visible[k].tolist()) == set(range(100)) - set(largest.tolist())


def test_a_strange_token_takes_its_neighbours_with_it():
    e = torch.rand(1, 12)
    e[0, 7] = 50
    hidden = set(range(12)) - set(built(margin=1).hide(e)[0].tolist())
    assert hidden == {6, 7, 8}
    e = torch.rand(1, 9)
    e[0, 8] = 50  # a corner of 3 x 3
    hidden = set(range(9)) - set(built(SQUARE, ratio=0.45).hide(e)[0].tolist())
    assert hidden == {4, 5, 7, 8}


@torch.no_grad()
def test_of_a_hidden_token_only_the_mean_of_each_lead_reaches_the_output():
    """No lead of it is left in sight from which another could be told."""
    model, u = gates_at(built(), 200.0), torch.randn(1, 12, 18)
    e = torch.rand(1, 12)
    before = model.repair(u, e)
    visible = set(model.hide(e)[0].tolist())
    for j in range(12):
        for lead in range(3):
            other = u.clone()
            part = other[0, j, 6 * lead : 6 * lead + 6]
            part += F.normalize(torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0]), dim=0)
            same = torch.allclose(model.repair(other, e), before, atol=1e-5)
            assert same == (j not in visible)


# The map


@torch.no_grad()
def test_the_map_is_the_error_in_deviations_over_normals_and_the_attenuation():
    model, x = built(attenuation=2.5), torch.randn(40, *LINE) * torch.tensor([[1.0], [4.0], [9.0]])
    model.warm_up(x.split(16))
    model.settle(x.split(16))
    x = x / torch.from_numpy(np.sqrt((x.numpy() ** 2).mean((0, 2))))[:, None]
    u = model.tokens.split(x)
    e, g = model.first_pass(u)
    error = (x - model.tokens.join(model.repair(u, e))).abs().numpy()
    sigma = np.sqrt((error.astype(np.float64) ** 2).mean((0, 2)))
    np.testing.assert_allclose(model.sigma[:, 0], sigma, rtol=1e-4)
    strange = np.repeat(1 - g.numpy(), 6, axis=1)[:, None]
    expected = error / sigma[:, None] + 2.5 * strange
    np.testing.assert_allclose(model(x * model.scale).map, expected, rtol=1e-3, atol=1e-5)
