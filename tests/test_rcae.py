"""What is particular to RcAE: recursion, the guarded detail, and the order of the steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ecgad.methods.rcae import Config, Model, fluctuation, slopes
from ecgad.train import Budget, fit

SMALL = {"width": 8, "kernel": 3, "detail_width": 6, "cross_width": 4, "envelope": 3}


def built(shape: tuple[int, ...] = (2, 40), **more: object) -> Model:
    """An untrained model whose every parameter has something to say."""
    torch.manual_seed(0)
    model = Model(shape, Config(**(SMALL | more)))  # type: ignore[arg-type]
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model.eval()


def block_means(x: np.ndarray, size: int) -> np.ndarray:
    """Every value replaced by the mean of its block of `size`, along the last axis."""
    out = np.empty_like(x)
    for start in range(0, x.shape[-1], size):
        out[..., start : start + size] = x[..., start : start + size].mean(-1, keepdims=True)
    return out


class Counting(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


@pytest.mark.parametrize("shape", [(2, 50), (1, 7), (3, 13, 22)])
def test_a_length_that_halving_does_not_divide_is_padded_evenly_with_its_edges(shape):
    model, x = built(shape), torch.randn(2, *shape)
    missing = [-n % 8 for n in shape[1:]]
    sides = [(0, 0), (0, 0), *((m // 2, m - m // 2) for m in missing)]
    assert np.array_equal(model.pad(x).numpy(), np.pad(x.numpy(), sides, mode="edge"))
    assert torch.equal(model.crop(model.pad(x)), x)
    assert model(x).map.shape == (2, 1, *shape[1:])


def test_depth_n_goes_down_n_times_and_up_n_times():
    """With means for E and repeats for D, depth n gives the means of blocks of 2^n."""
    model, x = built((2, 48)), torch.randn(3, 2, 48)
    model.encoder, model.decoder = nn.AvgPool1d(2), nn.Upsample(scale_factor=2)  # type: ignore
    for n, rough in enumerate(model.recurse(x), start=1):
        torch.testing.assert_close(rough, torch.from_numpy(block_means(x.numpy(), 2**n)))
        assert torch.equal(rough, model.round_trip(x, n))


def test_encoder_and_decoder_are_shared_by_all_depths():
    for depth in (1, 3, 5):
        first = Model((12, 1000), Config(depth=depth)).stages()[0]
        assert sum(p.numel() for p in first.parameters) == 71_448


def test_the_loss_is_taken_at_a_depth_that_is_drawn_evenly():
    model, x = built(), torch.randn(2, 2, 40)
    model.encoder, model.decoder = Counting(model.encoder), Counting(model.decoder)  # type: ignore
    torch.manual_seed(0)
    depths = []
    for _ in range(300):
        model.encoder.calls = model.decoder.calls = 0  # type: ignore
        with torch.no_grad():
            model.loss(x)
        assert model.encoder.calls == model.decoder.calls
        depths.append(model.encoder.calls)
    assert sorted(set(depths)) == [1, 2, 3]
    assert min(map(depths.count, (1, 2, 3))) > 75  # 100 expected, deviation 8


def test_slopes_are_first_differences_along_every_axis():
    ramp = torch.arange(6.0).expand(1, 1, 6)
    assert torch.equal(slopes(ramp), torch.ones(1, 1, 6))
    assert torch.equal(slopes(torch.full((1, 2, 6), 3.0)), torch.zeros(1, 2, 6))
    x = torch.randn(2, 3, 5, 7)
    down, across = slopes(x).chunk(2, dim=1)
    np.testing.assert_array_equal(down[:, :, 1:].numpy(), np.diff(x.numpy(), axis=2))
    np.testing.assert_array_equal(across[..., 1:].numpy(), np.diff(x.numpy(), axis=3))


def test_errors_of_signal_and_slope_weigh_by_their_deviations_over_the_normals():
    model, x = built((2, 40)), torch.randn(64, 2, 40) * torch.tensor([[[1.0], [20.0]]])
    model.warm_up(x.split(16))
    views = np.concatenate([x.numpy(), np.diff(x.numpy(), axis=2, prepend=np.nan)], axis=1)
    views[:, 2:, 0] = views[:, 2:, 1]
    deviations = views.transpose(1, 0, 2).reshape(4, -1).std(1)
    np.testing.assert_allclose(model.spread.flatten(), deviations, rtol=1e-4)
    assert model.distance(x, x) == 0
    offset = model.distance(x + torch.tensor([[1.0], [20.0]]), x)  # slopes do not change
    expected = (1 / deviations[0] + 20 / deviations[1]) / 4
    assert offset.item() == pytest.approx(expected, rel=1e-4)


def test_each_stage_leaves_what_was_learned_before_it():
    model, x = built(), torch.randn(4, 2, 40)
    for stage in model.stages():
        model.zero_grad()
        stage.loss(x).backward()
        own = {id(p) for p in stage.parameters}
        reached = {id(p) for p in model.parameters() if p.grad is not None}
        assert reached == own


def test_detail_starts_as_nothing():
    torch.manual_seed(0)
    model, x = Model((2, 40), Config(**SMALL)), torch.randn(3, 2, 40)  # type: ignore[arg-type]
    rough = model.recurse(x)
    assert all(torch.equal(f, r) for f, r in zip(model.restore(rough, x), rough, strict=True))


def test_detail_does_not_see_which_way_the_input_goes():
    """The input's own gradient, added up, would be the input: anomalies would come back whole."""
    x = torch.randn(3, 2, 40)
    guarded, open_ = built(), built(envelope=0)
    rough = [torch.randn(3, 2, 40)]
    assert torch.equal(guarded.restore(rough, x)[0], guarded.restore(rough, -x)[0])
    assert not torch.equal(guarded.restore(rough, x)[0], guarded.restore(rough, 2 * x)[0])
    assert not torch.equal(open_.restore(rough, x)[0], open_.restore(rough, -x)[0])


def test_fluctuation_adds_up_what_changes_from_step_to_step():
    x, fine = torch.randn(2, 3, 5), [torch.randn(2, 3, 5) for _ in range(3)]
    i, *d = (v.numpy() for v in (x, *fine))
    expected = np.abs(i - d[2]) + np.abs(d[2] - d[1]) + np.abs(d[1] - d[0])
    np.testing.assert_allclose(fluctuation(x, fine), expected, rtol=1e-5)
    model = built((3, 8))
    i = torch.randn(2, 3, 8)
    column = fluctuation(i, model.restore(model.recurse(i), i)).mean((1, 2))
    torch.testing.assert_close(model(i).whole[:, 0], column)


def test_the_reader_uses_the_order_of_the_steps():
    model, i = built(), torch.randn(2, 2, 40)
    fine = [torch.randn(2, 2, 40) for _ in range(3)]
    found, swapped = model.compare(fine, i), model.compare([fine[0], fine[2], fine[1]], i)
    assert 0 <= found.min() < found.max() <= 1
    assert (found - swapped).abs().max() > 1e-4


def test_a_volume_is_refused_with_its_grid():
    with pytest.raises(ValueError, match=r"grid \(8, 8, 8\).*slices"):
        Model((1, 8, 8, 8), Config())


# What the paper claims of a model that has learned


@pytest.fixture(scope="module")
def learned(ecg) -> Model:
    torch.manual_seed(0)
    config = Config(width=12, kernel=5, detail_width=12, cross_width=4, shares=(0.6, 0.38, 0.02))
    return fit(Model((12, 160), config), ecg(128, seed=0, t=160), seed=0,
               budget=Budget(250, 16, 5e-3))  # type: ignore[return-value]  # fmt: skip


@pytest.fixture(scope="module")
def hurt(ecg) -> tuple[Tensor, Tensor, slice]:
    """Records, the same with the samples of a stretch in another order, and where it is."""
    x, where = ecg(32, seed=1, t=160), slice(50, 110)
    hurt = x.copy()
    hurt[..., where] = x[..., np.random.default_rng(0).permutation(np.arange(50, 110))]
    return torch.from_numpy(x), torch.from_numpy(hurt), where


@torch.no_grad()
def test_later_steps_suppress_more_and_keep_less(learned, hurt):
    x, damaged, where = hurt
    to_healthy = [(r - x)[..., where].abs().mean() for r in learned.recurse(damaged)]
    of_normals = [(r - x).abs().mean() for r in learned.recurse(x)]
    assert to_healthy[2] < to_healthy[0]
    assert of_normals[0] < of_normals[2]


@torch.no_grad()
def test_detail_restores_normals_and_does_not_bring_the_anomaly_back(learned, hurt):
    x, damaged, where = hurt
    rough, fine = learned.recurse(x), learned.restore(learned.recurse(x), x)
    assert learned.distance(fine[2], x) < learned.distance(rough[2], x)
    rough = learned.recurse(damaged)
    fine = learned.restore(rough, damaged)
    before, after = ((f[2] - damaged)[..., where].norm() for f in (rough, fine))
    assert after > before  # from I' itself the DPN learns to come nearer: 21.5 from 22.5, not 28.3
