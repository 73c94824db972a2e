"""A bank of normal tokens: the nearest one counts, wherever it stands."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from ecgad import methods


def small(ecg, **settings: object):  # noqa: ANN001, ANN202
    x = torch.from_numpy(ecg(24, seed=0))
    torch.manual_seed(0)
    model = methods.build("knn", (12, 240), {"encoder": "raw:40", "bank": 8} | settings).eval()
    model.warm_up(x.split(7))
    return model, x


def test_the_map_is_the_squared_distance_to_the_nearest_of_the_bank_at_each_token(ecg):
    model, x = small(ecg)
    tokens = model.encoder(x[:3])[:, -1].numpy()  # (3, 6, 480)
    map = model(x[:3]).map.numpy()
    for record, row in zip(tokens, map[:, 0], strict=True):
        slow = [min(((t - c) ** 2).sum() for c in model.bank.centres.numpy()) / 480 for t in record]
        centres = np.arange(6) * 40 + 19.5  # of the tokens, in samples
        np.testing.assert_allclose(row, np.interp(np.arange(240), centres, slow), rtol=1e-3)


def test_a_record_whose_tokens_are_all_in_the_bank_is_not_strange_at_all(ecg):
    model, x = small(ecg, bank=24 * 6)
    assert model(x).map.abs().max() < 1e-3


def test_a_bank_has_no_more_places_than_there_are_tokens(ecg):
    model, x = small(ecg, bank=5000)
    assert model.config.bank == len(model.bank.centres) == 24 * 6
    assert len(model.bank.centres.unique(dim=0)) == 24 * 6
    again = methods.build("knn", (12, 240), asdict(model.config)).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x).map, model(x).map)


def test_a_bank_of_more_places_than_tokens_are_drawn_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match="bank is 1000000 and most is 50000; no more centres"):
        methods.build("knn", (12, 240), {"encoder": "raw:40", "bank": 1_000_000})


def test_the_bank_does_not_care_at_which_time_a_token_was_seen(ecg):
    """Tokens in another order: the same distances in that order, but for what a position had."""
    model, x = small(ecg)
    model.encoder.get_buffer("centre").zero_()
    turned = x.unflatten(2, (6, 40)).flip(2).flatten(2)
    torch.testing.assert_close(
        model(turned).map.mean(2), model(x).map.mean(2), rtol=0.05, atol=1e-3
    )


def test_centres_stand_where_the_tokens_gather():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(4, 1, 40)) * 5
    x = np.repeat(places, 50, axis=0) + rng.normal(0, 0.1, (200, 1, 40))
    model = methods.build("knn", (1, 40), {"encoder": "raw:40", "bank": 4})
    torch.manual_seed(0)
    model.warm_up([torch.from_numpy(x.astype(np.float32))])
    gathered = model.encoder(torch.from_numpy(places.astype(np.float32)))[:, 0, 0]
    assert torch.cdist(gathered, model.bank.centres).amin(1).max() < 0.5


def test_an_untrained_encoder_gives_other_banks_for_other_seeds(ecg):
    x = torch.from_numpy(ecg(8, seed=0))
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = methods.build("knn", (12, 240), {"encoder": "mmae:40:16:2:2", "bank": 4}).eval()
        model.warm_up([x])
        found.append(model(x).map)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
