"""The control against scikit-learn's PCA, and against data whose components are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ecgad import methods


def trained(x: torch.Tensor, settings: dict) -> torch.nn.Module:
    model = methods.build("pca", tuple(x.shape[1:]), settings)
    model.warm_up(x.split(7))
    return model.eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth along the last axis, and not around zero."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cumsum(-1) + 3


def segments(x: torch.Tensor, width: int) -> np.ndarray:
    """(b, c, t) -> (b t / width, c width), by plain loops."""
    b, _, t = x.shape
    cut = [x[i, :, s : s + width].flatten() for i in range(b) for s in range(0, t, width)]
    return torch.stack(cut).double().numpy()


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99])
def test_the_error_is_that_of_scikit_learn_with_as_many_components(variance):
    normals, x = noise(40, 3, 24), noise(5, 3, 24, seed=1)
    model = trained(normals, {"segment": (8,), "variance": variance})
    pca = PCA(n_components=variance, svd_solver="full").fit(segments(normals, 8))
    rows = segments(x, 8)
    rebuilt = pca.inverse_transform(pca.transform(rows))
    expected = (rows - rebuilt) ** 2
    np.testing.assert_allclose(segments(model(x).map, 8), expected, rtol=1e-3, atol=1e-4)


def test_what_normals_can_be_is_no_error_and_the_rest_is_all_error_where_it_stands():
    wave = torch.tensor([1.0, -1.0, 1.0, -1.0])
    size = torch.randn(50, 1, 2, generator=torch.Generator().manual_seed(0))
    model = trained((size[..., None] * wave).flatten(2), {"segment": (4,)})
    x = torch.cat([7 * wave, 2 * wave + torch.tensor([0.0, 3.0, 3.0, 0.0])])[None, None]
    expected = [[[0, 0, 0, 0, 0, 9, 9, 0]]]  # the bump is orthogonal to the wave
    np.testing.assert_allclose(model(x).map, expected, atol=1e-3)


def test_pictures_are_cut_along_both_axes():
    x = noise(30, 1, 8, 8)
    model = trained(x, {"segment": (4, 4), "variance": 0.9})
    tiles = x.reshape(30, 2, 4, 2, 4).transpose(2, 3).reshape(-1, 16).double().numpy()
    pca = PCA(n_components=0.9, svd_solver="full").fit(tiles)
    error = ((tiles - pca.inverse_transform(pca.transform(tiles))) ** 2).mean()
    assert model(x).map.mean().item() == pytest.approx(error, rel=1e-3)


def test_how_the_records_are_batched_does_not_matter():
    x = noise(30, 2, 16)
    one, other = trained(x, {"segment": (8,)}), methods.build("pca", (2, 16), {"segment": (8,)})
    other.warm_up([x[:1], x[1:]])
    np.testing.assert_allclose(one(x).map, other(x).map, atol=1e-4)


def test_before_it_has_seen_normals_all_is_error():
    x = noise(2, 1, 8)
    assert torch.equal(methods.build("pca", (1, 8), {"segment": (4,)})(x).map, x.square())


def test_no_records_and_no_share_are_refused():
    with pytest.raises(ValueError, match="no records"):
        methods.build("pca", (1, 8), {"segment": (4,)}).warm_up([])
    with pytest.raises(ValueError, match="variance is 1.0"):
        methods.build("pca", (1, 8), {"segment": (4,), "variance": 1.0})
