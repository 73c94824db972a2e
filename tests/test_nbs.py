"""What is particular to neural batch sampling: profiles, who learns from what, and their use."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ecgad.methods.nbs import SAMPLERS, Config, Model
from ecgad.parts.synthesis.pseudo import pseudo_anomalies
from ecgad.train import Budget, fit

SMALL = {"segment": (20,), "hidden": 32, "bottleneck": 6, "rounds": 4}


def built(sampler: str = "policy", **more: int | float) -> Model:
    torch.manual_seed(0)
    return Model((2, 240), Config(sampler=sampler, **SMALL | more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def x(ecg) -> Tensor:
    return torch.from_numpy(ecg(64, seed=0, leads=2))


def rebuilt(weights: list[Tensor], token: Tensor) -> Tensor:
    """The autoencoder, one token and one state at a time."""
    gelu, (a, b, c, d) = torch.nn.functional.gelu, weights[::2]
    p, q, r, s = weights[1::2]
    return gelu(gelu(token @ a + p) @ b @ c + q @ c + r) @ d + s


def test_a_profile_is_the_error_of_each_token_and_lead_under_each_state(x):
    model = built()
    for i in range(model.snapshots.count):
        model.snapshots.get_buffer(f"kept{i}").add_(
            0.1 * torch.randn_like(model.snapshots.get_buffer(f"kept{i}"))
        )
    model.warm_up([x])
    errors = model.errors(model.split(x[:2]))
    assert errors.shape == (2, 2, 12, 4)
    mean, deviation = x.mean((0, 2)), x.transpose(0, 1).flatten(1).std(1)
    for state in range(4):
        weights = [
            p if state == 3 else model.snapshots.get_buffer(f"kept{i}")[state]
            for i, p in enumerate(model.autoencoder)
        ]
        for token in (0, 7):
            z = (x[1, :, 20 * token : 20 * token + 20] - mean[:, None]) / deviation[:, None]
            wrong = (rebuilt(weights, z.flatten()) - z.flatten()).square().reshape(2, 20).mean(1)
            torch.testing.assert_close(errors[1, :, token, state], wrong, rtol=1e-4, atol=1e-5)


def test_a_token_of_one_lead_lights_its_own_samples(x):
    model = built().eval()
    before = model(x[:1]).map
    model.usual[1] += 1.0  # what lead 1 is judged against
    change = (model(x[:1]).map - before).abs()
    assert change[0, 0].max() == 0
    assert change[0, 1].min() > 0
    assert torch.equal(before.unflatten(2, (12, 20)).std(3), torch.zeros(1, 2, 12))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_only_a_policy_has_parameters_that_choose(sampler):
    assert (built(sampler).policy is None) == (sampler != "policy")


def test_every_parameter_of_the_policy_learns_through_the_method(x):
    model = built(entropy=0.0)
    model.warm_up([x])
    assert model.policy is not None
    torch.nn.init.normal_(model.policy.head.weight)  # zero at first: nothing flows behind it
    model.loss(x[:16]).backward()
    for name, p in model.policy.named_parameters():
        if name != "head.bias":  # shifts all logits alike
            assert p.grad is not None, name
            assert p.grad.abs().max() > 1e-7, name


def test_the_policy_adds_gradient_and_no_value(x):
    values = []
    for sampler in ("policy", "uniform"):
        model = built(sampler)
        model.warm_up([x])
        torch.manual_seed(5)  # a new policy draws as the uniform sampler does
        values.append(model.loss(x[:16]).item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_the_autoencoder_learns_from_drawn_tokens_alone(x, monkeypatch):
    grads = []
    for scale in (1.0, 5.0):
        model = built("uniform", share=0.5)
        model.warm_up([x])
        monkeypatch.setattr(
            "ecgad.methods.nbs.draw", lambda logits, k: torch.arange(k).expand(64, -1)
        )
        u = x.clone()
        u[..., 120:] *= scale  # the other half
        model.loss(u).backward()
        grads.append(model.autoencoder[0].grad)
    torch.testing.assert_close(*grads)


def test_the_policy_does_not_touch_the_gradient_of_others(x):
    grads = []
    for sampler in ("policy", "uniform"):
        model = built(sampler)
        model.warm_up([x])
        torch.manual_seed(5)
        model.loss(x[:16]).backward()
        grads.append([p.grad for p in [*model.autoencoder, *model.predictor.parameters()]])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_the_last_stage_leaves_the_autoencoder_and_its_states(x):
    model = built()
    model.warm_up([x])
    model.loss(x).backward()
    for p in model.parameters():
        p.grad = None
    states = copy.deepcopy(model.snapshots.state_dict())
    model.prediction(x).backward()
    assert all(p.grad is None for p in model.autoencoder)
    assert all(torch.equal(v, states[k]) for k, v in model.snapshots.state_dict().items())


def test_a_new_life_has_other_weights_no_past_and_an_optimiser_of_its_own(x):
    model = built(lives=2)
    model.warm_up([x])
    first, second, last = model.stages()
    assert [s.name for s in (first, second, last)] == [
        "autoencoder 1",
        "autoencoder 2",
        "predictor",
    ]
    for _ in range(4):
        first.loss(x[:8])
    before = [p.detach().clone() for p in model.autoencoder]
    second.loss(x[:8])
    for now, was in zip(list(model.autoencoder)[::2], before[::2], strict=True):
        assert (now - was).abs().mean() > 0.01
    assert int(model.snapshots.step) == 1
    newest = model.snapshots.states()[0]
    assert torch.equal(newest, model.autoencoder[0].expand_as(newest))
    kept = [p.detach().clone() for p in model.autoencoder]
    second.loss(x[:8])
    assert all(torch.equal(p, k) for p, k in zip(model.autoencoder, kept, strict=True))
    assert sum(stage.share for stage in model.stages()) == pytest.approx(1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_training_ends_with_the_same_numbers(x, tmp_path, sampler):
    class Stop(Exception):
        pass

    def stop(progress) -> None:
        raise Stop

    def learn(model: Model, **more) -> Model:
        fit(model, x.numpy(), seed=0, budget=Budget(12, 8), report_every=2, **more)
        return model

    path = tmp_path / f"{sampler}.pt"
    whole, broken = learn(built(sampler)), built(sampler)
    calls = iter(range(100))
    with pytest.raises(Stop):
        learn(broken, checkpoint=path, report=lambda p: next(calls) == 3 and stop(p))
    resumed = learn(built(sampler), checkpoint=path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_learned_profile_tells_damage_better_than_the_last_loss(ecg):
    """The hypothesis on which the method stands, on records that it did not learn from."""
    model = built("uniform")
    fit(model, ecg(128, seed=0, leads=2), seed=0, budget=Budget(150, 32, 5e-3))
    torch.manual_seed(1)
    damaged, mask = pseudo_anomalies(torch.from_numpy(ecg(64, seed=1, leads=2)))
    with torch.no_grad():
        found = model(damaged).map
        last = model.errors(model.split(damaged))[..., -1].repeat_interleave(20, dim=2)
    hit = mask.numpy().ravel() > 0
    by_profile, by_loss = (roc_auc_score(hit, a.numpy().ravel()) for a in (found, last))
    assert by_profile > by_loss + 0.02


def test_standardising_uses_all_batches_and_bears_a_blank_lead(x):
    blank = torch.stack([3 + x[:, 0], 0 * x[:, 1]], 1)
    model = built()
    model.warm_up(blank.split(10))
    torch.testing.assert_close(model.mean[0, 0], blank[:, 0].mean())
    torch.testing.assert_close(model.deviation[0, 0], blank[:, 0].std(), rtol=1e-3, atol=0)
    assert model(blank[:2]).map.isfinite().all()
    with pytest.raises(ValueError, match="no records"):
        model.warm_up([])
