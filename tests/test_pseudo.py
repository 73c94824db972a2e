"""parts.synthesis.pseudo: damage for training, and where it is."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from ecgad.parts.synthesis import pseudo
from ecgad.parts.synthesis.pseudo import pseudo_anomalies

TIME = torch.arange(400, dtype=torch.float64)
SWING = 3 * (1 - 2 * (TIME % 2)).expand(1000, 4, -1)  # 1000 samples of deviation 3, mean 0
RATIOS = torch.tensor([-2, -1, -0.6, 1, 2], dtype=torch.float64)
KINDS = [*pseudo.LOCAL, *pseudo.RECORDWIDE]


@pytest.fixture(scope="module", params=["1 lead", "12 leads", "pictures"])
def x(request: pytest.FixtureRequest, ecg: Callable, pictures: Callable) -> Tensor:
    if request.param == "pictures":
        return torch.from_numpy(pictures(24, seed=0))
    made = ecg(24, seed=0, t=600, leads=int(request.param.split()[0]), noise=0.0)
    return torch.from_numpy(made / made.std())


def test_outside_the_mask_next_to_nothing_changes_and_inside_something_does(x: Tensor):
    torch.manual_seed(0)
    for _ in range(4):
        damaged, mask = pseudo_anomalies(x)
        deviations = (damaged - x).abs() / x.std(tuple(range(2, x.ndim)), keepdim=True)
        harmed = mask.flatten(1).any(1)
        assert ((deviations > 0.0501) <= mask.bool())[harmed].all()
        assert ((deviations < 0.0499) <= ~mask.bool()).all()


def test_a_quarter_of_the_samples_are_nuisances_that_change_but_are_not_marked(x: Tensor):
    torch.manual_seed(0)
    crowd = x.repeat(10, *[1] * (x.ndim - 1))
    damaged, mask = pseudo_anomalies(crowd)
    unmarked = ~mask.flatten(1).any(1)
    assert 0.18 < unmarked.float().mean() < 0.4  # and some edits that come out as nothing
    assert (damaged != crowd).flatten(1).any(1).float().mean() > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_most_samples_and_by_a_sound_amount(x: Tensor, kind: Callable):
    torch.manual_seed(1)
    change = pseudo.lawful(kind(x, pseudo.elsewhere(x)), x)
    largest = (change.abs() / x.std(tuple(range(2, x.ndim)), keepdim=True)).flatten(1).amax(1)
    assert (largest > 0.1).float().mean() > 0.6
    assert largest.max() < 40


def test_local_kinds_alone_are_drawn_on_request(x: Tensor, monkeypatch: pytest.MonkeyPatch):
    def no(x: Tensor, source: Tensor) -> Tensor:
        raise AssertionError("a kind over the whole record was drawn")

    monkeypatch.setattr(pseudo, "RECORDWIDE", [no])
    torch.manual_seed(0)
    pseudo_anomalies(x, recordwide=False)
    with pytest.raises(AssertionError, match="whole record"):
        pseudo_anomalies(x)


def test_einthoven_holds_in_every_damaged_record_whatever_the_scale_of_its_leads(ecg: Callable):
    made = torch.from_numpy(ecg(32, seed=3, t=600, noise=0.0))
    scale = made.std(2, keepdim=True)
    torch.manual_seed(0)
    damaged = pseudo_anomalies(made / scale)[0] * scale
    one, two, three, avr, avl, avf = damaged[:, :6].unbind(1)
    for broken in (three - two + one, avr + (one + two) / 2, avl - one + two / 2, avf + avr + avl):
        assert broken.abs().max() < 1e-4  # mV


def test_a_blank_lead_stays_blank_whatever_the_others_hold(ecg: Callable):
    x = torch.from_numpy(ecg(32, seed=0, noise=0.01))
    x[::2, 7] = 0
    torch.manual_seed(0)
    damaged, mask = pseudo_anomalies(x)
    assert damaged[::2, 7].abs().max() < 1e-5
    assert not mask[::2, 7].any()
    assert mask[1::2, 7].any()


def test_seeds_of_torch_decide_and_nothing_else(x: Tensor):
    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        return pseudo_anomalies(x)

    np.random.seed(0)  # noqa: NPY002 - must not matter
    first = drawn(0)
    torch.testing.assert_close(drawn(0), first, rtol=0, atol=0)
    assert (drawn(1)[0] != first[0]).any()


def test_the_input_itself_is_left_alone(x: Tensor):
    before = x.clone()
    pseudo_anomalies(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    assert not pseudo_anomalies(before.requires_grad_())[0].requires_grad


def test_one_record_alone_is_damaged_with_pieces_of_itself(x: Tensor):
    torch.manual_seed(0)
    masks = [pseudo_anomalies(x[:1])[1].mean().item() for _ in range(40)]
    assert sum(m > 0 for m in masks) > 20
    source = pseudo.elsewhere(x[:1])
    assert torch.isin(source, x[:1]).all()
    assert (source != x[:1]).any()


# What each edit does and draws, exactly


def assert_drawn_between(found: Tensor, low: float, high: float, slack: float = 0.0):
    """None is outside, and of 1000 even draws some lie in the first and in the last fiftieth."""
    edge = (0.02 + slack) * (high - low)
    assert low - slack * (high - low) <= found.min() < low + edge
    assert high - edge < found.max() <= high + slack * (high - low)


def assert_some_channels(hit: Tensor):
    """Of 1000 samples a half to all of the four channels, never none."""
    assert hit.any(1).all()
    assert abs(hit.double().mean() - 0.753) < 0.05  # 3 / 4, and one where there would be none
    assert abs(hit.double().sum(1).var() - 0.95) < 0.15  # 0.72 if each channel had its own chance


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Which bounds boxes were asked for; each is the same half of the axis, with a soft value."""
    asked = []

    def box(x: Tensor, low: float, high: float) -> pseudo._Box:
        asked.append((low, high))
        soft = torch.full_like(x[:, :1], 0.5 if high > 0.1 else 0.25)
        return pseudo._Box(soft, [2 * u - 0.3 for u in pseudo._coordinates(x)], soft[..., :1] * 1)

    torch.manual_seed(0)
    monkeypatch.setattr(pseudo, "_box", box)
    return asked


def test_a_box_holds_its_share_of_the_grid_anywhere_with_ramps_of_a_tenth():
    torch.manual_seed(0)
    for grid in ((1000,), (40, 30)):
        box = pseudo._box(torch.zeros(1000, 1, *grid, dtype=torch.float64), 0.02, 0.15)
        soft = torch.ones(1000, 1, *grid, dtype=torch.float64)
        for axis, (n, along) in enumerate(zip(grid, box.along, strict=True)):
            rows = along.movedim(axis + 2, -1).reshape(1000, n)
            length = (n - 1) / n / (rows[:, -1] - rows[:, 0])
            start = 0.5 / n - rows[:, 0] * length
            assert_drawn_between(length ** len(grid), 0.02, 0.15, 1e-9)
            assert_drawn_between(start / (1 - length), 0, 1, 1e-9)
            torch.testing.assert_close(box.length.flatten(), length)
            shape = [1000, 1, *[n if a == axis else 1 for a in range(len(grid))]]
            soft = soft * (torch.minimum(rows, 1 - rows) * 10).clamp(0, 1).reshape(shape)
        torch.testing.assert_close(box.soft, soft)


def test_a_replacement_is_the_source_or_a_level_or_a_peak(boxes):
    source = 100 + TIME.expand_as(SWING)
    change = pseudo.replace(SWING, source)
    assert boxes == [(0.015, 0.15), (3 / 400, 3 / 400)]
    hit = change.abs().amax(2) > 0
    assert_some_channels(hit)
    fill = change / 0.7 + SWING * 0.5
    by_source = hit & (fill.abs().amax(2) > 30)
    sign = fill.sign()[..., 0]
    torch.testing.assert_close(fill[by_source], 0.5 * source[by_source] * sign[by_source][:, None])
    assert abs(sign[by_source].mean()) < 0.25
    peak = (change / 0.7 + SWING * 0.25).std(2) < 1e-9
    level = (fill.std(2) < 1e-9) & ~by_source
    shares = [(rows & hit).any(1).double().mean() for rows in (by_source, level, peak)]
    assert shares == pytest.approx([5 / 8, 1.5 / 8, 1.5 / 8], abs=0.08)  # AnomalyBERT's
    levels = fill[level & hit][:, 0] / 0.5 / SWING[0, 0].std()
    assert -3 <= levels.min() < -2.7
    assert 2.7 < levels.max() <= 3
    several = (level & hit).sum(1) > 1
    assert fill[several][:, :, 0].std(1).median() > 0.5  # of each channel its own
    boxes.clear()
    pseudo.replace(torch.zeros(1, 1, 30, 20), torch.zeros(1, 1, 30, 20))
    assert boxes[1] == ((3 / 30) ** 2, (3 / 30) ** 2)


def test_a_paste_is_the_source_with_a_trend_of_up_to_2_deviations_on_each_axis(boxes):
    for grid in ((400,), (20, 20)):
        x = SWING.reshape(1000, 4, *grid)
        source = torch.randn_like(x)
        change = pseudo.paste(x, source)
        hit = change.flatten(2).abs().amax(2) > 0
        assert_some_channels(hit)
        trend = (change / 0.5 + x - source)[torch.arange(1000), hit.long().argmax(1)]
        trend = trend / SWING[0, 0].std()
        columns = [(2 * u - 0.8).expand(1, 1, *grid).flatten() for u in pseudo._coordinates(x)]
        basis = torch.stack(columns, 1).double()
        sizes = torch.linalg.lstsq(basis, trend.flatten(1).mT).solution  # (axes, b)
        torch.testing.assert_close((basis @ sizes).mT, trend.flatten(1))
        for size in sizes:
            assert_drawn_between(size, -2, 2, 1e-9)
        assert len(sizes) == 1 or abs(torch.corrcoef(sizes)[0, 1]) < 0.2
    assert boxes == [(0.02, 0.15)] * 2


def test_a_warp_is_a_shift_that_swells_and_fades_and_never_turns_back(boxes):
    ramp = torch.zeros(1000, 1, 400, dtype=torch.float64) + TIME
    by = pseudo.warp(ramp, ramp)[:, 0]
    u = (2 * (TIME + 0.5) / 400 - 0.3).clamp(0, 1)
    steepest = 0.5 * 400 / np.pi
    share = by[:, 160] / (0.5 * (1 - torch.cos(2 * np.pi * u[160])) * steepest)
    expected = 0.5 * (1 - torch.cos(2 * np.pi * u)) * steepest * share[:, None]
    torch.testing.assert_close(by, expected.clamp(-TIME, 399 - TIME), atol=1e-3, rtol=1e-6)
    assert_drawn_between(share.abs(), 0.5, 0.95, 1e-6)
    assert abs(share.sign().mean()) < 0.2
    assert boxes == [(0.03, 0.15)]
    grid, moved = torch.stack(torch.meshgrid(TIME[:40], TIME[:100], indexing="ij"))[None], []
    for _ in range(40):  # along one axis, either, by as much as its length allows
        by = pseudo.warp(grid, grid).abs().amax((0, 2, 3)) * np.pi / torch.tensor([20, 50])
        moved.append(int(by.argmax()))
        assert by.min() == 0
        assert 0.47 < by.max() < 0.96
    assert set(moved) == {0, 1}


def test_a_blend_lets_the_source_through_where_the_noise_is_high(monkeypatch):
    cells, u = set(), (TIME + 0.5) / 400

    def rising(x: Tensor, count: int) -> Tensor:
        cells.add(count)
        return (5 * u - 2) * torch.linspace(0.1, 9, len(x), dtype=x.dtype)[:, None, None]

    monkeypatch.setattr(pseudo, "perlin", rising)
    torch.manual_seed(0)
    through = pseudo.blend(SWING, 7 - SWING) / (7 - 2 * SWING)
    assert_some_channels(through.amax(2) > 0)
    through = through.amax(1)
    weight = through[:, -1]
    assert_drawn_between(weight, 0.2, 1)
    soft = through / weight[:, None]
    rows = [np.polyfit(u[(r > 0) & (r < 0.999)], r[(r > 0) & (r < 0.999)], 1) for r in soft]
    slope, level = torch.tensor(np.array(rows)).T
    torch.testing.assert_close(slope * 399 / 400, torch.full_like(slope, 10.0))
    assert_drawn_between(-level / slope, 0.5, 0.8, 0.01)
    for _ in range(200):
        pseudo.blend(SWING[:1], SWING[:1])
    assert cells == {2, 4, 8, 16, 32}


def test_a_band_is_the_difference_of_two_blurs_by_one_of_five_factors(monkeypatch):
    sigmas = []
    monkeypatch.setattr(pseudo, "blur", lambda x, sigma: sigmas.append(sigma) or x / sigma)
    torch.manual_seed(0)
    change = pseudo.band(SWING, SWING)
    fine, coarse = sigmas
    assert_some_channels(change.abs().amax(2) > 0)
    factor = (change / SWING)[..., 0] / (1 / fine - 1 / coarse)
    factor = factor.sum(1) / (factor != 0).sum(1)
    nearest = (factor[:, None] - RATIOS).abs().min(1)
    assert nearest.values.max() < 1e-5
    assert nearest.indices.bincount().tolist() == pytest.approx([200] * 5, abs=70)
    for _ in range(999):
        pseudo.band(SWING[:1], SWING[:1])
    fine, coarse = torch.tensor(sigmas).reshape(-1, 2).T
    assert_drawn_between(fine.log(), np.log(0.5), np.log(2.5), 1e-6)
    assert_drawn_between(coarse / fine, 3, 8, 1e-6)
    assert float(fine.median()) == pytest.approx((0.5 * 2.5) ** 0.5, rel=0.15)  # a ratio
    sigmas.clear()
    for _ in range(1000):
        change = pseudo.smooth(SWING[:1], SWING[:1])
        torch.testing.assert_close(SWING[:1] + change, SWING[:1] / sigmas[-1])
    assert_drawn_between(torch.tensor(sigmas), 1.2, 3, 1e-6)


@pytest.mark.parametrize(
    ("grid", "point"), [((300,), 1.0), ((2000,), 2.0), ((20, 1500), 1.5), ((1500, 20), 1.5)]
)
def test_a_point_is_a_thousandth_of_the_longest_axis_or_one(grid, point):
    assert pseudo._point(torch.zeros(1, 1, *grid)) == point


def test_an_offset_lies_6_to_25_points_behind_the_steepest_tenth():
    n = 2000  # a point is 2
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, n, generator=draw, dtype=torch.float64).cumsum(2).expand(400, -1, -1)
    steps = np.abs(np.diff(x[0].numpy(), prepend=x[0, :, :1].numpy())).sum(0)
    slope = gaussian_filter1d(steps, 4, mode="nearest", truncate=3)
    steep = slope > np.sort(slope)[1799]
    behind = [not steep[t] and steep[max(t - 50, 0) : max(t - 11, 0)].any() for t in range(n)]
    shape = gaussian_filter1d(np.array(behind, float), 4, mode="nearest", truncate=3)
    torch.manual_seed(0)
    change = pseudo.offset(x, x) / x.std(2, keepdim=True)
    size = change[..., shape.argmax()] / shape.max()
    torch.testing.assert_close(change, size[..., None] * torch.from_numpy(shape))
    assert_some_channels(size != 0)
    size = size.sum(1) / (size != 0).sum(1)
    assert_drawn_between(size.abs(), 0.4, 1.5, 0.03)
    assert abs(size.sign().mean()) < 0.3
    tall = x[:2, :1].reshape(2, 1, 50, 40)
    changes = [pseudo.offset(tall, tall)[0, 0] for _ in range(30)]
    along = {bool(c.diff(dim=0).abs().sum() > c.diff(dim=1).abs().sum()) for c in changes}
    assert along == {True, False}  # behind on either axis


def test_a_nuisance_is_a_gain_a_slow_wave_in_each_channel_and_a_little_noise():
    torch.manual_seed(0)
    deviation = float(SWING[0, 0].std())
    added = pseudo.nuisance(SWING, SWING)
    gain = (added * SWING).mean((1, 2)) / 9
    added = (added - gain[:, None, None] * SWING) / deviation
    assert_drawn_between(gain, -0.1, 0.1, 0.03)
    rough = added.diff(n=3, dim=2).std((1, 2)) / 20**0.5
    assert_drawn_between(rough, 0, 0.05, 0.15)
    quiet = added[rough < 0.01].flatten(0, 1)
    wave = quiet.unflatten(1, (40, 10)).mean(2)
    assert 0.19 < wave.abs().amax(1).max() < 0.21
    turns = (wave.sign().diff(dim=1) != 0).sum(1)[wave.abs().amax(1) > 0.05] / 2  # of 10 s
    assert turns.median() == pytest.approx(2, abs=0.5)
    assert turns.max() < 8
    size = wave.abs().amax(1).reshape(-1, 4)
    assert size.std(1).median() > 0.03
    first = wave[:, 0].reshape(-1, 4) / size  # phases
    assert first.std(1).median() > 0.3


# What edits share


def test_the_source_is_another_record_for_about_half_and_no_record_s_in_particular():
    numbers = torch.arange(1000.0).reshape(-1, 1, 1).expand(-1, 2, 16)
    torch.manual_seed(0)
    from_ = pseudo.elsewhere(numbers)[:, 0, 0]
    step = (from_ - numbers[:, 0, 0]) % 1000
    assert abs((step == 0).double().mean() - 0.5) < 0.1
    assert len(step.unique()) > 250


def test_the_source_is_shifted_by_an_eighth_or_more_and_mirrored_at_the_ends():
    ramps = torch.stack(torch.meshgrid(TIME[:80], TIME[:48], indexing="ij"))[None]
    torch.manual_seed(0)
    starts = []
    for _ in range(400):
        moved = pseudo.elsewhere(ramps)[0]
        assert max(moved[0].diff(dim=0).abs().max(), moved[1].diff(dim=1).abs().max()) <= 1
        starts.append(moved[:, 0, 0])
    for n, start in zip((80, 48), torch.stack(starts, 1), strict=True):
        assert n / 8 <= start.min() < n / 5
        assert 0.92 * n < start.max() < n


def test_a_law_is_a_sum_of_channels_that_hardly_varies_whatever_the_scale():
    draw = torch.Generator().manual_seed(0)
    a, e = torch.randn(2, 1, 5000, generator=draw, dtype=torch.float64)
    change = torch.tensor([[[1.0], [0.0], [1.0]]], dtype=torch.float64).expand(-1, -1, 5000)
    cases = [(scale, *law) for scale in (1.0, 1e-4) for law in ((0.008, 0.5), (0.03, 1.0))]
    x = torch.stack(
        [scale * torch.cat([a, a + spread * e, 0 * a + 5]) for scale, spread, _ in cases]
    )
    found = pseudo.lawful(change.expand(4, -1, -1), x)[..., 0]
    expected = torch.tensor([[kept, 1 - kept, 0.0] for *_, kept in cases], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_kinds_come_equally_often_with_a_source_and_a_quarter_are_nuisances(monkeypatch):
    def kind(number: int) -> Callable:
        return lambda x, source: source - x + number

    monkeypatch.setattr(pseudo, "elsewhere", lambda x: x + 100)
    monkeypatch.setattr(pseudo, "lawful", lambda change, x: change)
    monkeypatch.setattr(pseudo, "LOCAL", [kind(0), kind(1)])
    monkeypatch.setattr(pseudo, "RECORDWIDE", [kind(2)])
    monkeypatch.setattr(pseudo, "nuisance", kind(3))
    torch.manual_seed(0)
    crowd = SWING.repeat(4, 1, 1)[..., :4] + 7 * torch.arange(4000)[:, None, None]  # each another
    damaged, mask = pseudo_anomalies(crowd)
    number = (damaged - crowd - 100)[:, 0, 0].round().long()
    assert (number.bincount() / 4000).tolist() == pytest.approx([0.25] * 4, abs=0.04)
    assert torch.equal(mask.amin((1, 2)), (number < 3).double())
    assert torch.equal(mask.amax((1, 2)), (number < 3).double())


def test_a_change_is_marked_by_the_deviation_of_its_own_channel(monkeypatch):
    x = SWING[:40] * torch.tensor([1, 0.1, 0.02, 1e-9])[:, None]
    x = x * torch.logspace(-2, 2, 40, dtype=x.dtype)[:, None, None]  # nor by that of other samples

    def least(x: Tensor) -> Tensor:
        deviation = x.std(2, keepdim=True)
        return 0.05 * torch.maximum(deviation, 0.01 * deviation.mean(1, keepdim=True))

    for share, marked in ((1.02, 1.0), (0.98, 0.0)):
        monkeypatch.setattr(pseudo, "LOCAL", [lambda x, _, s=share: s * least(x) + 0 * x])
        monkeypatch.setattr(pseudo, "lawful", lambda change, x: change)
        mask = pseudo_anomalies(x, recordwide=False)[1]
        harmed = mask.flatten(1).any(1) if marked else torch.ones(40, dtype=torch.bool)
        assert harmed.double().mean() > 0.5
        assert torch.equal(mask[harmed], torch.full_like(x, marked)[harmed])
