"""The promise that every method keeps, on one lead, on twelve leads and on pictures.

A new method is one row of `TABLE`. Its own test file says what is particular to its paper.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ecgad import flops, methods, score
from ecgad.export import disagreement, export_onnx, run_onnx, run_torch
from ecgad.parts import encoders
from ecgad.parts.detector import Detector, Evidence
from ecgad.train import Budget, fit

CASES = ("1 lead", "12 leads", "images")


class Row(NamedTuple):
    """How a method is made small enough to learn in seconds."""

    settings: tuple[dict[str, Any] | None, ...]  # for each of CASES; None: not for such data
    refused: dict[str, tuple[Any, str]]  # settings that cannot be, and what the message says
    steps: tuple[int, int, int] = (300, 300, 300)  # for each of CASES: as few as suffice


SMALL = {"local": (3,), "width": 48, "decoder_width": 48, "depth": 1, "rounds": 6, "ratio": 0.3,
         "hidden": 0.3}  # fmt: skip
PROFILES = {"hidden": 64, "bottleneck": 16, "rounds": 5, "share": 0.5, "sampler": "policy"}
REBUILT = {
    "encoder": "raw:40", "window": (1,), "width": 48, "heads": 4, "mlp_ratio": 2,
    "encoder_depth": 1, "decoder_depth": 1,
}  # fmt: skip
PROMPTED = {"window": (1,), "width": 48, "heads": 4, "depth": 1, "recordwide": False}
MASKED = {
    "ratio": 0.4, "width": 32, "depth": 1, "reduction": 1, "gate_share": 0.25, "recordwide": False
}  # fmt: skip
LINE, SQUARE = {"segment": (40,)}, {"segment": (8, 8)}
BESIDE = {"beside": ("patches", "tokens")}
OWN = {
    "encoder": "mmae:20:32:2:4", "prototypes": 4, "depth": 2, "mlp_ratio": 2, "ema": 0.99,
    "bank": 16,
}  # fmt: skip
CAE: dict[str, Any] = {"depth": 2, "width": 16, "kernel": 5, "detail_width": 16, "cross_width": 8}
CAE |= {"shares": (0.2, 0.2, 0.6), "recordwide": False}
PROTOTYPES = {"encoder": "raw:20", "prototypes": 32, "local": 48, "steps": 8, "ema": 0.8}
REPAIRED = {"depth": 2, "heads": 2, "head_width": 32}
UNLIKE: dict[str, Any] = {"widths": (12, 16), "stride": 2, "kernel": 5, "fused": 16, "context": 7}
UNLIKE |= {"bottleneck": 6, "components": 4, "encoder": "raw:40"}
TABLE = {
    "crr": Row(
        (
            REPAIRED | {"encoder": "raw:20"},
            REPAIRED | {"encoder": "mmae:20:32:3:2"},
            REPAIRED | {"encoder": "mmae:4:32:3:2"},
        ),
        {
            "encoder": ("raw:7", "raw:7' cannot be made for shape"),
            "groups": (3, "depth 2 cannot be parted in 3 groups"),
            "heads": (3, "is not a multiple of heads 3"),
            "mask": (1.0, "mask is 1.0"),
            "residual": (1.5, "residual 1.5"),
            "head_width": (4, "head_width is 4"),
            "share": (1.0, "share is 1.0"),
        },
        steps=(200, 300, 150),
    ),
    "dnp": Row(
        (OWN, OWN, OWN | {"encoder": "mmae:4:32:2:4"}),
        {
            "prototypes": (1, "prototypes 1,.* at least 2"),
            "heads": (5, "width 32 is not a multiple of heads 5"),
            "mining": (-1.0, "mining is -1.0"),
            "ema": (1.5, "ema is 1.5"),
        },
        steps=(200, 160, 120),
    ),
    "fader": Row(
        (
            MASKED | {"segment": (20,)},
            MASKED | {"segment": (20,), "ratio": 0.25},
            MASKED | SQUARE,
        ),
        {
            "segment": ((7,), r"patch \(7,\) does not tile grid"),
            "ratio": (0.5, "ratio is 0.5"),
            "margin": (-1, "margin is -1"),
            "reduction": (99, "reduction is 99; between 1 and width 32"),
            "gate_share": (1.0, "gate_share is 1.0"),
            "heads": (5, "width 32 is not a multiple of heads 5"),
        },
        steps=(400, 280, 240),
    ),
    "hetnet": Row(
        (UNLIKE, UNLIKE, UNLIKE | {"encoder": "raw:8", "kernel": 3, "context": 3}),
        {
            "encoder": ("raw:7", r"patch \(7,.*\) does not tile grid"),
            "widths": ((), r"widths are \(\)"),
            "kernel": (4, "kernel is 4"),
            "noise": ("pink", "noise is 'pink'"),
            "replaced": (1.5, "replaced is 1.5"),
            "components": (0, "components is 0"),
            "shares": ((0.5, 0.6), r"shares are \(0.5, 0.6\)"),
        },
        steps=(140, 140, 240),
    ),
    "knn": Row(
        ({"encoder": "raw:40"}, {"encoder": "raw:40"}, {"encoder": "raw:8"}),
        {
            "encoder": ("raw:7", "raw:7' cannot be made for shape"),
            "bank": (0, "bank is 0"),
        },
    ),
    "mahalanobis": Row(
        ({}, {}, {}),
        {
            "lags": ((4, 999), "lag of 999 does not fit grid"),
            "levels": ((0.5, 1.5), r"levels is \(0.5, 1.5\)"),
        },
    ),
    "mmae": Row(
        (
            SMALL | LINE | BESIDE,
            SMALL | LINE | BESIDE,
            SMALL | SQUARE | {"local": (2, 2), "beside": ("tokens",)},
        ),
        {
            "segment": ((7, 7), r"patch \(7, 7\) does not tile grid"),
            "local": ((99, 99), r"local region \(99, 99\) does not fit the tokens"),
            "ratio": (1.5, "ratio is 1.5"),
            "hidden": (0.0, "hidden is 0.0"),
            "rounds": (0, "rounds is 0"),
            "beside": (("token",), r"beside is \['token'\]; known are patches, rhythm, tokens"),
            "heads": (7, "width 48 is not a multiple of heads 7"),
        },
    ),
    "nbs": Row(
        (PROFILES | LINE, PROFILES | LINE, PROFILES | SQUARE),
        {
            "segment": ((7,), r"patch \(7,\) does not tile grid"),
            "sampler": ("best", "sampler is 'best'"),
            "share": (0.0, "share is 0.0"),
            "growth": (0.5, "growth is 0.5"),
            "rounds": (1, "rounds is 1"),
            "entropy": (-1.0, "entropy is -1.0"),
        },
        steps=(160, 120, 100),
    ),
    "onenip": Row(
        (
            PROMPTED | {"encoder": "raw:20"},
            PROMPTED | {"encoder": "raw:20"},
            PROMPTED | {"encoder": "raw:8"},
        ),
        {
            "encoder": ("raw:7", r"patch \(7,.*\) does not tile grid"),
            "window": ((99,), r"window \(99,\) hides all tokens"),
            "prompting": ("none", "prompting is 'none'"),
            "prompts": (0, "prompts is 0"),
            "fusion": (1.5, "fusion is 1.5"),
            "heads": (5, "width 48 is not a multiple of heads 5"),
        },
        steps=(300, 200, 160),
    ),
    "otproto": Row(
        (
            PROTOTYPES | {"window": 160, "lags": (30, 100)},
            PROTOTYPES | {"window": 160, "lags": (30, 100)},
            PROTOTYPES | {"encoder": "raw:8"},
        ),
        {
            "alpha": (1.5, "alpha is 1.5"),
            "relax": (0.0, "relax is 0.0"),
            "steps": (0, "steps is 0"),
            "lags": ((100, 30), r"lags are \(100, 30\)"),
        },
    ),
    "pbas": Row(
        (
            {"encoder": "raw:40"},
            {"encoder": "raw:40", "centres": 4, "push": (0.1, 0.4)},
            {"encoder": "raw:8", "damage": 0.5},
        ),
        {
            "centres": (0, "centres is 0"),
            "push": ((0.5, 0.2), r"push is \(0.5, 0.2\); two .* the second not below the first"),
            "ema": (0.0, "ema is 0.0"),
            "damage": (-1.0, "damage -1.0"),
        },
        steps=(160, 160, 160),
    ),
    "pca": Row(
        (LINE, LINE, SQUARE),
        {
            "segment": ((7,), r"patch \(7,\) does not tile grid"),
            "variance": (1.5, "variance is 1.5"),
        },
    ),
    "uniad": Row(
        (REBUILT | {"encoder": "raw:20", "window": (3,)}, REBUILT, REBUILT | {"encoder": "raw:8"}),
        {
            "encoder": ("raw:7", r"patch \(7,.*\) does not tile grid"),
            "window": ((99,), r"window \(99,\) hides all tokens"),
            "queries": ("none", "queries is 'none'"),
            "jitter": (-1.0, "jitter is -1.0"),
            "decoder_depth": (0, "decoder_depth is 0"),
            "heads": (5, "width 48 is not a multiple of heads 5"),
        },
        steps=(300, 240, 160),
    ),
    "rcae": Row(
        (CAE, CAE, CAE | {"kernel": 3, "width": 8}),
        {
            "kernel": (4, "kernel is 4"),
            "shares": ((0.5, 0.6, 0.1), r"shares are \(0.5, 0.6, 0.1\)"),
            "depth": (0, "depth is 0"),
        },
        steps=(600, 300, 200),
    ),
}


@dataclass
class Bench:
    """A method that has learned one kind of data."""

    method: str
    row: Row
    settings: dict[str, Any]
    normals: np.ndarray  # (n, c, *grid), learned from
    held_out: np.ndarray  # normals too, not learned from
    untrained: Detector
    model: Detector
    losses: dict[str, list[float]]  # of each stage, as training went

    @property
    def shape(self) -> tuple[int, ...]:
        return self.normals.shape[1:]

    def build(self, seed: int = 0) -> Detector:
        torch.manual_seed(seed)
        return methods.build(self.method, self.shape, self.settings).eval()

    def learn(self, model: Detector, steps: int, seed: int = 0, **more: Any) -> Detector:
        return fit(model, self.normals, seed=seed, budget=Budget(steps, 32, 5e-3), **more)


BENCHES = [
    pytest.param((m, c), id=f"{m}-{c}", marks=[pytest.mark.slow] * (c == "1 lead"))
    for m in TABLE
    for c in CASES
]


@pytest.fixture(scope="module", params=BENCHES)
def bench(request, ecg, pictures) -> Bench:
    method, case = request.param
    row = TABLE[method]
    settings, steps = (of[CASES.index(case)] for of in (row.settings, row.steps))
    if settings is None:
        pytest.skip(f"{method} is not for {case}")
    data = {
        "1 lead": lambda n, seed: ecg(n, seed=seed, leads=1),
        "12 leads": lambda n, seed: ecg(n, seed=seed),
        "images": lambda n, seed: pictures(n, seed=seed),
    }[case]
    normals, losses = data(256, 0), {}
    made = Bench(method, row, settings, normals, data(64, 1), *[None] * 2, losses)  # type: ignore
    made.untrained = made.build()
    made.model = made.learn(
        made.build(),
        steps,
        report=lambda p: losses.setdefault(p.stage, []).append(p.loss),
        report_every=max(steps // 20, 1),
    )
    return made


def evidence(model: Detector, x: np.ndarray) -> Evidence:
    with torch.no_grad():
        return model(torch.from_numpy(x))


def hurt(x: np.ndarray, *, one_row: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shuffles the samples of a stretch, which keeps their energy and loses their order.

    Gives the records, where (n, *grid), and in which row if in one only.
    """
    rng = np.random.default_rng(7)
    x, n, grid = x.copy(), len(x), x.shape[2:]
    where, rows = np.zeros((n, *grid), bool), rng.integers(0, x.shape[1], n)
    for i in range(n):
        extent = [72 if len(grid) == 1 else 16] * len(grid)
        corner = [rng.integers(0, g - e + 1) for g, e in zip(grid, extent, strict=True)]
        where[i][tuple(slice(o, o + e) for o, e in zip(corner, extent, strict=True))] = True
        for row in [rows[i]] if one_row else range(x.shape[1]):
            x[i, row][where[i]] = rng.permutation(x[i, row][where[i]])
    return x, where, rows


def record_scores(model: Detector, usual: np.ndarray, x: np.ndarray) -> np.ndarray:
    """As `ecgad.score` makes them: the map's mean and what has no place, standardised."""
    use = ("mean", *model.whole)
    valid = np.ones(usual.shape[1:], bool)

    def parts(x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        found = evidence(model, x)
        return list(zip(found.map.numpy(), found.whole.numpy(), strict=True))

    maps, wholes = zip(*parts(usual), strict=True)
    valid = score.row_validity(valid, len(maps[0]))
    rule = score.fit_rule(
        list(maps), [valid] * len(maps), list(wholes), model.whole, use, smooth=2.0
    )
    rows = [score.features(m, valid, w, model.whole) for m, w in parts(x)]
    return np.array([score.score(row, rule) for row in rows])


def separation(model: Detector, bench: Bench) -> float:
    """AUROC of held-out normals against the same records, hurt."""
    usual, rest = bench.held_out[:32], bench.held_out[32:]
    found = record_scores(model, usual, np.concatenate([rest, hurt(rest)[0]]))
    return float(roc_auc_score(np.repeat([0, 1], len(rest)), found))


def excess(model: Detector, bench: Bench, x: np.ndarray) -> np.ndarray:
    """How far a record's map lies above what is usual at each place, (n, m, *grid)."""
    usual = evidence(model, bench.held_out).map
    return (evidence(model, x).map - usual.mean(0)).numpy()


def state(model: Detector) -> dict[str, Tensor]:
    """Everything a model holds, also the buffers that are not saved."""
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: value.detach().clone() for name, value in held.items()}


# The folder and the table


def test_every_method_is_in_the_table():
    assert set(TABLE) == set(methods.names())


def test_every_method_has_a_test_file_of_its_own():
    present = {p.stem.removeprefix("test_") for p in Path(__file__).parent.glob("test_*.py")}
    assert set(methods.names()) <= present


@pytest.mark.parametrize("method", TABLE)
def test_a_method_leaves_out_only_data_it_does_not_claim(method):
    claimed = methods.describe(method).data
    for case, settings in zip(CASES, TABLE[method].settings, strict=True):
        assert settings is not None or case.split()[-1].rstrip("s") not in claimed


ON_ENCODER = [m for m in TABLE if hasattr(import_module(f"ecgad.methods.{m}").Config, "encoder")]


@pytest.mark.parametrize("method", ON_ENCODER)
def test_a_learned_encoder_comes_as_it_is(method):
    shape = (12, 1000)
    mine = methods.build(method, shape, {"encoder": "mmae-12lead"}).state_dict()
    for name, value in encoders.build("mmae-12lead", shape).state_dict().items():
        found = [v for key, v in mine.items() if key.endswith(f".{name}")]
        assert any(torch.equal(v, value) for v in found), name


# Learning


def test_the_loss_falls_in_every_stage(bench):
    stages = bench.model.stages()
    assert list(bench.losses) == [stage.name for stage in stages]
    for losses in bench.losses.values():
        assert np.mean(losses[-3:]) < 0.97 * losses[0]


def test_learning_moves_every_trainable_parameter_and_no_other(bench):
    before, after = state(bench.untrained), state(bench.model)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    trainable = {name for name, p in bench.model.named_parameters() if p.requires_grad}
    staged = {id(p) for stage in bench.model.stages() for p in stage.parameters}
    assert staged == {id(p) for p in bench.model.parameters() if p.requires_grad}
    assert moved & set(dict(bench.model.named_parameters())) == trainable
    assert moved


def test_learning_tells_strange_records_apart(bench):
    learned = separation(bench.model, bench)
    assert learned > 0.9
    try:
        before = separation(bench.untrained, bench)
    except ValueError as nothing:
        if "tells no record from another" not in str(nothing):
            raise
        before = 0.5  # it knows nothing yet, which is refused
    assert learned > before


# Where


def test_the_map_points_at_the_place(bench):
    if not bench.model.localises:
        pytest.skip("its evidence has no place")
    x, where, _ = hurt(bench.held_out)
    found = excess(bench.model, bench, x).mean(1)  # (n, *grid)
    inside = np.array([f[w].mean() for f, w in zip(found, where, strict=True)])
    outside = np.array([f[~w].mean() for f, w in zip(found, where, strict=True)])
    assert np.mean(inside > outside) > 0.9


def test_the_map_points_at_the_lead(bench):
    rows = evidence(bench.model, bench.held_out[:1]).map.shape[1]
    if rows == 1 or not bench.model.localises:
        pytest.skip("one lead, or a method that does not tell leads apart")
    x, where, row = hurt(bench.held_out, one_row=True)
    before, after = (evidence(bench.model, r).map.numpy() for r in (bench.held_out, x))
    rise = [d[:, w].mean(1) for d, w in zip(after - before, where, strict=True)]  # n of (m,)
    assert np.mean(np.argmax(rise, axis=1) == row) > 0.9


# A record's evidence belongs to the record


def test_a_record_scores_the_same_alone_and_in_any_crowd(bench):
    crowd = np.concatenate([hurt(bench.held_out[:5])[0], 50 * bench.held_out[5:7]])
    record = bench.held_out[10:11]
    alone = evidence(bench.model, record)
    for at in (0, 3, 7):
        among = evidence(bench.model, np.insert(crowd, at, record[0], axis=0))
        torch.testing.assert_close(among.map[at], alone.map[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(among.whole[at], alone.whole[0], rtol=1e-4, atol=1e-5)


def test_scoring_leaves_no_trace_on_the_model(bench):
    model = copy.deepcopy(bench.model)
    before, names = state(model), set(vars(model))
    flags = [m.training for m in model.modules()]
    torch.manual_seed(3)
    draws = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = evidence(model, hurt(bench.held_out)[0])
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert np.array_equal(np.random.get_state()[1], draws[1])  # noqa: NPY002
    assert [m.training for m in model.modules()] == flags
    assert set(vars(model)) == names
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert torch.equal(evidence(model, hurt(bench.held_out)[0]).map, first.map)


def test_a_model_scores_the_same_after_saving_and_loading(bench, tmp_path):
    save_file(bench.model.state_dict(), tmp_path / "weights.safetensors")
    loaded = bench.build(seed=99)
    loaded.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    mine, its = (evidence(m, bench.held_out[:4]) for m in (bench.model, loaded))
    assert torch.equal(mine.map, its.map)
    assert torch.equal(mine.whole, its.whole)


def test_a_seed_decides_the_result(bench):
    one, same, other = (
        evidence(bench.learn(bench.build(s), 5, seed=s), bench.held_out[:4]) for s in (0, 0, 1)
    )
    assert torch.equal(one.map, same.map)
    assert torch.equal(one.whole, same.whole)
    if bench.model.stages():  # what is computed and not learned has nothing to draw
        assert not torch.equal(one.map, other.map)


def test_flat_and_huge_records_give_finite_evidence_of_the_promised_shape(bench):
    record = bench.held_out[0]
    x = np.stack([np.zeros_like(record), np.full_like(record, 3.0), 1e3 * record])
    found = evidence(bench.model, x)
    assert found.map.shape[0] == 3
    assert found.map.shape[1] in (1, bench.shape[0])
    assert found.map.shape[2:] == bench.shape[1:]
    assert found.whole.shape == (3, len(bench.model.whole))
    assert all(bool(torch.isfinite(value).all()) for value in found)


# Elsewhere


def test_onnx_runtime_agrees_with_torch_in_batches_of_any_size(bench, tmp_path):
    path = tmp_path / "model.onnx"
    model = copy.deepcopy(bench.model)
    assert export_onnx(model, path, bench.held_out[:4]) <= 1e-4
    for x in (bench.held_out[:1], hurt(bench.held_out[:5])[0]):
        assert disagreement(run_torch(model), run_onnx(path), x) <= 1e-4


def test_the_cost_equals_what_torch_counts_with_plain_attention(bench):
    """An independent counter: it sees attention only when made of plain products."""
    x = torch.from_numpy(bench.held_out[:1])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        bench.model(x)
    assert 2 * flops.count(bench.model).macs_record == counter.get_total_flops() > 0


# Refusals


def test_nan_is_refused_with_its_number(bench):
    x = torch.from_numpy(bench.held_out[:2].copy())
    x[0, 0].view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    for call in (bench.model, bench.model.loss):
        with pytest.raises(ValueError, match="3 NaN or infinite values"):
            call(x)


def test_another_shape_is_refused_with_both_shapes(bench):
    x = torch.zeros(2, *bench.shape)[..., :-1]
    for call in (bench.model, bench.model.loss):
        with pytest.raises(ValueError, match="was built for") as refusal:
            call(x)
        assert str(tuple(x.shape)) in str(refusal.value)
        assert ", ".join(map(str, bench.shape)) in str(refusal.value)


def test_a_setting_the_method_does_not_have_is_a_type_error(bench):
    with pytest.raises(TypeError, match="no_such_setting"):
        methods.build(bench.method, bench.shape, {"no_such_setting": 1})
    config = import_module(f"ecgad.methods.{bench.method}").Config
    with pytest.raises(TypeError, match="no_such_setting"):
        config(no_such_setting=1)


def test_a_setting_that_cannot_be_is_refused_with_what_came_and_why(bench):
    for name, (value, message) in bench.row.refused.items():
        with pytest.raises(ValueError, match=message):
            methods.build(bench.method, bench.shape, bench.settings | {name: value})


def test_a_config_is_frozen(bench):
    config = import_module(f"ecgad.methods.{bench.method}").Config()
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, None)
