"""What is particular to HetNet: who teaches whom, how teachers fuse, what noise stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecgad import methods
from ecgad.methods.hetnet import Model, apart, distance, draw_boxes
from ecgad.parts import encoders, normality
from ecgad.parts.normality import Gaussians

SMALL = {"widths": (4, 5, 6), "stride": 2, "kernel": 3, "fused": 6, "bottleneck": 8, "context": 3}


def model(shape: tuple[int, ...] = (2, 80), **settings) -> Model:
    """By default 20 tokens of 4 samples of 2 leads beside levels of 40, 20 and 10 cells."""
    torch.manual_seed(0)
    chosen = SMALL | {"encoder": "raw:4", "components": 2} | settings
    made = methods.build("hetnet", shape, chosen)
    assert isinstance(made, Model)
    return made.eval()


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


# Distance of teacher and student


@pytest.mark.parametrize("grid", [(9,), (4, 5), (2, 3, 4)])
def test_a_student_that_equals_its_teacher_is_at_0_and_its_opposite_at_2(grid):
    e = [torch.randn(3, 7, *grid), torch.randn(3, 4, *grid)]
    assert torch.equal(distance(e[0], e[0]), torch.zeros(3, 1, *grid))
    assert apart(e, e) == 0
    torch.testing.assert_close(distance(e[0], -e[0]), torch.full((3, 1, *grid), 2.0))
    assert apart(e, [-f for f in e]).item() == pytest.approx(4)  # of two levels


def test_the_distance_is_1_minus_the_cosine_whatever_the_lengths():
    a, b = torch.randn(2, 7, 9), torch.randn(2, 7, 9)
    cosine = F.cosine_similarity(a, b, dim=1)[:, None]
    torch.testing.assert_close(distance(a, b), 1 - cosine)
    torch.testing.assert_close(distance(a, b * (torch.rand(2, 1, 9) + 0.1)), 1 - cosine)


def test_the_loss_compares_a_whole_record_at_once():
    """A cosine over all cells: loud ones weigh more than quiet ones."""
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    slow = [1 - F.cosine_similarity(x.flatten(), y.flatten(), dim=0) for x, y in zip(a, b)]  # noqa: B905
    torch.testing.assert_close(apart([a], [b]), torch.stack(slow).mean())


def test_the_map_peaks_where_a_student_differs(monkeypatch):
    net, x = model(), torch.randn(2, 2, 80)
    wrong = [f.clone() for f in net.teacher(x)]
    wrong[2][0, :, 7] *= -1  # cell 7 of 10: samples 56 to 63
    wrong[1][1, :, 3] *= -1  # cell 3 of 20: samples 12 to 15
    monkeypatch.setattr(net.reconstructing, "forward", lambda z: net.teacher(x))
    monkeypatch.setattr(net.denoising, "forward", lambda z: wrong)
    map = net(x).map
    assert map.shape == (2, 1, 80)
    assert 56 <= map[0].argmax() < 64
    assert 12 <= map[1].argmax() < 16
    assert map.max().item() == pytest.approx(2 / 2 * (1 - 0.5 / 8))  # half a sample off the middle
    assert (map[1, 0, 24:] == 0).all()


# Who learns from whom


def test_the_second_stage_moves_all_but_the_teachers():
    net = model().train()
    taught, learned = ({id(p) for p in stage.parameters} for stage in net.stages())
    assert taught == {id(p) for p in net.teacher.parameters()}
    net.loss(torch.randn(4, 2, 80)).backward()
    reached = {id(p) for p in net.parameters() if p.grad is not None and p.grad.any()}
    assert reached == learned
    assert not any(p.requires_grad for p in model(encoder="mmae:4:8:1:2").encoder.parameters())  # type: ignore


def test_the_student_that_denoises_teaches_the_other_nothing():
    x, both, alone = torch.randn(4, 2, 80), model(), model(noise="none")
    alone.load_state_dict({k: v for k, v in both.state_dict().items() if k in alone.state_dict()})
    for one in (both, alone):
        one.loss(x).backward()
    for mine, its in zip(both.reconstructing.parameters(), alone.reconstructing.parameters()):  # noqa: B905
        torch.testing.assert_close(mine.grad, its.grad)
    fused = [m.fuse[0].get_parameter("local.weight").grad for m in (both, alone)]
    assert not torch.allclose(*fused)  # what they share learns from both


def test_the_convolutional_teacher_learns_how_much_of_a_cell_was_damaged(monkeypatch):
    net, x = model(), torch.randn(3, 2, 80)
    mask = torch.zeros(3, 2, 80)
    mask[0, 1, 13:30], mask[2, :, 70:] = 1, 1
    monkeypatch.setattr("ecgad.methods.hetnet.pseudo_anomalies", lambda x: (x + mask, mask))
    slow = []
    for logits in net.teacher.damage(net.teacher(x + mask)):
        size = 80 // logits.shape[-1]
        hit = mask.amax(1).unflatten(1, (-1, size)).mean(2)
        p = logits[:, 0].sigmoid()
        slow.append(-(hit * p.log() + (1 - hit) * (1 - p).log()).mean())
    torch.testing.assert_close(net.teach(x), torch.stack(slow).mean())


def test_the_convolutional_teacher_is_given_leads_by_their_usual_size():
    x, unit = torch.randn(5, 2, 80), torch.tensor([[100.0], [20.0]])
    volts, other = model(), model()
    volts.warm_up(iter([x[:2], x[2:4]]))
    other.warm_up(iter([unit * x[:2], unit * x[2:4]]))
    for a, b in zip(volts.teacher(x), other.teacher(unit * x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(3, 80), (3, 8, 12)])
def test_the_size_of_a_channel_is_its_root_mean_square_over_records_however_batched(shape):
    one = torch.ones(1, *shape[1:])
    x = torch.stack([torch.cat([k * one, 4 * k * one, 0 * one]) for k in (1, 1, 1, 3)])
    net = model(shape, encoder="none")
    net.warm_up(iter([x[:3], x[3:]]))  # a last batch of one record
    wanted = 3**0.5 * torch.tensor([1, 4, 0.04])  # flat: a hundredth of the largest
    torch.testing.assert_close(net.teacher.get_buffer("size").flatten(), wanted)
    net.warm_up([0 * x])
    assert (net.teacher.get_buffer("size") == 1e-6).all()


# Fusion


def test_fusion_adds_local_and_global_and_their_weighted_sum():
    net, x = model(), torch.randn(3, 2, 80)
    f, g = net.teacher(x)[1], net.whole_record(x)
    fuse: Any = net.fuse[1]
    assert g is not None
    for i in range(3):
        c = torch.einsum("wd,dn->wn", fuse.local.weight[..., 0], f[i]) + fuse.local.bias[:, None]
        t = torch.einsum("wd,dn->wn", fuse.beside.weight[..., 0], g[i]) + fuse.beside.bias[:, None]
        logit = fuse.weigh(torch.cat([c.mean(1), t.mean(1)]))  # both have 20 cells
        w = logit[:6].exp() / (logit[:6].exp() + logit[6:].exp())
        wanted = c + t + w[:, None] * c + (1 - w)[:, None] * t
        torch.testing.assert_close(fuse(f, g)[i], wanted)


def test_tokens_of_the_second_teacher_stand_where_they_are_from():
    net = model((1, 8, 12), stride=1)  # tokens of 4 x 4: 2 x 3 of them
    x = torch.zeros(1, 1, 8, 12)
    x[0, 0, 5, 9] = 1.0
    g = net.whole_record(x)
    assert g is not None
    assert g[0].abs().sum(0).nonzero().tolist() == [[1, 2]]
    assert g[0, 4 * 1 + 1, 1, 2] == 1  # row 1, column 1 of its token


def test_without_a_second_teacher_only_the_first_one_speaks():
    one = model(encoder="none")
    assert one.encoder is None
    assert not [name for name, _ in one.named_parameters() if "beside" in name or "weigh." in name]
    f = torch.randn(2, 4, 40)
    fuse: Any = one.fuse[0]
    torch.testing.assert_close(fuse(f, None), fuse.local(f))


def test_for_pictures_both_teachers_are_pretrained(pictures):
    pytest.importorskip("efficientnet_lite_pytorch")
    x = torch.from_numpy(pictures(6, seed=0, size=64))
    net = model(x.shape[1:], encoder="lite0+lite2").train()
    net.warm_up([x[:3], x[3:]])
    assert net.config.widths == (24, 40, 112)
    assert net.encoder.spec == "lite2"  # type: ignore
    assert not any(p.requires_grad for t in (net.teacher, net.encoder) for p in t.parameters())  # type: ignore
    assert [stage.name for stage in net.stages()] == ["HetNet"]
    alone = encoders.build("lite0", x.shape[1:])
    seen: list[Tensor] = []
    for i in (2, 4, 10):
        alone.network._blocks[i].register_forward_hook(lambda m, a, y: seen.append(y))  # type: ignore
    alone.encode(x)
    levels = net.teacher(x)
    for level, stage, side in zip(levels, seen, (16, 8, 4), strict=True):
        assert level.shape[2:] == (side, side)
        flat, wanted = (f.movedim(1, 0).flatten(1) for f in (level, stage))  # (channels, cells)
        for ours, theirs in zip(flat, wanted, strict=True):  # each channel moved and stretched
            assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.9999
        assert level.mean().abs() < 0.1  # of normals
    net.loss(x).backward()
    odd = model((3, 50, 50), encoder="lite0+lite2")
    assert odd(x[:, :, :50, :50]).map.shape == (6, 1, 50, 50)


def test_a_first_teacher_without_levels_is_refused():
    with pytest.raises(ValueError, match="'raw:4' has no levels; teacher L is lite0 or lite2"):
        model(encoder="raw:4+raw:4")


def test_a_student_sees_four_seconds_around_each_cell():
    net = methods.build("hetnet", (1, 1000), {"encoder": "none"})
    assert isinstance(net, Model)
    z = torch.randn(1, 3 * net.config.fused, 63, requires_grad=True)
    net.denoising(z)[-1][0, :, 31].sum().backward()  # type: ignore
    assert z.grad is not None
    seen = z.grad[0].abs().sum(0).nonzero().flatten()
    cell_s = 4 * net.config.stride / 100
    assert (seen.max() - seen.min() + 1).item() * cell_s >= 4


# Noise


def test_gaussians_of_batches_are_those_of_all_cells_at_once():
    rows, kinds = clouds(900)
    found = fitted(rows)
    order = [0, 1] if found.mean[0, 0] < 5 else [1, 0]
    for k, kind in zip(order, kinds, strict=True):
        np.testing.assert_allclose(found.mean[k], kind.mean(0), atol=1e-4)
        np.testing.assert_allclose(found.covariance[k], np.cov(kind.T, ddof=0), atol=1e-3)
        assert found.count[k] == len(kind)


def test_noise_has_the_mean_and_the_covariance_of_the_cells_kind():
    rows, kinds = clouds(900)
    found = fitted(rows)
    first = torch.from_numpy(kinds[0][:1].astype(np.float32)).T[None].expand(1, 3, 200_000)
    drawn = found.draw(first, torch.tensor([0]), 2.0)[0].numpy()
    ridge = 0.01 * np.mean([np.cov(kind.T, ddof=0).trace() / 3 for kind in kinds])
    np.testing.assert_allclose(drawn.mean(1), kinds[0].mean(0), atol=0.02)
    wanted = 4 * (np.cov(kinds[0].T, ddof=0) + ridge * np.eye(3))
    np.testing.assert_allclose(np.cov(drawn), wanted, atol=0.02 * wanted.max())


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


@pytest.mark.parametrize("grid", [(63,), (12, 9)])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_boxes_hold_the_share_that_was_asked_for(grid, share):
    torch.manual_seed(0)
    boxes = torch.cat([draw_boxes(50, grid, share) for _ in range(8)])
    assert set(boxes.unique().tolist()) <= {0.0, 1.0}
    n = boxes[0].numel()
    assert (boxes.flatten(1).sum(1) == round(share * n)).all()


def test_boxes_are_of_several_sizes_and_anywhere():
    torch.manual_seed(0)
    boxes = torch.cat([draw_boxes(50, (63,), 0.2) for _ in range(20)])[:, 0]
    runs = [len(run) for row in boxes.int().tolist() for run in "".join(map(str, row)).split("0")]
    assert {1, 2, 3, 4} <= set(runs)
    assert (boxes.mean(0) - 0.2).abs().max() < 0.1


def test_noise_falls_on_the_same_time_of_all_levels_and_nowhere_else():
    net, x = model(replaced=0.3).train(), torch.randn(6, 2, 80)
    net.loss(x)  # fits the Gaussians
    e = net.teacher(x)
    changed = [(a != b).any(1) for a, b in zip(net.noisy(e), e, strict=True)]
    for level in changed[:2]:  # 40 and 20 cells over 10
        size = level.shape[1] // 10
        assert torch.equal(level, changed[2].repeat_interleave(size, 1))
    assert (changed[2].sum(1) == 3).all()


def test_without_noise_both_students_are_given_the_same():
    net, x = model(replaced=0.0), torch.randn(4, 2, 80)
    e = net.teacher(x)
    assert all(torch.equal(a, b) for a, b in zip(net.noisy(e), e, strict=True))


def test_noise_is_fitted_in_training_only():
    net = model()
    net.loss(torch.randn(4, 2, 80))
    assert all(g.count.sum() == 0 for g in net.noise)
    net.train().loss(torch.randn(4, 2, 80))
    assert [int(g.count.sum()) for g in net.noise] == [160, 80, 40]


def test_enough_cells_are_enough(monkeypatch):
    monkeypatch.setattr(normality, "MOST", 100)
    rows, _ = clouds(300)
    assert fitted(rows).count.sum() == 100  # the first of three parts, and no more
