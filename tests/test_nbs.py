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
    """The autoencoder in one state."""
    gelu, (a, b, c, d) = torch.nn.functional.gelu, weights[::2]
    p, q, r, s = weights[1::2]
    return gelu(gelu(token @ a + p) @ b @ c + q @ c + r) @ d + s


# What the paper's equations give, slowly


def ready(x: Tensor, sampler: str = "policy", **more: int | float) -> Model:
    """A model in the midst of learning: nothing in it is zero, and no two settings are alike."""
    more = {
        "share": 0.3,
        "exponent": 0.8,
        "entropy": 0.03,
        "beta_horizon": 7,
        "alpha_horizon": 11,
    } | more
    model = built(sampler, **more)
    model.warm_up([x])
    model.usual.normal_()
    model.taken.fill_(5)
    for i in range(model.snapshots.count):
        kept = model.snapshots.get_buffer(f"kept{i}")
        kept += 0.1 * torch.randn_like(kept)
    if model.policy is not None:
        torch.nn.init.normal_(model.policy.head.weight)
        model.policy.baseline.normal_()
        model.policy.visits.uniform_(0, 9)
        model.policy.met.uniform_(0, 9)
    return model


def states(model: Model) -> list[list[Tensor]]:
    """The weights of every state in a profile, the live one last."""
    kept = model.snapshots.states()
    return [[p[i] for p in kept] for i in range(len(kept[0]))] + [list(model.autoencoder)]


def tokens(model: Model, x: Tensor) -> Tensor:
    """(b, n, leads, samples), standardised."""
    return ((x - model.mean) / model.deviation).unflatten(2, (12, 20)).transpose(1, 2)


def slow_errors(model: Model, x: Tensor) -> Tensor:
    """Of each record, lead, token and state."""
    z = tokens(model, x)
    made = [rebuilt(weights, z.flatten(2)).reshape(z.shape) for weights in states(model)]
    return torch.stack([(y - z).square().mean(3).transpose(1, 2) for y in made], -1)


def slow_profile(model: Model, x: Tensor) -> Tensor:
    return (slow_errors(model, x) + 1e-4).log()


def slow_probability(model: Model, profile: Tensor) -> Tensor:
    """Of damage, (b, c, n): convolutions of dilation 1, 2, 4, 8 over tokens, of each lead alone."""
    found = []
    for z in (profile - model.usual).flatten(0, 1).mT:  # (H, n) of a record and lead
        for i, layer in enumerate(model.predictor[::2]):
            z = torch.nn.functional.gelu(z) if i else z
            padded = torch.nn.functional.pad(z, (2**i, 2**i))
            taps = [layer.weight[..., k] @ padded[:, k * 2**i :][:, :12] for k in range(3)]
            z = sum(taps) + layer.bias[:, None]
        found.append(z[0].sigmoid())
    return torch.stack(found).reshape(profile.shape[:3])


def known(x: Tensor) -> tuple[Tensor, Tensor]:
    """Damage of token 2 of lead 0 and of a quarter of token 4 of lead 1, and less of two others."""
    mask = torch.zeros_like(x)
    mask[:, 0, 45:63] = 1
    mask[:, 1, 80:85] = 1
    mask[:, 1, 100:103] = 1
    return x + 1.5 * mask, mask


def slow_judgement(model: Model, x: Tensor, alpha: float) -> Tensor:
    """The predictor's loss, with false alarms at a price of alpha."""
    p = slow_probability(model, slow_profile(model, torch.cat([x, known(x)[0]])))
    y = torch.zeros_like(p)
    y[len(x) :, 0, 2] = y[len(x) :, 1, 4] = 1
    return -(y * p.log() + alpha * (1 - y) * (1 - p).log()).mean()


@pytest.fixture
def drawn(monkeypatch) -> Tensor:
    """Damage and draws that are no longer left to chance: four tokens of each of five records."""
    fixed = torch.tensor([[7, 0, 3, 2], [1, 4, 11, 5], [2, 9, 6, 10], [8, 1, 0, 3], [5, 2, 4, 9]])
    monkeypatch.setattr("ecgad.methods.nbs.pseudo_anomalies", known)
    monkeypatch.setattr("ecgad.methods.nbs.draw", lambda logits, k: fixed[: len(logits), :k])
    return fixed


@pytest.mark.parametrize(("taken", "alpha"), [(0, 1.0), (5, 6 / 11), (400, 0.1)])
def test_the_loss_is_the_error_of_what_was_drawn_and_a_cross_entropy_on_half_of_the_records(
    x, drawn, taken, alpha
):
    model = ready(x, "uniform")
    model.taken.fill_(taken)
    learner, judge = list(model.autoencoder), list(model.predictor.parameters())
    first = slow_errors(model, x[:5])[..., 3].mean(1).gather(1, drawn).mean()
    second = slow_judgement(model, x[:5:2], alpha)
    loss = model.loss(x[:5])
    torch.testing.assert_close(loss, first + second)
    found = torch.autograd.grad(loss, learner + judge)
    naive = torch.autograd.grad(first, learner) + torch.autograd.grad(second, judge)
    torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("records", "steps", "beta"), [(1, 3, 4 / 7), (2, 3, 4 / 7), (5, 3, 4 / 7), (5, 70, 0.0)]
)
def test_the_policy_learns_from_what_its_draws_do_to_records_that_the_predictor_has_not_seen(
    x, drawn, records, steps, beta
):
    x, drawn, model = x[:records], drawn[:records], ready(x)
    policy = model.policy
    policy.steps.fill_(steps)
    twin, learner = copy.deepcopy(policy), list(model.autoencoder)
    if records > 1:
        held_out = slow_judgement(model, x[1::2], 6 / 11)
    else:  # of one record there is no other half
        held_out = slow_errors(model, x)[..., 3].mean(1).gather(1, drawn).mean()
    wanted = torch.autograd.grad(held_out, learner)
    u, learned = tokens(model, x).flatten(2), torch.zeros(records, 12)
    for i, j in torch.cartesian_prod(torch.arange(records), torch.arange(12)).tolist():
        step = torch.autograd.grad((rebuilt(learner, u[i, j]) - u[i, j]).square().mean(), learner)
        learned[i, j] = sum((a * b).sum() for a, b in zip(wanted, step, strict=True))
    steep = torch.nn.functional.pad((x / model.deviation).diff().abs(), (0, 1)).mean(1)
    edges = steep.reshape(-1, 12, 20).mean(2) / model.edge
    profile = slow_profile(model, x).detach() - model.usual
    logits = twin(u, profile.mean(1), edges)
    rewards = twin.rewards(u, drawn, edges, learned, beta)
    naive = torch.zeros(())
    for logit, order, reward in zip(logits, drawn.tolist(), rewards, strict=True):
        p, urn = logit.softmax(0), list(range(12))
        naive = naive + 0.03 * (p * p.log()).sum()
        for t, a in enumerate(order):
            gain = reward[t:].sum() - policy.baseline[t]
            naive = naive - gain * (logit[a] - logit[urn].logsumexp(0))
            urn.remove(a)
    found = torch.autograd.grad(model.loss(x), list(policy.parameters()))
    expected = torch.autograd.grad(naive / records, list(twin.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_draws_follow_the_policy_or_the_loss_or_nothing(x, monkeypatch):
    seen = []

    def draw(logits: Tensor, k: int) -> Tensor:
        seen.append((logits, k))
        return torch.arange(k).expand(len(logits), -1)

    monkeypatch.setattr("ecgad.methods.nbs.draw", draw)
    models = {name: ready(x, name) for name in SAMPLERS}
    profile = slow_profile(models["policy"], x[:5])
    error = slow_errors(models["loss"], x[:5])[..., 3].mean(1)
    made = models["policy"]
    state = made.split(x[:5]), (profile - made.usual).mean(1), made.edges(x[:5])
    said = made.policy(*state).detach()
    for model in models.values():
        model.loss(x[:5])
    uniform, loss, policy = (logits for logits, _ in seen)
    assert torch.equal(uniform, torch.zeros(5, 12))
    torch.testing.assert_close(loss, 0.8 * error.log(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(policy, said, rtol=1e-3, atol=1e-4)
    assert {k for _, k in seen} == {4}  # 0.3 of 12
    ready(x, "uniform", share=0.01).loss(x[:5])
    assert seen[-1][1] == 1


@pytest.mark.parametrize("stage", ["loss", "prediction"])
@pytest.mark.parametrize(("taken", "rate"), [(0, 1.0), (3, 0.25), (50, 0.05)])
def test_what_is_usual_follows_the_profiles_met_at_first_as_a_plain_mean(x, stage, taken, rate):
    model = ready(x)
    model.taken.fill_(taken)
    was = model.usual.clone()
    now = slow_profile(model, x[:5]).mean((0, 2))[:, None]  # of each lead and state
    getattr(model, stage)(x[:5])
    torch.testing.assert_close(model.usual, was + rate * (now - was), rtol=1e-4, atol=1e-4)
    assert int(model.taken) == taken + 1


def test_the_last_stage_judges_all_records_of_a_batch(x, drawn):
    model = ready(x)
    naive = slow_judgement(model, x[:5], 6 / 11)
    torch.testing.assert_close(model.prediction(x[:5]), naive)


def test_the_map_is_the_log_probability_of_no_damage(x):
    model = ready(x)
    p = slow_probability(model, slow_profile(model, x[:3]))
    expected = -(1 - p).log().repeat_interleave(20, dim=2)
    torch.testing.assert_close(model(x[:3]).map, expected, rtol=1e-3, atol=1e-5)


def test_the_policy_adds_gradient_and_no_value(x):
    values = []
    for sampler in ("policy", "uniform"):
        model = built(sampler)
        model.warm_up([x])
        torch.manual_seed(5)  # a new policy draws as the uniform sampler does
        values.append(model.loss(x[:16]).item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)


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


def test_the_predictor_learns_in_every_stage_the_autoencoder_and_the_policy_in_its_lives_alone():
    model = built(lives=3)
    assert model.policy is not None
    judge = set(model.predictor.parameters())
    everything = judge | set(model.autoencoder) | set(model.policy.parameters())
    stages = model.stages()
    assert [set(stage.parameters) for stage in stages] == [everything] * 3 + [judge]
    assert [stage.share for stage in stages] == pytest.approx([0.2, 0.2, 0.2, 0.4])


def test_states_are_kept_at_steps_that_grow_as_asked(x):
    model = built("uniform", growth=3.0)
    for step in range(12):
        model.autoencoder[1].data.fill_(step)
        model.loss(x[:2])
    assert model.snapshots.states()[1][:, 0].tolist() == [1, 3, 9]


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
    assert model.deviation[1, 0] == pytest.approx(1e-3 * model.deviation[0, 0])
    assert model(blank[:2]).map.isfinite().all()
    model.warm_up([0 * x])
    assert torch.equal(model.deviation, torch.ones(2, 1))
    assert model.loss(0 * x[:2]).isfinite()
    with pytest.raises(ValueError, match="no records"):
        model.warm_up([])


def test_edges_and_kinds_are_measured_on_the_first_batch(x):
    model = built()
    model.warm_up([x[:10], 3 * x[10:]])
    assert float(model.edges(x[:10]).mean()) == pytest.approx(1, rel=1e-5)
    first = model.split(x[:10]).flatten(0, 1)
    assert torch.cdist(model.policy.prototypes, first).amin(1).max() < 1e-2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sampler": "luck"}, "sampler is 'luck'; one of uniform, loss, policy"),
        ({"share": 0}, "share is 0; above 0, at most 1"),
        ({"share": 1.1}, r"share is 1\.1; above 0, at most 1"),
        ({"growth": 0.9}, r"growth is 0\.9; at least 1"),
        ({"exponent": -0.1}, r"exponent is -0\.1; at least 0"),
        ({"entropy": -0.1}, r"entropy is -0\.1; at least 0"),
        ({"rounds": 1}, "rounds is 1; at least 2"),
        ({"lives": 0}, "lives is 0; at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(more, message):
    with pytest.raises(ValueError, match=message):
        Config(**more)
