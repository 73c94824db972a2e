"""A Gaussian of each kind of feature, fitted to batches, and noise that is drawn from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ecgad.parts import normality
from ecgad.parts.normality import Gaussians


def clouds(n: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Two far apart kinds of feature in 3 dimensions, (n, 3), shuffled, and each kind alone."""
    rng = np.random.default_rng(seed)
    mix = np.array([[1.0, 0, 0], [0.8, 0.5, 0], [-0.3, 0.4, 0.7]])
    kinds = [rng.normal(size=(n // 2, 3)) @ mix.T, 10 + rng.normal(size=(n - n // 2, 3)) @ mix]
    return rng.permutation(np.concatenate(kinds)).astype(np.float32), kinds


def fitted(rows: np.ndarray, white: bool = False, kinds: int = 2) -> Gaussians:
    torch.manual_seed(0)
    made = Gaussians(kinds, 3, white)
    for part in np.array_split(rows, 3):  # uneven parts, as batches
        made.follow(cells(part))
    return made


def cells(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows).T[None]  # (1, d, n)


def test_gaussians_of_batches_are_those_of_all_cells_at_once():
    rows, kinds = clouds(900)
    found = fitted(rows)
    order = [0, 1] if found.mean[0, 0] < 5 else [1, 0]
    for k, kind in zip(order, kinds, strict=True):
        np.testing.assert_allclose(found.mean[k], kind.mean(0), atol=1e-4)
        np.testing.assert_allclose(found.covariance[k], np.cov(kind.T, ddof=0), atol=1e-4)
        assert found.count[k] == len(kind)


def test_a_kind_that_no_cell_was_of_has_its_centre_as_mean():
    made = Gaussians(4, 3)
    made.follow(cells(clouds(2)[0]))  # two cells, so that centres 2 and 3 are 0 and 1 again
    assert made.count.tolist() == [1, 1, 0, 0]
    assert torch.equal(made.mean, made.bank.get_buffer("centres"))


def set_by_hand(white: bool = False) -> Gaussians:
    """Three kinds about (9, 9), (-9, 9) and (0, -9), the last of which no cell was of."""
    made = Gaussians(3, 2, white)
    places = torch.tensor([[9.0, 9.0], [-9.0, 9.0], [0.0, -9.0]])
    made.bank.get_buffer("centres").copy_(places)
    made.mean.copy_(places + 0.5)
    made.covariance[:2] = torch.tensor([[[4.0, 1.8], [1.8, 1.0]], [[0.3, -0.1], [-0.1, 0.5]]])
    made.count.copy_(torch.tensor([300.0, 100.0, 0.0]))
    return made


def test_the_root_is_of_the_covariance_and_a_hundredth_of_the_mean_variance_of_all_cells():
    made, root = set_by_hand(), set_by_hand().roots()
    level = (300 * (4.0 + 1.0) / 2 + 100 * (0.3 + 0.5) / 2) / 400
    ridge = (0.01 * level + 1e-6) * torch.eye(2)
    torch.testing.assert_close(root @ root.transpose(1, 2), made.covariance + ridge)
    assert torch.equal(root, root.tril())
    white = set_by_hand(white=True).roots()
    sizes = torch.tensor([2.5, 0.4, 0.0]).sqrt()
    torch.testing.assert_close(white, sizes[:, None, None] * torch.eye(2))


def test_noise_is_normal_with_the_mean_and_the_covariance_of_the_cell_s_kind():
    """Within 5 deviations of what is estimated, of 80,000 draws each."""
    torch.manual_seed(0)
    made, n = set_by_hand(), 40_000
    f = made.bank.get_buffer("centres")[[0, 1]].T[None].repeat(2, 1, n)  # (2, 2, 2 n)
    drawn = made.draw(f, torch.tensor([0, 1]), 1.7).unflatten(2, (n, 2))  # (2, 2, n, kinds)
    for k in (0, 1):
        z = drawn[..., k].transpose(0, 1).flatten(1) - made.mean[k][:, None]  # (2, 2 n)
        z = torch.linalg.solve(1.7 * made.roots()[k], z).double()
        assert z.mean(1).abs().max() < 5 / (2 * n) ** 0.5
        assert (z @ z.T / (2 * n) - torch.eye(2)).abs().max() < 5 * (1 / n) ** 0.5
        assert (z**4).mean(1).sub(3).abs().max() < 5 * (96 / (2 * n)) ** 0.5
    shift = torch.corrcoef(
        torch.cat([drawn[..., 0].flatten(0, 1), drawn[..., 0].flip(2).flatten(0, 1)])
    )
    assert shift[[0, 1, 0, 1], [2, 3, 4, 5]].abs().max() < 5 / n**0.5  # other records, other cells


def test_noise_of_strength_0_is_the_mean_of_the_kind_that_the_chosen_record_has():
    rows, kinds = clouds(900)
    found = fitted(rows)
    near = [torch.from_numpy(kind[:4].astype(np.float32)).T for kind in kinds]
    f = torch.stack(near)  # record 0 holds one kind, record 1 the other
    for chosen in ([0, 1], [1, 0]):
        drawn = found.draw(f, torch.tensor(chosen), 0.0)
        for i, k in enumerate(chosen):
            wanted = torch.from_numpy(kinds[k].mean(0).astype(np.float32))[:, None].expand(3, 4)
            torch.testing.assert_close(drawn[i], wanted, atol=1e-4, rtol=0)


def test_white_noise_is_as_loud_and_the_same_in_all_directions():
    rows, _ = clouds(900)
    found = fitted(rows, white=True, kinds=1)
    drawn = found.draw(torch.zeros(1, 3, 200_000), torch.tensor([0]), 1.0)[0].numpy()
    variance = np.cov(rows.T, ddof=0).trace() / 3
    np.testing.assert_allclose(np.cov(drawn), variance * np.eye(3), atol=0.02 * variance)
    np.testing.assert_allclose(drawn.mean(1), rows.mean(0), atol=0.05)


def test_enough_cells_are_enough(monkeypatch):
    monkeypatch.setattr(normality, "MOST", 100)
    rows, _ = clouds(300)
    assert fitted(rows).count.sum() == 100  # the first of three parts, and no more
