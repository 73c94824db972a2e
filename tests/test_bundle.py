"""Bundles and learning: what is saved is what scores, and it refuses what it should."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from archive import TINY, tiny_model
from safetensors.torch import load_file, save_file

from ecgad import load, train
from ecgad.bundle import CROWD, Bundle, load_detector, rewrite
from ecgad.calibrate import group_name
from ecgad.card import read_card, write_card
from ecgad.export import disagreement, export_onnx
from ecgad.files import file_sha256
from ecgad.learn import Normals, Pretraining, calibrate, damage_probe, data_fingerprint, learn
from ecgad.methods import build
from ecgad.parts.detector import Detector
from ecgad.prepare.signal import Preparation, Prepared, prepare
from ecgad.read import read
from ecgad.recalibrate import calibration_scores
from ecgad.record import LEADS, NOT_ASSESSABLE, Record
from ecgad.score import edge_limits, fit_rule, relative, score
from ecgad.screen.rows import result_row
from ecgad.train import Budget

Ecg = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ecg: Ecg) -> Path:
    return tiny_model(tmp_path_factory, ecg)


@pytest.fixture(scope="module")
def model(folder: Path) -> Bundle:
    return load(folder)


def record(mv: np.ndarray, rate_hz: float = 100.0) -> Record:
    return Record(mv, rate_hz, LEADS, np.ones(mv.shape, bool), "r")


def short(prepared: list[Prepared]) -> list[tuple[Prepared]]:
    """Records of an hour at most."""
    return [(p,) for p in prepared]


@pytest.fixture
def one(ecg: Ecg) -> Record:
    return record(ecg(1, seed=3, t=1000)[0])


def test_torch_and_onnx_runtime_give_the_same_result(folder: Path, model: Bundle, one: Record):
    by_torch, by_onnx = load(folder, runtime="torch").score(one), model.score(one)
    assert by_torch.score == pytest.approx(by_onnx.score, rel=1e-4)
    np.testing.assert_allclose(by_torch.map, by_onnx.map, rtol=1e-3, atol=1e-4)


def test_a_saved_copy_scores_the_same_and_has_the_same_name(
    model: Bundle, one: Record, tmp_path: Path
):
    copy = load(model.save(tmp_path / "copy"))
    assert copy.score(one).score == model.score(one).score
    assert copy.sha256 == model.sha256


def test_weights_that_are_not_the_cards_are_refused(folder: Path, tmp_path: Path):
    bad = shutil.copytree(folder, tmp_path / "bad")
    content = bytearray((bad / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (bad / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.safetensors is not the file that card\.json"):
        load(bad)


def test_a_folder_that_is_no_bundle_says_what_is_missing(tmp_path: Path):
    with pytest.raises(ValueError, match=r"card\.json, weights\.safetensors, model\.onnx"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_a_damaged_card_is_told_with_its_file(folder: Path, tmp_path: Path, text: str):
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m/card.json").write_text(text, "utf-8", errors="surrogateescape")
    for use in (load, load_detector, rewrite):
        with pytest.raises(ValueError, match=f"{tmp_path}/m/card.json .* copy the folder anew"):
            use(tmp_path / "m")


@pytest.mark.parametrize("key", ["rule", "calibration", "preparation", "created"])
def test_a_card_that_lacks_something_is_refused(folder: Path, tmp_path: Path, key: str):
    copy = shutil.copytree(folder, tmp_path / "copy")
    card = json.loads((copy / "card.json").read_text())
    (copy / "card.json").write_text(json.dumps({k: v for k, v in card.items() if k != key}))
    with pytest.raises(ValueError, match=f"card.json says nothing of {key}: copy the folder anew"):
        load(copy)


def test_a_card_of_another_schema_is_refused_before_anything_of_it_is_used(tmp_path: Path):
    (tmp_path / "card.json").write_text('{"schema": 99, "preparation": {"notch_hz": 50}}')
    for name in ("weights.safetensors", "model.onnx"):
        (tmp_path / name).touch()
    for reading in (read_card, load):
        with pytest.raises(ValueError, match=r"card.json has schema 99; version .* reads 1"):
            reading(tmp_path)


def in_crowds(model: Bundle, ecg: Ecg) -> list[int]:
    """Scores 18 records alone and together, which must not differ; sizes of the batches then."""
    crowd = [record(mv) for mv in ecg(16, seed=4, t=1000)]
    crowd.insert(
        3,
        replace(crowd[0], signal=crowd[0].signal[:2], valid=crowd[0].valid[:2], leads=("I", "II")),
    )
    crowd.insert(5, record(ecg(1, seed=5, t=2500)[0]))  # three windows
    alone, run, sizes = [model.score(r) for r in crowd], model.run, list[int]()
    assert model.crowd  # tried before batches are counted

    def counted(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(len(x))
        return run(x)

    model.run = counted
    for step in (1, -1):
        among = model.score_many(crowd[::step])[::step]
        for one, other in zip(alone, among, strict=True):
            assert result_row(one, "") == result_row(other, "")
            np.testing.assert_array_equal(one.map, other.map)
    model.run = run
    return sizes


def test_a_record_scores_the_same_alone_and_in_any_crowd(folder: Path, ecg: Ecg):
    for bundle in (load(folder), load()):
        sizes = in_crowds(bundle, ecg)
        assert sum(sizes) == 2 * (16 + 3)
        assert set(sizes) == {1, CROWD}


def test_a_window_whose_bits_depend_on_its_neighbours_is_alone(model: Bundle, ecg: Ecg):
    def shaky(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        map, whole = model.run(x)
        return map * np.float32(1 + (len(x) > 1) * 1e-6), whole

    assert set(in_crowds(Bundle(model.card, shaky), ecg)) == {1}


def test_a_record_too_short_or_with_too_few_leads_is_not_assessable(model: Bundle, one: Record):
    short = replace(one, signal=one.signal[:, :400], valid=one.valid[:, :400])
    two = replace(one, signal=one.signal[:2], valid=one.valid[:2], leads=("I", "II"))
    for refused, reason in ((short, "4.0 s long"), (two, "6 of 12 leads can be judged")):
        result = model.score(refused)
        assert (result.decision, result.p_value) == (NOT_ASSESSABLE, None)
        assert math.isnan(result.score)
        assert reason in " ".join(result.quality.reasons)


def test_alpha_below_the_smallest_p_value_is_refused(model: Bundle, one: Record):
    with pytest.raises(ValueError, match="calibrate with at least 99 records"):
        model.score(one, alpha=0.01)


def test_a_record_without_a_lead_is_compared_with_records_without_one(model: Bundle, one: Record):
    blanked = replace(one, signal=one.signal.copy(), valid=one.valid.copy())
    blanked.signal[8], blanked.valid[8] = 0, False
    found = model.score(blanked)
    assert found.p_group == "11 of 12 leads, without V3"
    assert "V3" not in found.lead_scores
    assert np.isnan(found.map[8]).all()
    ranked = np.asarray(model.card["calibration"][found.p_group])
    assert found.p_value == (1 + (ranked >= found.score).sum()) / (len(ranked) + 1)


@pytest.mark.parametrize(
    ("lost", "group"),
    [
        (["V3", "V1"], "10 of 12 leads, without V1 and V3"),
        (["V6", "II", "I"], "9 of 12 leads, without I, II and V6"),
        (["III", "aVF"], "12 of 12 leads"),  # derived
    ],
)
def test_up_to_three_leads_that_are_lost_have_a_group(
    model: Bundle, one: Record, lost: list[str], group: str
):
    keep = ~np.isin(LEADS, lost)[:, None]
    found = model.score(replace(one, signal=one.signal * keep, valid=one.valid & keep))
    assert found.p_group == group
    assert found.p_value is not None


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (["V1", "V2", "V3", "V4"], "8 of 12 leads can be judged; the model needs 9"),
        (["I", "III"], "no normal records without I and III were calibrated with"),  # III needs I
    ],
)
def test_what_no_normal_was_calibrated_without_is_not_assessable(
    model: Bundle, one: Record, lost: list[str], reason: str
):
    keep = ~np.isin(LEADS, lost)[:, None]
    found = model.score(replace(one, signal=one.signal * keep, valid=one.valid & keep))
    assert (found.decision, found.p_value) == (NOT_ASSESSABLE, None)
    assert (found.quality.grade, found.quality.reasons[-1]) == ("reject", reason)
    prepared = prepare(one, model.signals, keep & np.ones(one.valid.shape, bool))
    judged = model.judge(prepared)  # as a benchmark does, for which it has a score
    assert np.isfinite(judged.score)
    assert np.isnan(judged.p_value)


def test_a_limb_lead_that_cannot_be_derived_anew_is_not_assessable(model: Bundle, one: Record):
    valid = one.valid.copy()
    valid[0, 600:] = valid[1, :400] = False  # I and II are there for 6 s each, together for 2
    valid[2] = False
    quality = model.score(replace(one, valid=valid)).quality
    assert quality.reasons[-1] == "no normal records without III were calibrated with"


def test_each_three_leads_that_are_not_derived_have_a_group(ecg: Ecg):
    parts = [[prepare(record(mv), Preparation()) for mv in ecg(2, seed=s, t=1000)] for s in (1, 2)]
    little = Preparation()
    rule = fit_rule(
        [p.windows[0] for p in parts[0]], [p.valid for p in parts[0]], [np.zeros(0)] * 2, (),
        ("mean",), 3,
    )  # fmt: skip
    run = lambda x: (np.abs(x), np.zeros((len(x), 0)))  # noqa: E731
    groups = calibration_scores(run, short(parts[1]), little, (), rule)
    own = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
    expected = {group_name([LEADS.index(lead) for lead in lost], LEADS): lost
                for n in range(4) for lost in combinations(own, n)}  # fmt: skip
    assert list(groups) == list(expected)
    for name, lost in expected.items():  # the map is what came in, 0 where a lead is lost
        rows = [LEADS.index(lead) for lead in LEADS if lead not in lost]
        scores = [score({"mean": float(np.abs(p.windows[0])[rows].mean())}, rule) for p in parts[1]]
        np.testing.assert_allclose(groups[name], scores, rtol=1e-5)


def test_an_absent_lead_makes_a_record_limited_and_says_so(model: Bundle, one: Record):
    eleven = replace(one, signal=one.signal[:-1], valid=one.valid[:-1], leads=LEADS[:-1])
    assert model.score(eleven).quality == ("limited", ("11 of 12 leads are there",))
    warned = replace(eleven, warnings=("checksum",))
    reasons = ("checksum", "11 of 12 leads are there")
    assert model.score(warned).quality == ("limited", reasons)
    assert model.score(one).quality.grade == "ok"


def test_a_trained_model_has_limits_near_the_ends_of_its_windows_and_goes_by_them(
    model: Bundle, one: Record
):
    assert (len(model.rule.edge), model.rule.edge_step) == (5, 10)
    prepared = prepare(one, model.signals)
    map, _ = model.evidence(prepared)
    flat = relative(map, prepared.valid, model.rule, 100 * model.card["smooth_s"])
    limits = edge_limits(replace(model.rule, edge=(2.0,)), prepared)
    edged = Bundle(model.card | {"rule": model.card["rule"] | {"edge": [2.0]}}, model.run)
    np.testing.assert_allclose(edged.judge(prepared).map, flat / limits, rtol=1e-6)
    assert limits[[0, 9, 10, 989, 990, 999]].tolist() == [2, 2, 1, 1, 2, 2]


def test_nothing_is_told_to_the_maker_of_the_runtime(tmp_path: Path):
    """ONNX Runtime's wheels keep a device's number below HOME, and send it with what they saw."""
    code = "import ecgad; ecgad.load()"
    at_home = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    at_home.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], env=at_home, check=True)
    assert not list(tmp_path.rglob("*onnxruntime*"))


def test_a_long_record_is_judged_over_all_of_its_length(model: Bundle, ecg: Ecg):
    long = record(ecg(1, seed=5, t=2500)[0])
    found = model.score(long)
    assert found.map.shape == (12, 2500)
    assert np.isfinite(found.map).all()


def test_calibration_scores_are_those_of_the_calibration_records_alone(ecg: Ecg, tmp_path: Path):
    parts = [
        [prepare(record(mv), Preparation()) for mv in ecg(6, seed=s, t=1000)] for s in (1, 2, 3)
    ]
    normals = Normals(*parts[:2], short(parts[2]))
    seen: list[bytes] = []

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(x.tobytes())
        return np.abs(x), np.zeros((len(x), 0))

    rule, groups = calibrate(run, normals, Preparation(), ())
    held_out = np.log([np.abs(p.windows).mean() for p in normals.held_out])
    expected = [(np.log(np.abs(p.windows).mean()) - np.mean(held_out)) / np.std(held_out)
                for (p,) in normals.calibration]  # fmt: skip
    np.testing.assert_allclose(groups["12 of 12 leads"], expected, rtol=1e-3)
    assert {len(scores) for scores in groups.values()} == {6}
    assert len(groups) == 1 + 8 + 28 + 56  # the other four are derived when they are lost
    for name, rows in (
        ("11 of 12 leads, without V1", 6),
        ("10 of 12 leads, without II and V1", [1, 6]),
    ):
        without = np.stack([np.delete(p.windows[0], rows, axis=0) for p in parts[2]])
        expected = (np.log(np.abs(without).mean((1, 2))) - np.mean(held_out)) / np.std(held_out)
        np.testing.assert_allclose(groups[name], expected, rtol=1e-3)
    assert not {p.windows.tobytes() for p in normals.train} & set(seen)
    lacks = replace(parts[2][0], valid=parts[2][0].valid & (np.arange(12) != 6)[:, None])
    few = replace(normals, calibration=short([lacks, *parts[2][1:]]))
    _, without = calibrate(run, few, Preparation(), ())
    assert {len(scores) for scores in without.values()} == {5}  # it is no record of all leads


def test_training_and_calibration_records_are_apart_and_the_card_says_how_many(folder: Path):
    data = json.loads((folder / "card.json").read_text())["data"]
    assert (data["train_records"], data["held_out_records"], data["calibration_records"]) == (
        70, 10, 20,
    )  # fmt: skip
    assert "| calibrated on | 20 records; the smallest p-value is 1/21 |" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("given", [np.zeros((12, 1000)), "38.hea"])
def test_what_is_no_record_is_told_how_to_become_one(model: Bundle, one: Record, given: object):
    name = type(given).__name__
    for use in (model.score, lambda x: model.score_many([one, x]), lambda x: train("pca", [x])):
        with pytest.raises(TypeError, match=f"a Record is needed, not {name}: ecgad.read"):
            use(given)
    assert len(model.score_many(iter([one, one]))) == 2


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (lambda r: replace(r, leads=(*LEADS[:-2], "X", "Y")), "there is no V5 and V6"),
        (lambda r: replace(r, signal=r.signal[:, :400], valid=r.valid[:, :400]), "4.0 s long"),
    ],
)
def test_records_that_cannot_be_trained_on_say_why(ecg: Ecg, changed: Callable, why: str):
    records = [changed(record(mv)) for mv in ecg(3, seed=1, t=1000)]
    with pytest.raises(ValueError, match=rf"0 of 3 records can be judged \(one: .*{why}.*\)"):
        train("pca", records)


def test_too_few_records_to_calibrate_are_refused(ecg: Ecg):
    with pytest.raises(ValueError, match="5 of 5 records can be judged; training needs at least"):
        train("mmae", [record(mv) for mv in ecg(5, seed=1, t=1000)])


def test_the_probe_tells_damaged_records_from_their_originals(ecg: Ecg):
    records = [record(mv) for mv in ecg(12, seed=9, t=1000)]
    clean = np.stack([prepare(r, Preparation()).windows[0] for r in records])

    class Remembers:
        """Strange is what it has not seen; `known` is how usual a record is, and so the reverse."""

        whole = ("known",)

        def eval(self) -> "Remembers":
            return self

        def to(self, device: str) -> "Remembers":
            return self

        def parameters(self) -> tuple:
            return ()

        def __call__(self, x):  # noqa: ANN001, ANN204 - torch in, Evidence out

            from ecgad.parts.detector import Evidence

            seen = torch.from_numpy(clean)
            nearest = (seen - x).abs().mean((1, 2)).argmin()
            map = (seen[nearest][None] - x).abs()
            return Evidence(map, -map.mean((1, 2))[:, None])

    probe, of_usual = damage_probe(records, Preparation()), np.ones((12, 1000), bool)
    assert probe(Remembers()) > 0.95
    maps = [np.random.default_rng(i).random((12, 1000)) for i in range(3)]
    told = [np.array([float(i)]) for i in range(3)]
    rule = fit_rule(maps, [of_usual] * 3, told, ("known",), ("known",), 3.0)
    assert probe(Remembers(), rule) < 0.05


@pytest.mark.parametrize("other", ["weights", "whole", "config", "kind"])
def test_parts_of_another_version_are_refused_in_torch(folder: Path, tmp_path: Path, other: str):
    place = shutil.copytree(folder, tmp_path / "older")
    card, weights = json.loads((place / "card.json").read_text()), place / "weights.safetensors"
    if other == "whole":
        card["whole"] = ["error", "patches"]
    elif other == "config":
        card["config"]["lost"] = 4
    elif other == "kind":
        card["config"]["error"] = True
    else:
        save_file({**load_file(weights), "lost.centres": torch.zeros(1)}, weights)
    card |= {"weights_sha256": file_sha256(weights), "created": "2020-02-02"}
    write_card(card, place)
    with pytest.raises(ValueError, match="older is of 2020-02-02, when mmae had other parts"):
        load(place, runtime="torch")
    load(place)  # by its ONNX file


def test_an_export_that_disagrees_is_refused_and_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    detector = load_detector(folder)
    x = np.random.default_rng(0).normal(size=(2, *detector.shape)).astype(np.float32)
    monkeypatch.setattr("ecgad.export.run_torch", lambda model: lambda x: (x * 2, x))
    monkeypatch.setattr("ecgad.export.run_onnx", lambda path: lambda x: (x, x))
    with pytest.raises(ValueError, match="differ by 0.5 of the largest value"):
        export_onnx(detector, tmp_path / "model.onnx", x)
    assert not (tmp_path / "model.onnx").exists()


def test_disagreement_is_relative_to_the_largest_value():
    one, other = np.array([[4.0, 2.0]]), np.array([[4.0, 1.0]])
    empty = np.zeros((1, 0))
    x = np.zeros((1, 1), np.float32)
    assert disagreement(lambda x: (one, empty), lambda x: (other, empty), x) == 0.25
    nan = np.full((1, 2), np.nan)
    assert np.isnan(disagreement(lambda x: (one, one), lambda x: (one, nan), x))


def test_pretraining_comes_first_and_is_done_once(ecg: Ecg, tmp_path: Path):
    parts = [
        [prepare(record(mv), Preparation()) for mv in ecg(6, seed=s, t=1000)] for s in (1, 2, 3)
    ]
    windows = np.concatenate([p.windows for p in parts[0]])
    stages: list[tuple[str, int]] = []
    begin, beside = Budget(steps=3, batch=2), ("quantiles",)
    pretrain = Pretraining(lambda: windows, 6, begin, tmp_path / "kept" / "a.safetensors")
    one, other = (
        learn(
            "mmae", Normals(*parts[:2], short(parts[2])), seed=0, pretrain=pretrain,
            settings=TINY | {"beside": beside}, budget=Budget(steps=2, batch=2),
            report=lambda p: stages.append((p.stage, p.steps)),
        )
        for _ in range(2)
    )  # fmt: skip
    assert stages == [("train", 3), ("train", 2), ("train", 2)]
    assert one.card["pretraining"]["records"] == 6
    assert load_file(tmp_path / "kept" / "a.safetensors")["quantiles.gaussian.weight"].any()
    np.testing.assert_array_equal(one.run(windows[:2])[0], other.run(windows[:2])[0])


def test_the_fingerprint_is_of_what_was_read_not_of_the_last_bits_it_was_prepared_to():
    def of(names: str, nudge: float = 0.0, sha256: str = "1f") -> str:
        windows = np.full((1, 2, 10), 1 + nudge, np.float32)
        valid = np.ones((2, 10), bool)
        made = [
            Prepared(windows, np.zeros(1), valid, (), sha256 and f"{name} {sha256}")
            for name in names
        ]
        return data_fingerprint(Normals(made[:2], made[2:3], short(made[3:])))

    assert of("abcd") == of("abcd", 1e-6)
    assert len({of("abcd"), of("abdc"), of("abc"), of("abcd", sha256="2f")}) == 4
    assert of("abcd", sha256="") != of("abcd", 1e-6, sha256="")  # a record that names no source


def test_a_prepared_record_says_what_it_was_read_from():
    record = read(Path(__file__).parent.parent / "data" / "samples" / "ludb" / "1.hea")
    assert prepare(record, Preparation()).source == f"1 {record.source_sha256}"
    assert not prepare(replace(record, source_sha256=""), Preparation()).source


def test_a_bundle_is_saved_onto_itself_and_pickled_as_its_folder(folder: Path, one: Record):
    model = load(folder)
    assert model.save(folder) == folder
    again = pickle.loads(pickle.dumps(model))
    assert (again.sha256, again.score(one).score) == (model.sha256, model.score(one).score)


def test_the_damage_probe_finds_the_leads_by_name(ecg: Ecg):
    given = [record(mv) for mv in ecg(3, seed=2, t=1000)]
    turned = [
        replace(r, signal=r.signal[::-1].copy(), leads=LEADS[::-1], valid=r.valid) for r in given
    ]
    fit_to = Preparation()
    tell, same = (damage_probe(records, fit_to) for records in (given, turned))
    model = untrained(fit_to)
    assert tell is not None
    assert same is not None
    assert same(model) == tell(model)
    eight = [replace(r, signal=r.signal[:8], valid=r.valid[:8], leads=LEADS[:8]) for r in given]
    assert damage_probe(eight, fit_to) is None


def untrained(preparation: Preparation) -> Detector:
    """Untrained: that it gives some number is enough."""
    torch.manual_seed(0)
    return build("pca", preparation.shape, {})


def test_mmae_learns_from_a_folder_without_any_setting(ecg: Ecg):
    records = [record(mv) for mv in ecg(21, seed=2, t=1000)]
    bundle = train("mmae", records, budget=Budget(steps=0))
    assert bundle.card["config"]["segment"] == [10]
