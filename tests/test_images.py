"""Benchmarks of images: made files in the published form, and what becomes of them."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgad import evaluate as ev
from ecgad import image_plans, load
from ecgad.__main__ import main
from ecgad.benchmarks import lgg, pneumonia, split
from ecgad.benchmarks.images import case, sets
from ecgad.bundle import SHIPPED
from ecgad.flops import count
from ecgad.methods import build, names
from ecgad.prepare.image import Image, ImagePreparation, prepare_image, shrunk
from ecgad.record import LEADS, Record
from ecgad.report.leaderboard import read_rows
from ecgad.score import relative
from ecgad.train import Budget

Pictures = Callable[..., np.ndarray]
PARTS = ("train", "held_out", "calibration", "test")
SQUARE = (slice(40, 72), slice(48, 80))  # of 128 pixels: four patches of the 64 that remain


@pytest.fixture(scope="session")
def grey(pictures: Pictures) -> Pictures:
    """`n` pictures of bytes, (n, size, size)."""

    def made(n: int, *, seed: int, size: int) -> np.ndarray:
        return (100 + 60 * pictures(n, seed=seed, size=size, channels=1)[:, 0]).astype(np.uint8)

    return made


def radiographs(root: Path, grey: Pictures) -> dict[str, np.ndarray]:
    """A file like the published one: 60, 20 and 20 images, a third of them abnormal."""
    data = {}
    for seed, (part, n) in enumerate({"train": 60, "val": 20, "test": 20}.items()):
        x, y = grey(n, seed=seed, size=14), np.arange(n) % 3 == 0
        x[y] = np.random.default_rng(seed).permuted(x[y], axis=2)
        data |= {f"{part}_images": x, f"{part}_labels": y[:, None].astype(np.uint8)}
    save(root, data)
    return data


def save(root: Path, data: dict[str, np.ndarray]) -> None:
    np.savez(root / "pneumoniamnist.npz", **data)  # type: ignore


def slices(root: Path, grey: Pictures) -> dict[str, np.ndarray]:
    """A file like the excerpt: 20 patients of 6 slices, every third with a bright square."""
    patient = np.repeat([f"P{i:02}" for i in range(20)], 6)
    strange = np.arange(120) % 3 == 0
    x, masks = grey(120, seed=5, size=128), np.zeros((120, 128, 128), np.uint8)
    masks[strange, *SQUARE] = 1
    x[masks > 0] += 90
    data = {
        "images": x,
        "masks": np.packbits(masks, axis=-1),
        "patient": patient,
        "slice": np.tile(np.arange(6, dtype=np.int16), 20),
        "split": np.repeat(["train", "val", "test"], (72, 12, 36)),
    }
    np.savez(root / "lgg_flair_128.npz", **data)  # type: ignore
    return data


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, words)))
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, grey: Pictures) -> Path:
    """A leaderboard of the nearest-neighbour control on made slices, from the command line."""
    root = tmp_path_factory.mktemp("lgg")
    slices(root, grey)
    words = "--method", "knn", "--seeds", "1", "--quiet", "--out", root / "board"
    assert run("evaluate", "lgg", "--data", root, *words) == 0
    return root / "board"


# What a benchmark is


def test_normals_alone_are_learned_from_and_the_official_test_set_is_reported_on(
    tmp_path: Path, grey: Pictures
):
    data = radiographs(tmp_path, grey)
    found = pneumonia.load(tmp_path)
    learned = [c for part in PARTS[:3] for c in getattr(found, part)]
    assert [len(getattr(found, part)) for part in PARTS] == [35, 9, 9, 20]
    normals = [data[f"{p}_images"][data[f"{p}_labels"][:, 0] == 0] for p in ("train", "val")]
    ours = {c.image.pixels.astype(np.uint8).tobytes() for c in learned}
    assert ours == {x.tobytes() for x in np.concatenate(normals)}
    assert [c.abnormal for c in found.test] == (data["test_labels"][:, 0] == 1).tolist()
    assert all(
        np.array_equal(c.image.pixels[0], x)
        for c, x in zip(found.test, data["test_images"], strict=True)
    )


def test_the_same_image_is_never_in_two_sets(tmp_path: Path, grey: Pictures):
    data = radiographs(tmp_path, grey)
    again = data["train_images"]
    again[1:40] = again[1]  # 26 of them normal
    again[41] = data["test_images"][1]
    save(tmp_path, data)
    found = pneumonia.load(tmp_path)
    held = [{c.image.source_sha256 for c in getattr(found, part)} for part in PARTS]
    assert sum(map(len, held)) == len(set().union(*held))
    assert sum(len(getattr(found, part)) for part in PARTS[:3]) == 53 - 1


def test_a_mask_has_eight_pixels_to_a_byte_and_is_strange_where_half_of_a_block_is(
    tmp_path: Path, grey: Pictures
):
    data = slices(tmp_path, grey)
    mask = np.zeros((128, 128), np.uint8)
    mask[10:20, 31:40] = 1  # 31: half of a block, in the last bit of a byte
    mask[50, 60] = 1  # a quarter of one
    np.savez(tmp_path / "lgg_flair_128.npz", **data | {"masks": np.packbits(mask, axis=-1)[None]
             .repeat(120, 0)})  # fmt: skip  # type: ignore
    expected = np.zeros((1, 64, 64), bool)
    expected[0, 5:10, 15:20] = True
    assert all(np.array_equal(c.truth, expected) for c in lgg.cases(tmp_path)["test"])


def test_slices_of_a_patient_are_in_one_set_and_only_those_without_tumour_are_learned_from(
    tmp_path: Path, grey: Pictures
):
    data = slices(tmp_path, grey)
    found = lgg.load(tmp_path)
    people = [{c.patient for c in getattr(found, part)} for part in PARTS]
    assert list(map(len, people)) == [9, 2, 3, 6]
    assert len(set().union(*people)) == 20
    training = {f"lgg-{p}" for p in data["patient"][data["split"] == "train"]}
    assert people[0] | people[2] == training
    assert not any(c.abnormal or c.truth.any() for part in PARTS[:3] for c in getattr(found, part))
    assert sum(c.abnormal for c in found.test) == 12


def test_a_file_that_has_a_patient_in_two_sets_is_refused(tmp_path: Path, grey: Pictures):
    data = slices(tmp_path, grey)
    data["patient"][-1] = "P00"
    np.savez(tmp_path / "lgg_flair_128.npz", **data)  # type: ignore
    with pytest.raises(ValueError, match="patient lgg-P00 is in .* and in test"):
        lgg.load(tmp_path)


def test_sets_to_learn_from_hold_nothing_abnormal():
    some = [case(np.eye(4) + i, f"i{i}", "s", abnormal=i == 1, patient=f"p{i}") for i in range(4)]
    with pytest.raises(ValueError, match="i1 in held_out is not normal"):
        sets([[c] for c in some], "s", "none", {})


def test_a_missing_file_is_named_with_where_it_is_published(tmp_path: Path):
    with pytest.raises(ValueError, match=r"pneumoniamnist\.npz.* is not there.*medmnist"):
        pneumonia.load(tmp_path)


# Preparing


def test_images_are_scaled_by_the_training_images_alone(tmp_path: Path, grey: Pictures):
    data = radiographs(tmp_path, grey)
    found = pneumonia.load(tmp_path)
    x = np.stack([c.image.pixels for c in found.train])
    made = found.preparation
    assert isinstance(made, ImagePreparation)
    assert (made.mean, made.deviation) == (pytest.approx([x.mean()]), pytest.approx([x.std()]))
    save(tmp_path, data | {"test_images": data["test_images"] // 2})
    assert pneumonia.load(tmp_path).preparation == made
    prepared = np.stack([prepare_image(c.image, made).windows for c in found.train])
    assert prepared.shape == (35, 1, 1, 14, 14)
    assert (prepared.mean(), prepared.std()) == pytest.approx((0, 1), abs=1e-5)


def test_each_channel_has_its_own_scale():
    x = np.random.default_rng(0).normal([[[3.0]], [[-50.0]]], [[[2.0]], [[7.0]]], (40, 2, 5, 6))
    made = ImagePreparation.of(Image(one, "i") for one in x)
    assert made.shape == (2, 5, 6)
    z = np.concatenate([prepare_image(Image(one, "i"), made).windows for one in x])
    assert z.mean((0, 2, 3)) == pytest.approx([0, 0], abs=1e-5)
    assert z.std((0, 2, 3)) == pytest.approx([1, 1], abs=1e-5)


def test_an_image_of_another_shape_or_with_nan_is_refused_by_name():
    made = ImagePreparation((1, 4, 4), (0.0,), (1.0,))
    with pytest.raises(ValueError, match=r"image odd is of shape \(1, 4, 5\).*\(1, 4, 4\)"):
        prepare_image(Image(np.zeros((1, 4, 5)), "odd"), made)
    with pytest.raises(ValueError, match="image bad holds NaN"):
        prepare_image(Image(np.full((1, 4, 4), np.nan), "bad"), made)
    with pytest.raises(ValueError, match="deviations above 0"):
        ImagePreparation.of([Image(np.ones((1, 4, 4)), "blank")] * 3)


def test_an_image_shrinks_by_the_means_of_its_blocks():
    x = np.arange(16.0).reshape(1, 4, 4)
    assert shrunk(x, 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]
    with pytest.raises(ValueError, match="4 x 4 pixels do not fall into 3 x 3 blocks"):
        shrunk(x, 3)


# Plans


@pytest.mark.parametrize("side", [28, 64])
@pytest.mark.parametrize("name", names())
def test_every_method_has_a_row_that_can_be_built(name: str, side: int):
    method, settings = image_plans.plan(name, (1, side, side))
    if "lite" in str(settings):
        pytest.importorskip("efficientnet_lite_pytorch")
    assert method == name
    model = build(method, (1, side, side), settings)
    assert model.shape == (1, side, side)
    assert count(model).macs_record > 0  # no operation of unknown cost


@pytest.mark.parametrize(
    ("sides", "size"), [((28, 28), 4), ((64, 64), 8), ((128, 128), 16), ((60, 90), 6), ((5, 7), 1)]
)
def test_a_patch_tiles_both_sides_and_at_least_seven_fit_on_each(sides, size):
    assert image_plans.patch((1, *sides)) == size


def test_a_row_that_only_electrocardiograms_have_is_refused(tmp_path: Path, grey: Pictures):
    radiographs(tmp_path, grey)
    with pytest.raises(ValueError, match="no row 'mmae-rhythm' for images; known are pca, knn"):
        ev.trained("mmae-rhythm", pneumonia.load(tmp_path), 0, tmp_path / "m")


def test_all_rows_have_the_equal_budget(tmp_path: Path, grey: Pictures, monkeypatch: Any):
    radiographs(tmp_path, grey)
    found = pneumonia.load(tmp_path)
    asked = []
    monkeypatch.setattr(ev, "learn", lambda *a, budget, **k: asked.append(budget) or 1 / 0)
    for name in ("mmae", "fader"):
        with pytest.raises(ZeroDivisionError):
            ev.trained(name, found, 0, tmp_path / name)
    seen = min(ev.EQUAL.steps, -(-75 * len(found.train) // ev.EQUAL.batch))
    assert asked == [Budget(seen, ev.EQUAL.batch)] * 2


# Rows


def test_a_planted_bright_square_is_found_in_the_image_and_tells_it_from_others(board: Path):
    found = {r["metric"]: r for r in read_rows(board / "lgg.csv")}
    assert float(found["point_auroc"]["value"]) > 0.97
    assert float(found["record_auroc"]["value"]) > 0.97
    assert [found["record_auroc"][k] for k in ("records", "abnormal")] == ["36", "12"]


def test_the_points_of_images_are_pixels_and_nothing_of_time_or_leads_is_told(
    board: Path, grey: Pictures
):
    rows = read_rows(board / "lgg.csv")
    one = load(board / "lgg" / "knn-0", kind="images")
    test = lgg.load(board.parent).test
    judged = [one.judge(prepare_image(c.image, one.preparation)) for c in test]  # type: ignore
    y = np.concatenate([c.truth.ravel() for c in test])  # type: ignore
    s = np.concatenate([j.map.ravel() for j in judged])
    told = {r["metric"]: float(r["value"] or "nan") for r in rows}  # too few calibrate for a rate
    assert told["point_auroc"] == pytest.approx(roc_auc_score(y, s), abs=1e-4)
    assert told["point_auprc"] == pytest.approx(average_precision_score(y, s), abs=1e-4)
    assert {k for k in told if not k.startswith(("record", "sens", "partial", "false"))} == {
        "point_auroc",
        "point_auprc",
    }


def test_a_map_is_smoothed_by_the_pixels_of_the_preparation_in_both_directions(board: Path):
    one = load(board / "lgg" / "knn-0", kind="images")
    prepared = prepare_image(lgg.load(board.parent).test[0].image, one.preparation)  # type: ignore
    raw, _ = one.evidence(prepared)
    expected = relative(raw, prepared.valid, one.rule, one.preparation.smooth_px)  # type: ignore
    assert np.array_equal(one.judge(prepared).map, expected)
    assert not np.array_equal(expected, relative(raw, prepared.valid, one.rule, 0.1))


def test_p_values_are_counted_among_the_calibration_images(board: Path):
    one = load(board / "lgg" / "knn-0", kind="images")
    calibration = lgg.load(board.parent).calibration
    judged = [one.judge(prepare_image(c.image, one.preparation)) for c in calibration]  # type: ignore
    assert list(one.calibration.groups) == ["all images"]
    usual = one.calibration.groups["all images"]
    assert sorted(j.score for j in judged) == pytest.approx(usual.tolist(), abs=1e-3)
    p = (1 + np.sum(usual >= judged[0].score)) / (len(calibration) + 1)
    assert judged[0].p_value == pytest.approx(p)


def test_a_killed_training_carries_on_and_ends_with_the_same_rows(
    tmp_path: Path, grey: Pictures, monkeypatch: pytest.MonkeyPatch
):
    radiographs(tmp_path, grey)
    small = {"segment": (2, 2), "width": 8, "depth": 1, "heads": 2, "recordwide": False}
    monkeypatch.setattr(image_plans, "plan", lambda name, shape: (name, small))
    monkeypatch.setattr(ev, "EQUAL", Budget(steps=150, batch=4))
    told: list[str] = []

    def kill(line: str) -> None:
        told.append(line)
        if "105/105" in line:  # after the checkpoint of step 100
            raise KeyboardInterrupt

    def rows(out: str, report: Callable[[str], None]) -> list[dict[str, str]]:
        how: Any = {"methods": ["fader"], "seeds": 1, "report": report}
        table = read_rows(ev.evaluate("pneumonia", tmp_path, tmp_path / out, **how))
        return [{k: v for k, v in r.items() if k != "train_seconds"} for r in table]

    with pytest.raises(KeyboardInterrupt):
        rows("a", kill)
    assert (tmp_path / "a/pneumonia/fader-0/checkpoint.pt").is_file()
    again: list[str] = []
    resumed = rows("a", again.append)
    assert not any("100/105" in line for line in again)
    assert resumed == rows("b", lambda line: None)
    again.clear()
    assert resumed == rows("a", again.append)
    assert again == ["fader, seed 0", "scoring 20 records"]  # and no step: the bundle is there
    assert not list((tmp_path / "a/pneumonia/fader-0").glob("*checkpoint.pt"))


# Records and images are not taken for each other


def test_no_verb_for_records_takes_a_model_of_images(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = board / "lgg" / "knn-0"
    sample = Path(__file__).parent.parent / "data/samples/ludb/1.hea"
    for words in (("score", sample), ("screen", sample, "--out", tmp_path / "out")):
        assert run(*words, "--model", model) == 2
        assert "is a model of images of 1 x 64 x 64; needed is one of signals" in (
            capsys.readouterr().err
        )
    assert not (tmp_path / "out").exists()


def test_a_model_of_images_comes_to_another_process_as_one_of_images(board: Path):
    one = pickle.loads(pickle.dumps(load(board / "lgg" / "knn-0", kind="images")))
    assert repr(one) == "Bundle('knn-0', knn, images of 1 x 64 x 64)"


def test_a_model_of_images_in_hand_scores_no_record(board: Path):
    one = load(board / "lgg" / "knn-0", kind="images")
    flat = Record(np.ones((12, 1000), np.float32), 100.0, LEADS, np.ones((12, 1000), bool), "r")
    with pytest.raises(ValueError, match="knn-0 is a model of images of 1 x 64 x 64"):
        one.score(flat, alpha=0.5)


def test_a_model_of_signals_or_of_other_images_is_refused_by_an_image_benchmark(
    board: Path, tmp_path: Path, grey: Pictures, capsys: pytest.CaptureFixture[str]
):
    radiographs(tmp_path, grey)
    words = ("evaluate", "pneumonia", "--data", tmp_path, "--out", tmp_path / "out", "--model")
    assert run(*words, SHIPPED) == 2
    assert "is a model of 12 leads; needed is one of images" in capsys.readouterr().err
    assert run(*words, board / "lgg" / "knn-0") == 2
    assert "is of shape (1, 14, 14); the model is for (1, 64, 64)" in capsys.readouterr().err


def test_the_card_says_that_it_is_of_images_and_nothing_of_leads(board: Path):
    folder = board / "lgg" / "knn-0"
    card = json.loads((folder / "card.json").read_text("utf-8"))
    assert card["preparation"]["kind"] == "images"
    assert not {"leads", "rate_hz", "band_hz"} & set(card["preparation"])
    page = (folder / "README.md").read_text("utf-8")
    assert "Scores an image of 1 x 64 x 64 (channels, height, width)" in page
    assert "BY-NC-SA" in page
    assert not [word for word in ("ECG", "Hz", "leads") if word in page]


def test_a_case_gives_a_record_or_an_image_and_never_one_for_the_other():
    image = case(np.eye(3), "picture", "s", abnormal=False, patient="p")
    with pytest.raises(TypeError, match="picture is an image, not a record"):
        _ = image.record
    assert image.case_id == "picture"
    assert split([image], (0.5,), seed=0)[0] in ([image], [])
