"""Prototypes of records: what each bank looks at, and what it sees that the others do not."""

from __future__ import annotations

import copy

import naive_transport
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ecgad import methods
from ecgad.parts.synthesis.edits import INDEPENDENT
from ecgad.parts.transport import grid_cost, lead_vectors

SMALL = {"encoder": "raw:20", "prototypes": 24, "local": 24, "steps": 6, "ema": 0.8}
SHORT = SMALL | {"window": 160, "lags": (30, 100)}
TINY = {
    "encoder": "raw:4", "patch": 4, "window": 12, "lags": (2, 6), "prototypes": 5, "local": 4,
    "alpha": 0.4, "epsilon": 0.2, "relax": 0.15, "ema": 0.7, "steps": 5,
}  # fmt: skip
SQUARES = SMALL | {"encoder": "raw:8"}


def made(shape: tuple[int, ...], settings: dict = SHORT, seed: int = 0):
    torch.manual_seed(seed)
    return methods.build("otproto", shape, settings).eval()


def learned(x: Tensor, settings: dict = SHORT, seed: int = 0):
    model = made(tuple(x.shape[1:]), settings, seed)
    model.warm_up(x.split(16))
    return model


def means(model, x: Tensor) -> dict[str, Tensor]:
    """Of each bank, a record's mean distance."""
    with torch.no_grad():
        return {k: model.banks[k](z).mean((1, 2)) for k, z in model.tokens(x).items()}


def forget_positions(model):
    """As if training normals had the same mean token everywhere."""
    centre = model.encoder.centre
    centre.copy_(centre.mean(1, keepdim=True).expand_as(centre))
    return model


def beats(n: int, *, seed: int, irregular: float = 0.0, t: int = 1000) -> Tensor:
    """One-lead records at 100 Hz of one and the same beat, (n, 1, t), at intervals that vary."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.01, (n, 1, t))
    for i in range(n):
        period = rng.uniform(70, 90)
        steps = period * (1 + irregular * rng.uniform(-1, 1, 40))
        at = np.cumsum(steps) - rng.uniform(0, 1) * steps[0] - 50
        distance = np.arange(t) - at[:, None]
        x[i, 0] += (
            np.exp(-0.5 * (distance / 2) ** 2) - 0.3 * np.exp(-(((distance - 28) / 7) ** 2))
        ).sum(0)
    return torch.from_numpy(x.astype(np.float32))


@pytest.fixture(scope="module")
def normals(ecg) -> Tensor:
    return torch.from_numpy(ecg(48, seed=0))


@pytest.fixture(scope="module")
def model(normals):
    return learned(normals)


def batches(seed: int = 0) -> tuple[Tensor, ...]:
    """Seven records of 2 leads in three batches, of which the last holds one."""
    return (1 + 2 * torch.randn(7, 2, 24, generator=torch.Generator().manual_seed(seed))).split(3)


def warmed(settings: dict):
    model = made((2, 24), settings)
    torch.manual_seed(1)
    model.warm_up(iter(batches()))
    return model


# Learning


def test_learning_takes_steps_over_the_batches_again_and_again_as_the_settings_say():
    """From where an ema of 1 leaves the prototypes: where they begin."""
    found, naive = warmed(TINY), warmed(TINY | {"ema": 1.0})
    for i in (0, 1, 2, 0, 1):
        for name, z in naive.tokens(batches()[i]).items():
            prototypes, _ = naive_transport.step(naive.banks[name], z, 0.7, 0.2, 0.15)
            naive.banks[name].prototypes.copy_(torch.from_numpy(prototypes))
    for name, bank in naive.banks.items():
        torch.testing.assert_close(
            found.banks[name].prototypes, bank.prototypes, atol=1e-4, rtol=0, msg=name
        )


def test_prototypes_begin_as_tokens_of_the_first_batch():
    model = warmed(TINY | {"ema": 1.0})
    for name, z in model.tokens(batches()[0]).items():
        apart = torch.cdist(model.banks[name].prototypes, model.banks[name].lifted(z).flatten(0, 2))
        assert apart.amin(1).max() < 1e-3


def test_tokens_and_distances_are_standardised_with_all_records():
    model, x = warmed(TINY), torch.cat(batches())
    tokens = model.tokens(x)
    assert tokens["joint0"].mean(0).abs().max() < 1e-5
    assert tokens["leads"].mean((0, 1)).abs().max() < 1e-5
    for name, z in tokens.items():
        means, bank = model.banks[name].distance(z).mean(2), model.banks[name]  # (7, rows)
        torch.testing.assert_close(bank.centre, means.mean(0))
        torch.testing.assert_close(bank.spread, means.std(0, correction=0))
        each = bank(z).mean(2)
        assert each.mean(0).abs().max() < 1e-4
        torch.testing.assert_close(each.std(0, correction=0), torch.ones(bank.spread.shape))


def test_the_loss_is_the_mean_over_banks_of_their_mean_distance():
    model, x = warmed(TINY), batches(seed=1)[0]
    each = []
    for name, z in model.tokens(x).items():
        cost, _ = naive_transport.cost(model.banks[name], z)
        each.append(cost.min(1).mean())
    assert len(each) == 3
    assert model.loss(x).item() == pytest.approx(np.mean(each), abs=1e-5)
    assert model.stages() == []


def test_place_counts_in_local_banks_alone_and_each_kind_has_its_number_of_prototypes():
    signal, square = made((2, 24), TINY), made((1, 16, 24), TINY | {"encoder": "mmae:8:8:3:2"})
    sizes = {
        name: (bank.alpha, len(bank.prototypes))
        for model in (signal, square)
        for name, bank in model.banks.items()
    }
    assert sizes == {
        "joint0": (0, 5), "joint1": (0, 5), "rhythm": (0, 5), "leads": (0.4, 4),
        "place0": (0.4, 4), "place1": (0.4, 4),
    }  # fmt: skip
    corners = square.banks["place1"].apart[0]  # of 2 x 3 tokens, to those of prototypes 0 .. 3
    torch.testing.assert_close(corners, grid_cost((2, 3))[:, [0, 1, 3, 4]])


def test_each_bank_looks_at_the_layer_it_is_named_after():
    x, settings = torch.randn(2, 1, 16, 24), TINY | {"encoder": "mmae:8:8:4:2"}
    model = made((1, 16, 24), settings)
    layers, tokens = model.encoder(x), model.tokens(x)
    assert list(tokens) == ["joint0", "joint2", "place0", "place2"]
    for name, z in tokens.items():
        assert torch.equal(z[:, 0], layers[:, int(name[-1])])
    assert model.config.encoder == "mmae:8x8:8:4:2"


def test_the_papers_numbers_are_the_defaults():
    c = methods.build("otproto", (12, 1000), {}).config
    assert (c.levels, c.alpha, c.epsilon, c.ema) == (2, 0.3, 0.01, 0.95)


# Rhythm


def test_a_rhythm_token_is_the_autocorrelation_of_the_speed():
    x = torch.randn(2, 2, 50, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    found = made((2, 50), SMALL | {"encoder": "raw:5", "patch": 5, "window": 24, "lags": (3, 9)})
    r = found.rhythm(x).numpy()
    starts = found.rhythm.inside[:, 0].tolist()
    assert (starts[0], starts[-1]) == (0, 26)
    assert max(np.diff(starts)) <= 3
    x = x.double().numpy()
    for b in range(2):
        speed = [0] + [sum(abs(x[b, c, i] - x[b, c, i - 1]) for c in (0, 1)) for i in range(1, 50)]
        for w, start in enumerate(starts):
            u = np.array(speed[start : start + 24]) - np.mean(speed[start : start + 24])
            for k, lag in enumerate(range(3, 10)):
                expected = sum(u[i] * u[i + lag] for i in range(24 - lag)) / (u @ u)
                assert r[b, 0, w, k] == pytest.approx(expected, abs=1e-5)


def test_a_long_window_is_a_hundred_means_of_the_speed():
    x = torch.randn(1, 1, 401, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    short = made((1, 401), SMALL | {"encoder": "raw:401", "patch": 401}).rhythm(x)
    speed = np.r_[0, np.abs(np.diff(x[0, 0].double().numpy()))][:400].reshape(100, 4).mean(1)
    u = speed - speed.mean()
    expected = [u[: 100 - lag] @ u[lag:] / (u @ u) for lag in range(7, 63)]  # 0.28 to 2.48 s
    np.testing.assert_allclose(short[0, 0, 0], expected, atol=1e-5)


def test_samples_after_the_last_whole_mean_belong_to_the_last_window():
    cover = made((1, 403), SMALL | {"encoder": "raw:403", "patch": 403}).rhythm.cover
    torch.testing.assert_close(cover, torch.ones(1, 403))


def test_the_speed_of_twelve_leads_is_that_of_the_vector_they_show():
    vector = torch.randn(2, 3, 240, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    noise = torch.zeros(2, 12, 240)
    derived = [i for i in range(12) if i not in INDEPENDENT]
    noise[:, derived] = 5 * torch.randn(2, 4, 240)  # limb leads that follow from I and II
    found = made((12, 240)).rhythm(lead_vectors() @ vector + noise)
    torch.testing.assert_close(found, made((3, 240)).rhythm(vector), rtol=1e-3, atol=1e-4)


def test_an_irregular_rhythm_of_usual_beats_is_seen_by_the_rhythm_alone():
    model = learned(beats(64, seed=0), SMALL)
    usual, irregular = beats(40, seed=1), beats(40, seed=2, irregular=0.3)
    found = means(model, torch.cat([usual, irregular]))
    labels = np.repeat([0, 1], 40)
    assert roc_auc_score(labels, found["rhythm"]) > 0.98
    assert roc_auc_score(labels, found["joint0"]) < 0.8
    with torch.no_grad():
        assert torch.equal(
            model(irregular).whole[:, 0],
            model.banks["rhythm"](model.tokens(irregular)["rhythm"]).mean((1, 2)),
        )


def test_a_rhythm_token_does_not_ask_where_a_beat_begins():
    x = torch.cat([beats(1, seed=0, t=1200)[..., s : s + 1000] for s in (0, 17, 41)])
    r = made((1, 1000), SMALL).rhythm(x).mean(2)  # (3, 1, lags)
    assert float((r - r[:1]).abs().max()) < 0.03 * float(r.max())


def test_a_windows_distance_lies_over_its_samples():
    model = made((1, 240))
    cover, starts = model.rhythm.cover, model.rhythm.inside[:, 0] * model.rhythm.pool
    for s in range(240):
        inside = [bool(a <= s < a + 160) for a in starts]
        expected = torch.tensor(inside).float() / sum(inside)
        torch.testing.assert_close(cover[:, s], expected)


def test_a_flat_record_has_a_rhythm_of_zeros():
    assert torch.equal(made((1, 240)).rhythm(torch.ones(1, 1, 240)), torch.zeros(1, 1, 5, 71))


# Places


def test_absolute_time_is_no_place(model, normals):
    """Where a token of the same content stands does not matter."""
    model = forget_positions(copy.deepcopy(model))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    moved = normals.reshape(-1, 12, 12, 20)[:, :, order].reshape(normals.shape)
    torch.testing.assert_close(
        model.banks["joint0"](model.tokens(moved)["joint0"]),
        model.banks["joint0"](model.tokens(normals)["joint0"])[..., order],
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_lead_that_shows_what_another_shows_is_displaced(normals):
    """V1 is given what V5 sees: usual in V5, strange in V1, whose row of the map rises most."""
    model = learned(normals)
    swapped = normals.clone()
    swapped[:, 6] = normals[:, 10]
    with torch.no_grad():
        before, after = (model.banks["leads"](model.tokens(x)["leads"]) for x in (normals, swapped))
        rise = (model(swapped).map - model(normals).map).mean(2)  # (n, 12)
    assert float((after - before)[:, 6].mean()) > 1
    assert bool((rise.argmax(1) == 6).all())


def test_a_part_of_a_picture_at_another_place_is_seen_by_the_local_bank(pictures):
    """The quarters of a picture trade places. To a prototype without place nothing changed."""
    x = torch.from_numpy(pictures(64, seed=0))
    model = forget_positions(learned(x, SQUARES | {"alpha": 0.5, "local": 64}))
    for bank in ("joint0", "place0"):
        model.banks[bank].begin(model.tokens(x)[bank])
    moved = torch.roll(x, (16, 16), dims=(2, 3))
    found = {k: (means(model, moved)[k] - means(model, x)[k]).mean() for k in ("joint0", "place0")}
    assert float(found["joint0"].abs()) < 1e-3
    assert float(found["place0"]) > 0.1


# The whole


def test_the_map_is_the_mean_of_the_banks_maps_and_each_has_the_same_say(model, normals):
    with torch.no_grad():
        banks = {k: model.banks[k](z) for k, z in model.tokens(normals).items()}
        map = model(normals).map
    assert sorted(banks) == ["joint0", "leads", "rhythm"]
    leads = [model.leads.spread(banks["leads"][:, i], (240,)) for i in range(12)]  # of (b, 1, t)
    rest = (
        model.encoder.spread(banks["joint0"][:, 0], (240,)) + banks["rhythm"] @ model.rhythm.cover
    )
    torch.testing.assert_close(map, (torch.cat(leads, dim=1) + rest) / 3)


def test_levels_lie_evenly_from_the_first_layer_to_the_last():
    settings = SHORT | {"encoder": "mmae:20:16:6:2"}  # five layers
    for levels, expected in ((1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (9, [0, 1, 2, 3, 4])):
        assert made((1, 240), settings | {"levels": levels}).levels == expected


def test_another_seed_draws_other_prototypes_and_the_same_the_same(normals):
    one, same, other = (learned(normals, seed=s).state_dict() for s in (0, 0, 1))
    for name in ("joint0", "leads", "rhythm"):
        key = f"banks.{name}.prototypes"
        assert torch.equal(one[key], same[key])
        assert not torch.equal(one[key], other[key])


def test_a_local_bank_spreads_its_prototypes_over_the_leads():
    apart = made((12, 240), SHORT | {"local": 36}).banks["leads"].apart
    assert (apart == 0).sum(2).flatten().tolist() == [3] * 12


@torch.no_grad()
def test_without_a_window_the_map_is_that_of_the_other_banks(model, normals):
    bare, x = made(tuple(normals.shape[1:]), SHORT | {"window": 0}), normals[:3]
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k in bare.state_dict()})
    found, full = bare(x), model(x)
    rhythm = model._lay("rhythm", model.banks["rhythm"](model.tokens(x)["rhythm"]))
    count = len(model.banks)
    assert set(model.banks) - set(bare.banks) == {"rhythm"}
    torch.testing.assert_close(found.map, (full.map * count - rhythm) / (count - 1))
    assert full.whole.abs().min() > 0
    assert found.whole.abs().max() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 400}, "rhythm window of 400 does not fit 240 samples"),
        ({"lags": (100, 30)}, r"lags are \(100, 30\)"),
        ({"lags": (30, 200)}, "below the window's 160"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"relax": 0.0}, "relax is 0.0"),
        ({"ema": -0.1}, "ema is -0.1"),
        ({"local": 0}, "local is 0"),
        ({"lags": (0, 100)}, r"lags are \(0, 100\)"),
        ({"steps": 0}, "steps is 0"),
        ({"patch": 7}, r"patch \(7,\) does not tile grid"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        made((1, 240), SHORT | settings)


def test_no_records_are_refused():
    with pytest.raises(ValueError, match="no records"):
        made((1, 240)).warm_up([])
