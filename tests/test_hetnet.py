"""What is particular to HetNet: who teaches whom, how teachers fuse, what noise stands for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad import methods
from ecgad.methods.hetnet import Model, apart, distance, draw_boxes
from ecgad.parts import encoders

SMALL = {"widths": (4, 5, 6), "stride": 2, "kernel": 3, "fused": 6, "bottleneck": 8, "context": 3}


def model(shape: tuple[int, ...] = (2, 80), **settings) -> Model:
    """By default 20 tokens of 4 samples of 2 leads beside levels of 40, 20 and 10 cells."""
    torch.manual_seed(0)
    chosen = SMALL | {"encoder": "raw:4", "components": 2} | settings
    made = methods.build("hetnet", shape, chosen)
    assert isinstance(made, Model)
    return made.eval()


def fused_by_hand(net: Model, e: list[Tensor], g: Tensor | None) -> Tensor:
    """z of three levels of signals: each brought to the last one's grid by halving it."""
    found = []
    for k in range(3):
        y, level = net.fuse[k](e[k], g), net.level[k]
        for i in range(2 - k):
            weight, bias = (level.get_parameter(f"{2 * i}.{name}") for name in ("weight", "bias"))
            y = F.gelu(F.conv1d(y, weight, bias, stride=2, padding=1))
        found.append(y)
    return torch.cat(found, 1)


def rebuilt_by_hand(student: Any, z: Tensor) -> list[Tensor]:
    """OCE and decoder for z of 10 cells: 5 cells of 8 channels, then levels of 10, 20, 40 cells."""
    y = F.gelu(F.conv1d(z, student.squeeze.weight, student.squeeze.bias, stride=2, padding=1))
    around = F.conv1d(y, student.around.weight, student.around.bias, padding=1, groups=8)
    y = y + F.conv1d(F.gelu(around), student.mix.weight, student.mix.bias)
    found = []
    for up, out in list(zip(student.up, student.out, strict=True))[::-1]:
        y = F.gelu(F.conv1d(y.repeat_interleave(2, 2), up.weight, up.bias, padding=1))
        found.append(F.conv1d(y, out.weight, out.bias))
    return found[::-1]


def levels_apart(e: list[Tensor], s: list[Tensor]) -> Tensor:
    """Of each record and level 1 - cos, the sum over levels, the mean over records."""
    records = range(len(e[0]))
    each = [
        1 - torch.cosine_similarity(a[i].ravel(), b[i].ravel(), 0)
        for i in records
        for a, b in zip(e, s, strict=True)
    ]
    return torch.stack(each).sum() / len(records)


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


def test_the_map_is_the_mean_over_students_of_their_distances_at_all_levels():
    both, alone, x = model(), model(noise="none"), torch.randn(3, 2, 80)
    for level in both.teacher.levels:
        nn.init.constant_(level.get_parameter("2.bias"), 3.0)  # so that no feature is all zeros
    alone.load_state_dict({k: v for k, v in both.state_dict().items() if k in alone.state_dict()})
    e = both.teacher(x)
    z = fused_by_hand(both, e, both.whole_record(x))
    sums = []
    for student in (both.reconstructing, both.denoising):
        s = rebuilt_by_hand(student, z)
        at = [1 - torch.cosine_similarity(a, b, 1)[:, None] for a, b in zip(e, s, strict=True)]
        sums.append(sum(F.interpolate(level, 80, mode="linear") for level in at))
    torch.testing.assert_close(both(x).map, (sums[0] + sums[1]) / 2)
    torch.testing.assert_close(alone(x).map, sums[0])


# Who learns from whom


def test_one_student_rebuilds_the_teacher_and_the_other_from_noise_what_the_first_rebuilt():
    """The value, and whom it moves: the first student's answer is a constant to the second."""
    net, x = model(), torch.randn(3, 2, 80)
    net.noisy = lambda e: [1.5 * f.roll(1, -1) for f in e]  # type: ignore
    e, g = [f.detach() for f in net.teacher(x)], net.whole_record(x)
    first = rebuilt_by_hand(net.reconstructing, fused_by_hand(net, e, g))
    second = rebuilt_by_hand(net.denoising, fused_by_hand(net, net.noisy(e), g))
    wanted = levels_apart(e, first) + levels_apart([f.detach() for f in first], second)
    torch.testing.assert_close(net.loss(x), wanted)
    learned = net.stages()[1].parameters
    slopes = (torch.autograd.grad(loss, learned) for loss in (net.loss(x), wanted))
    for mine, its in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, its)


def test_the_second_stage_moves_all_but_the_teachers():
    net = model().train()
    taught, learned = ({id(p) for p in stage.parameters} for stage in net.stages())
    assert taught == {id(p) for p in net.teacher.parameters()}
    net.loss(torch.randn(4, 2, 80)).backward()
    reached = {id(p) for p in net.parameters() if p.grad is not None and p.grad.any()}
    assert reached == learned
    assert not any(p.requires_grad for p in model(encoder="mmae:4:8:1:2").encoder.parameters())  # type: ignore


def test_the_first_share_of_the_budget_is_the_teacher_s():
    stages = model(shares=(0.2, 0.8)).stages()
    assert [(s.name, s.share) for s in stages] == [("teacher", 0.2), ("HetNet", 0.8)]


def test_normals_standardise_both_teachers():
    net, x = model(), 3 + 2 * torch.randn(50, 2, 80)
    net.warm_up(iter(x.split(20)))
    g = net.whole_record(x)
    assert g is not None
    assert g.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(g.square().mean((0, 2)), torch.ones(8), rtol=0.01, atol=0)
    torch.testing.assert_close(net.teacher.get_buffer("size")[:, 0], x.square().mean((0, 2)).sqrt())


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


def test_the_convolutional_teacher_s_levels_are_two_convolutions_each_and_never_below_0():
    net, y = model(kernel=5), torch.randn(3, 2, 80)
    x = y * net.teacher.get_buffer("size").copy_(torch.tensor([[3.0], [0.2]]))
    for level, found, stride in zip(net.teacher.levels, net.teacher(x), (2, 2, 2), strict=True):
        one, two = level[0], level[2]
        y = F.conv1d(y, one.weight, one.bias, stride, padding=2).clamp(min=0)
        y = F.conv1d(y, two.weight, two.bias, padding=2).clamp(min=0)
        torch.testing.assert_close(found, y)


def test_a_quiet_cell_s_feature_has_a_direction_of_its_own():
    """That of the biases, which lie anywhere in 0 .. 0.5 before learning."""
    teacher: Any = model(widths=(200, 200, 200), encoder="none").teacher
    for level in teacher.levels:
        assert (level[0].bias == 0).all()
        assert 0 <= level[2].bias.min() < 0.05 < 0.45 < level[2].bias.max() <= 0.5
        assert level[2].bias.mean().item() == pytest.approx(0.25, abs=0.06)
    silent, quiet = teacher(torch.zeros(1, 2, 80)), teacher(1e-3 * torch.randn(1, 2, 80))
    assert max(distance(a, b).max() for a, b in zip(silent, quiet, strict=True)) < 1e-4


def test_weights_begin_so_that_no_layer_makes_a_signal_louder_or_quieter():
    net = model((12, 200), widths=(64, 64, 64), fused=64, bottleneck=48, context=13)
    checked = 0
    for name, module in net.named_modules():
        weight: Any = getattr(module, "weight", torch.zeros(0))
        if weight.numel() > 500:
            checked += 1
            gain = weight.std().item() * (weight[0].numel() / 2) ** 0.5
            assert gain == pytest.approx(1, abs=0.15), name
            assert (module.get_parameter("bias") == 0).all() or name.startswith("teacher.levels")
    assert checked > 30


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
        mean, (one, _, two) = torch.cat([c.mean(1), t.mean(1)]), fuse.weigh  # both have 20 cells
        logit = two.weight @ F.gelu(one.weight @ mean + one.bias) + two.bias
        w = logit[:6].exp() / (logit[:6].exp() + logit[6:].exp())
        wanted = c + t + w[:, None] * c + (1 - w)[:, None] * t
        torch.testing.assert_close(fuse(f, g)[i], wanted)


def test_all_layers_of_the_second_teacher_speak():
    net, x = model(encoder="mmae:4:8:3:2"), torch.randn(2, 2, 80)
    tokens, g = net.encoder(x), net.whole_record(x)  # type: ignore
    assert g is not None
    assert g.shape == (2, 2 * 8, 20)
    for layer in (0, 1):
        assert torch.equal(g[:, 8 * layer : 8 * layer + 8].transpose(1, 2), tokens[:, layer])


def test_tokens_of_the_second_teacher_are_drawn_out_linearly_to_a_level_s_grid():
    net = model()
    f, g, fuse = torch.zeros(1, 4, 40), torch.randn(1, 8, 20), net.fuse[0]
    nn.init.zeros_(fuse.get_parameter("local.weight"))
    nn.init.zeros_(fuse.get_parameter("weigh.2.weight"))  # each of the two weighs a half
    t = F.interpolate(F.conv1d(g, fuse.get_parameter("beside.weight")), 40, mode="linear")
    torch.testing.assert_close(fuse(f, g), 1.5 * t)


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


@pytest.mark.parametrize("grid", [(63,), (12, 9)])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_boxes_hold_the_share_that_was_asked_for(grid, share):
    torch.manual_seed(0)
    boxes = torch.cat([draw_boxes(50, grid, share) for _ in range(8)])
    assert set(boxes.unique().tolist()) <= {0.0, 1.0}
    n = boxes[0].numel()
    assert (boxes.flatten(1).sum(1) == round(share * n)).all()


def test_boxes_of_a_batch_have_one_size_of_1_to_4_cells_each_as_often_and_lie_anywhere():
    """12 of 60 cells are whole boxes of any size, so that runs of them are multiples of it."""
    torch.manual_seed(0)
    sizes, share = [], torch.zeros(60)
    for _ in range(200):
        boxes = draw_boxes(50, (60,), 0.2)[:, 0].int()
        rows = ["".join(map(str, row)) for row in boxes.tolist()]
        assert len(set(rows)) > 40
        sizes.append(math.gcd(*(len(run) for row in rows for run in row.split("0") if run)))
        share += boxes.float().mean(0) / 200
    assert all(20 < sizes.count(size) < 80 for size in (1, 2, 3, 4))  # 50 +- 6 each
    assert len(set(sizes)) == 4
    assert (share - 0.2).abs().max() < 0.02


def test_noise_falls_on_the_same_time_of_all_levels_and_nowhere_else():
    net, x = model(replaced=0.3).train(), torch.randn(6, 2, 80)
    net.loss(x)  # fits the Gaussians
    e = net.teacher(x)
    changed = [(a != b).any(1) for a, b in zip(net.noisy(e), e, strict=True)]
    for level in changed[:2]:  # 40 and 20 cells over 10
        size = level.shape[1] // 10
        assert torch.equal(level, changed[2].repeat_interleave(size, 1))
    assert (changed[2].sum(1) == 3).all()


def one_kind_a_record(b: int, **settings) -> tuple[Model, list[Tensor]]:
    """Records of nothing but 50 and of nothing but -50 in turn, with kinds about these."""
    net = model(**settings)
    sign = torch.tensor([1.0, -1.0]).repeat(b // 2)
    e = [50 * sign[:, None, None] * torch.ones(w, n) for w, n in ((4, 40), (5, 20), (6, 10))]
    for made, f in zip(net.noise, e, strict=True):
        made.bank.get_buffer("centres").copy_(f[:2, :, 0])
        made.mean.copy_(f[:2, :, 0])
        made.covariance.copy_(torch.eye(f.shape[1]).expand_as(made.covariance))
        made.count.fill_(100)
    return net, e


def test_half_of_the_records_have_noise_of_the_kinds_of_another_record_at_all_levels():
    net, e = one_kind_a_record(4000, replaced=1.0, strength=0.0)
    noisy = net.noisy(e)
    changed = torch.stack(
        [(f != own).flatten(1).float().mean(1) for f, own in zip(noisy, e, strict=True)]
    )
    assert set(changed.unique().tolist()) == {0.0, 1.0}
    assert (changed == changed[0]).all()
    assert changed[0].mean().item() == pytest.approx(0.5, abs=5 * 0.5 / 4000**0.5)


def test_noise_is_as_strong_as_the_settings_say():
    net, e = one_kind_a_record(400, replaced=1.0, strength=1.7)
    for f in net.noisy(e):
        size = (f - 50 * f.sign()).std()
        assert size.item() == pytest.approx(1.7 * 1.01**0.5, rel=0.05)
    assert model().config.strength == 1  # the paper's, which has no s


@pytest.mark.parametrize(
    ("noise", "kinds", "white"), [("components", 7, False), ("white", 1, True)]
)
def test_white_noise_is_of_one_kind_and_that_of_components_of_as_many(noise, kinds, white):
    net = model(noise=noise, components=7)
    assert [(len(g.mean), g.mean.shape[1], g.white) for g in net.noise] == [
        (kinds, width, white) for width in (4, 5, 6)
    ]
    assert not model(noise="none").noise


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": (0.0, 1.0)}, r"shares are \(0.0, 1.0\); two positive"),
        ({"shares": (1.0,)}, r"shares are \(1.0,\); two positive"),
        ({"context": 4}, "kernel is 3, context 4; each is odd"),
        ({"widths": (4, 0)}, r"widths are \(4, 0\); one positive"),
        ({"strength": -0.1}, "replaced is 0.2, strength -0.1"),
        ({"replaced": -0.1}, "replaced is -0.1, strength 1.0"),
        ({"bottleneck": 0}, "bottleneck is 0; at least 1"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        model(**settings)
