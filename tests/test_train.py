"""train.fit: one loop for every method, resumable to the step."""

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ecgad.export import run_torch
from ecgad.learn import train_into
from ecgad.parts.detector import Detector, Evidence, Stage, check_evidence
from ecgad.train import Budget, Progress, _schedule, fit


class TwoStages(Detector):
    """Learns the mean of its input in stage one, a scale in stage two."""

    def __init__(self) -> None:
        super().__init__((1, 8))
        self.mean = nn.Parameter(torch.zeros(8))
        self.scale = nn.Parameter(torch.ones(8))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("settled", torch.zeros(2))
        self.register_buffer("foreseen", torch.zeros(()))
        self.register_buffer("drawn", torch.zeros(()))

    def forward(self, x: Tensor) -> Evidence:
        return Evidence((x - self.mean) ** 2 * self.scale, x.new_zeros(len(x), 0))

    def loss(self, x: Tensor) -> Tensor:
        noise = 0.01 * torch.randn_like(x)  # so that the seed matters
        return (x + noise - self.mean).square().mean()

    def stages(self) -> list[Stage]:
        return [
            Stage("mean", [self.mean], self.loss, 0.5),
            Stage("scale", [self.scale], lambda x: (self.scale - 2).square().mean(), 0.5),
        ]

    def warm_up(self, batches: Iterable[Tensor]) -> None:
        self.seen += sum(len(batch) for batch in batches)

    def foresee(self, batches: Iterable[Tensor]) -> None:
        self.foreseen += sum(map(len, batches))

    def settle(self, batches: Iterable[Tensor]) -> None:
        assert not self.training
        self.settled[:] = torch.tensor([sum(map(len, batches)), self.scale.mean().item()])
        self.drawn = torch.rand(())


def data(n: int = 100) -> np.ndarray:
    return (3 + np.random.default_rng(0).normal(size=(n, 1, 8))).astype(np.float32)


BUDGET = Budget(steps=400, batch=16, lr=0.1, weight_decay=0.0)


def test_every_stage_trains_its_own_parameters_for_its_share_of_the_steps():
    told: list[Progress] = []
    model = fit(TwoStages(), data(), seed=0, budget=BUDGET, report=told.append, report_every=50)
    np.testing.assert_allclose(model.mean.detach(), data().mean((0, 1)), atol=0.1)
    np.testing.assert_allclose(model.scale.detach(), 2, atol=0.01)
    assert {p.stage: p.steps for p in told} == {"mean": 200, "scale": 200}


def test_warm_up_sees_every_record_once():
    assert fit(TwoStages(), data(37), seed=0, budget=Budget(steps=2, batch=16)).seen == 37


def test_a_model_settles_on_every_record_once_it_has_learned():
    model = fit(TwoStages(), data(37), seed=0, budget=BUDGET)
    np.testing.assert_allclose(model.settled.detach(), [37, 2], atol=0.01)
    begun = fit(TwoStages(), data(37), seed=0, budget=BUDGET, settle=False)
    assert begun.settled.tolist() == [0, 0]
    assert (model.foreseen, begun.foreseen) == (0, 37)
    still = fit(TwoStages(), data(37), seed=0, budget=Budget(steps=0, batch=16), settle=False)
    assert (still.seen, still.foreseen) == (37, 37)
    assert not still.mean.any()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    one, again, other = (fit(TwoStages(), data(), seed=s, budget=BUDGET).mean for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_training_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(TwoStages(), data(), seed=0, budget=Budget(steps=4))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("killed_in", ["mean", "scale"])
def test_a_killed_training_resumes_and_ends_with_the_same_weights(tmp_path: Path, killed_in: str):
    def kill(progress: Progress) -> None:
        if progress.stage == killed_in and progress.step == 100:
            raise KeyboardInterrupt

    straight = fit(TwoStages(), data(), seed=3, budget=BUDGET)
    file = tmp_path / "checkpoint.pt"
    common = {"seed": 3, "budget": BUDGET, "checkpoint": file, "report_every": 50}
    with pytest.raises(KeyboardInterrupt):
        fit(TwoStages(), data(), report=kill, **common)
    steps: list[Progress] = []
    resumed = fit(TwoStages(), data(), report=steps.append, **common)
    assert (steps[0].stage, steps[0].step) == (killed_in, 100)
    assert torch.equal(straight.mean, resumed.mean)
    assert torch.equal(straight.scale, resumed.scale)


def test_a_model_killed_after_its_last_step_settles_as_if_it_had_not_been(tmp_path: Path):
    class Killed(TwoStages):
        def settle(self, batches: Iterable[Tensor]) -> None:
            raise KeyboardInterrupt

    common = {"seed": 3, "budget": BUDGET, "checkpoint": tmp_path / "checkpoint.pt"}
    with pytest.raises(KeyboardInterrupt):
        fit(Killed(), data(), **common)
    straight = fit(TwoStages(), data(), seed=3, budget=BUDGET)
    assert torch.equal(fit(TwoStages(), data(), **common).drawn, straight.drawn)


def test_the_probe_is_asked_now_and_then_and_at_the_end():
    told: list[Progress] = []
    fit(TwoStages(), data(), seed=0, budget=BUDGET, report=told.append, report_every=100,
        probe=lambda model: float(model.training), probe_every=150)  # fmt: skip
    asked = [(p.stage, p.step) for p in told if p.damage_auroc is not None]
    assert asked == [("mean", 150), ("mean", 200), ("scale", 150), ("scale", 200)]


def test_data_that_does_not_fit_the_model_is_refused():
    with pytest.raises(ValueError, match=r"\(5, 1, 9\)"):
        fit(TwoStages(), np.zeros((5, 1, 9), np.float32), seed=0)
    with pytest.raises(ValueError, match=r"\(0, 1, 8\)"):
        fit(TwoStages(), np.zeros((0, 1, 8), np.float32), seed=0)


def test_a_loss_that_is_not_finite_stops_the_training():
    model = TwoStages()
    model.stages = lambda: [Stage("bad", [model.mean], lambda x: model.mean.sum() * np.inf)]  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="'bad'"):
        fit(model, data(), seed=0, budget=BUDGET)


def test_the_rate_rises_for_the_warm_up_then_falls_as_a_cosine_to_nothing():
    rates = np.array([_schedule(step, 1000, Budget(warm_up=0.05)) for step in range(1000)])
    assert rates.argmax() in (49, 50)
    assert rates[0] < 0.03
    assert rates[500] == pytest.approx(0.5, abs=1e-6)
    assert rates[-1] < 1e-4
    assert (np.diff(rates[50:]) < 0).all()


def test_the_rate_can_be_held_at_its_peak_before_it_falls():
    rates = np.array([_schedule(s, 1000, Budget(warm_up=0.05, hold=0.6)) for s in range(1000)])
    assert (rates[50:601] == 1).all()
    assert rates[800] == pytest.approx(0.5, abs=1e-6)
    assert rates[-1] < 1e-4


class Still(TwoStages):
    """Nothing that the loss depends on: what moves is what decays."""

    def stages(self):
        self.matrices = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        self.vector = nn.Parameter(torch.ones(2))
        learned = [*self.matrices, self.vector]
        pace = {self.matrices[1]: 0.1}
        return [Stage("one", learned, lambda x: 0 * sum(p.sum() for p in learned), pace=pace)]


def test_only_matrices_decay_and_at_their_own_pace():
    model = Still()
    fit(model, data(), seed=0, budget=Budget(1, 16, 0.1, weight_decay=0.5, warm_up=0))
    assert model.vector.tolist() == [1, 1]
    fast, slow = (matrix.unique().item() for matrix in model.matrices)
    assert (fast, slow) == pytest.approx((0.95, 0.995))


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"budget": Budget(steps=7, batch=16)}, {"x": data() + 1}],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, other: dict):
    given = {"x": data(), "seed": 3, "budget": BUDGET, "checkpoint": tmp_path / "checkpoint.pt"}
    fit(TwoStages(), **given)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of another training"):
        fit(TwoStages(), **given | other)


def test_a_checkpoint_of_another_form_is_refused(tmp_path: Path, monkeypatch):
    given = {"x": data(), "seed": 3, "budget": BUDGET, "checkpoint": tmp_path / "checkpoint.pt"}
    fit(TwoStages(), **given)
    monkeypatch.setattr(importlib.import_module("ecgad.train"), "FORM", 3)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of another training"):
        fit(TwoStages(), **given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": -5}, "-5 steps of 64 records"),
        ({"steps": 3.7}, "3.7 steps of 64 records; whole numbers"),
        ({"batch": 0}, "2000 steps of 0 records; .* 1 or more"),
        ({"batch": 2.5}, "2000 steps of 2.5 records; whole numbers"),
        ({"lr": -1}, "lr is -1, .* lr above 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"weight_decay": -0.1}, "weight_decay -0.1; .* no decay below it"),
        ({"warm_up": 2.0}, "warm_up is 2.0, .* from 0 to 1"),
        ({"warm_up": float("nan")}, "warm_up is nan"),
        ({"hold": 1.0}, "hold 1.0; .* hold below 1"),
        ({"hold": -0.1}, "hold -0.1"),
    ],
)
def test_a_budget_that_has_no_meaning_is_refused(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Budget(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -3}, "seed is -3; 0 or more is needed"),
        ({"report_every": 0}, "report_every is 0, probe_every 500; at least 1 step each"),
        ({"probe_every": 0}, "report_every is 100, probe_every 0; at least 1 step each"),
        ({"device": "gpu"}, "device is 'gpu', where torch can place nothing: take 'cpu'"),
    ],
)
def test_a_training_that_cannot_begin_is_refused_by_the_name_of_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        fit(TwoStages(), data(), **{"seed": 0} | wrong)


def test_a_device_that_is_not_there_is_refused_in_training_and_in_scoring(monkeypatch):
    def not_compiled(*_: object, device: str) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "empty", not_compiled)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for begin in (partial(fit, x=data(), seed=0), run_torch):
        with pytest.raises(ValueError, match="device is 'cuda', but this torch has no CUDA: take"):
            begin(TwoStages(), device="cuda")


def test_a_model_runs_where_it_is_unless_another_device_is_named(monkeypatch):
    """A probe during training must not fetch it from its accelerator."""

    class Far(TwoStages):
        def parameters(self):
            return iter([SimpleNamespace(device="far")])

        def to(self, device):
            seen.append(device)
            return self

    seen: list[str] = []
    monkeypatch.setattr("ecgad.parts.detector.check_device", lambda device: None)
    run_torch(Far())
    run_torch(Far(), "cpu")
    assert seen == ["far", "cpu"]


class Breaking(TwoStages):
    """Gives as evidence what `given` makes of the input."""

    whole = ("one", "two")

    def __init__(self, given: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.given = given

    def forward(self, x: Tensor) -> Evidence:
        return self.given(x)  # type: ignore[return-value]


def evidence(map: Callable[[Tensor], Tensor], columns: int = 2) -> Callable[[Tensor], Evidence]:
    return lambda x: Evidence(map(x), x.new_ones(len(x), columns))


KEPT = evidence(torch.square)
BROKEN = [
    (lambda x: (x, x[:, 0, :2]), TypeError, r"gave a tuple; Evidence\(map, whole\)"),
    (lambda x: Evidence(x.numpy(), x), TypeError, "gave a Evidence; .* of tensors is needed"),
    (evidence(lambda x: x[:, 0]), ValueError, r"map is \(9, 8\) for an input of \(9, 1, 8\)"),
    (evidence(lambda x: x[..., :-3]), ValueError, r"map is \(9, 1, 5\) for an input"),
    (evidence(lambda x: x.repeat(1, 3, 1)), ValueError, r"map is \(9, 3, 8\) for an input"),
    (evidence(lambda x: x[:1]), ValueError, r"map is \(1, 1, 8\) for an input"),
    (evidence(torch.abs, 3), ValueError, r"whole is \(9, 3\); \(9, 2\) is .* \('one', 'two'\)"),
    (evidence(torch.sqrt), ValueError, "map holds [0-9]+ NaN or infinite values"),
    (evidence(lambda x: x - x.mean(0)), ValueError, r"map\[:, 0\] of a record among .* alone"),
    (evidence(torch.rand_like), ValueError, "record only: leave out .* drawn by chance"),
    (
        lambda x: Evidence(x, torch.stack([x.mean((1, 2)), x.mean().expand(len(x))], 1)),
        ValueError,
        r"whole\[:, 1\] of a record among others",
    ),
]


@pytest.mark.parametrize(("given", "error", "message"), BROKEN)
def test_a_method_that_breaks_its_promise_is_told_so_before_the_first_step(given, error, message):
    model = Breaking(given)
    with pytest.raises(error, match=message):
        fit(model, data(), seed=0, budget=BUDGET, probe=lambda model: 1.0)
    assert not model.mean.any()


@pytest.mark.parametrize(("given", "error", "message"), BROKEN)
def test_it_is_told_so_once_it_has_settled_where_nothing_is_asked_of_it_before(
    given, error, message
):
    model, short = Breaking(given), Budget(steps=2, batch=16)
    with pytest.raises(error, match=message):
        fit(model, data(), seed=0, budget=short)
    assert model.settled.any()
    fit(model, data(), seed=0, budget=short, settle=False)


def test_looking_at_the_evidence_leaves_no_trace():
    model = Breaking(KEPT).train()
    model.frozen = nn.Dropout().eval()
    drawn = torch.get_rng_state()
    check_evidence(model, torch.from_numpy(data(1)))
    assert (model.training, model.frozen.training) == (True, False)
    with pytest.raises(ValueError, match="drawn by chance"):
        check_evidence(Breaking(evidence(torch.rand_like)), torch.from_numpy(data(1)))
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_record_learned_by_heart_is_not_taken_for_one_that_depends_on_its_batch():
    """Of a distance of 0 the root is that of the rounding, which depends on the batch."""
    x = torch.from_numpy(data(4))

    def distance(y: Tensor) -> Tensor:
        return ((y - x[0]).square() + 1e-4 * (len(y) > 1)).sqrt()

    check_evidence(Breaking(evidence(distance)), x)


def test_a_wrong_method_or_setting_is_refused_before_the_records_are_read(tmp_path):
    def records():
        raise AssertionError("read")
        yield

    for method, settings in (("nosuch", None), ("pca", {"widht": 3})):
        with pytest.raises((TypeError, ValueError), match=r"nosuch|widht"):
            train_into(tmp_path / "m", method, records(), settings=settings)
    assert not (tmp_path / "m").exists()
