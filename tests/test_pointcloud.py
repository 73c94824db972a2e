"""parts.synthesis.pointcloud: displacement of points along their normals, and PLY files."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ecgad.parts.synthesis.perlin import Noise, fbm
from ecgad.parts.synthesis.pointcloud import (
    Dent,
    _oriented,
    displace,
    field,
    normals,
    parametrise,
    picture,
    read_points,
    write_points,
)

TILT = Rotation.from_euler("xyz", [0.4, -0.7, 1.1]).as_matrix()


def new(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def sheet() -> np.ndarray:
    """A flat rectangle of 4 x 2, tilted in space, (900, 3)."""
    flat = new(1).uniform([-2, -1], [2, 1], (900, 2))
    return np.column_stack([flat, np.zeros(900)]) @ TILT.T + [5.0, -3.0, 2.0]


@pytest.fixture(scope="module")
def ball() -> np.ndarray:
    """A unit sphere, evenly covered, (1200, 3)."""
    i = np.arange(1200) + 0.5
    height, around = 1 - 2 * i / 1200, np.pi * (1 + 5**0.5) * i
    radius = np.sqrt(1 - height**2)
    return np.column_stack([radius * np.cos(around), radius * np.sin(around), height])


def test_the_plane_keeps_every_distance_of_a_flat_cloud(sheet: np.ndarray):
    plane = parametrise(sheet)
    one, two = new().integers(len(sheet), size=(2, 500))
    np.testing.assert_allclose(
        np.linalg.norm(plane[one] - plane[two], axis=1),
        np.linalg.norm(sheet[one] - sheet[two], axis=1),
        atol=1e-12,
    )


def test_the_longer_side_of_the_cloud_comes_first(sheet: np.ndarray):
    assert np.ptp(parametrise(sheet), axis=0) == pytest.approx([4, 2], rel=0.06)


def test_points_of_a_sheet_move_along_its_normal_and_by_the_noise(sheet: np.ndarray):
    moved, by = displace(sheet, new(), Dent(strength=0.3))
    step = moved - sheet
    np.testing.assert_allclose(np.cross(step, TILT[:, 2]), 0, atol=1e-9)
    np.testing.assert_allclose(np.abs(step @ TILT[:, 2]), by, atol=1e-9)
    assert len(np.unique(np.sign(step @ TILT[:, 2]).round())) == 1  # all to the same side
    np.testing.assert_allclose(by, 0.3 * field(parametrise(sheet), new(), Dent()), atol=1e-12)


def test_normals_of_a_ball_look_outwards_along_the_radius(ball: np.ndarray):
    assert (normals(ball, 16) * ball).sum(1).min() > 0.99
    moved, by = displace(ball, new(), Dent(strength=0.2))
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1 + by, atol=0.01)


def test_a_normal_is_where_a_point_and_its_neighbours_vary_least():
    cloud = new(3).normal(size=(60, 3)) * [3, 2, 1]
    found = normals(cloud, 6)
    for i, point in enumerate(cloud):
        near = np.argsort(np.linalg.norm(cloud - point, axis=1))[:7]  # itself and six
        _, _, directions = np.linalg.svd(cloud[near] - cloud[near].mean(0))
        assert abs(directions[2] @ found[i]) == pytest.approx(1, abs=1e-6)


def test_the_number_of_neighbours_and_the_threshold_are_those_asked_for(ball: np.ndarray):
    dent = Dent(strength=0.3, threshold=0.4, neighbours=5)
    moved, by = displace(ball, new(), dent)
    noise = field(parametrise(ball), new(), dent)
    np.testing.assert_allclose(by, 0.3 * np.maximum(noise - 0.4, 0) / 0.6, atol=1e-12)
    np.testing.assert_allclose(moved, ball + by[:, None] * normals(ball, 5), atol=1e-12)


def test_normals_of_two_balls_apart_look_outwards_too(ball: np.ndarray):
    both = np.concatenate([ball, ball + [9.0, 0, 0]])
    out = normals(both, 12)
    for part in (out[:1200], out[1200:]):
        assert (part * ball).sum(1).min() > 0.98


def test_normals_of_a_thin_lens_look_outwards_all_around_its_rim(ball: np.ndarray):
    for neighbours in (10, 16):
        lens, out = ball * [1, 1, 0.15], ball / [1, 1, 0.15]
        assert (normals(lens, neighbours) * out).sum(1).min() > 0


def test_a_side_is_handed_on_by_gentle_turns_and_not_by_short_ways():
    points = np.array([[0.0, 0, 0], [1, 1, 0], [0.1, 0, 0]])  # the turn from 0 to 2 is over 1
    turned = np.deg2rad([0, 50, 100])
    given = np.stack([np.cos(turned), np.sin(turned), 0 * turned], axis=1)
    near = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]])
    first, middle, last = _oriented(points, given * [[1], [-1], [1]], near)
    assert first @ middle > 0
    assert middle @ last > 0


def test_all_of_a_terrace_looks_to_one_side_the_same_wherever_it_stands():
    along, across = (a.ravel() for a in np.meshgrid(np.arange(30.0), np.arange(10.0)))
    terrace = np.column_stack([along, across, np.clip(along - 8, 0, 9)])  # flat, a slope, flat
    up = normals(terrace, 8)[:, 2]
    assert (up * up[0] > 0.5).all()
    for height in (99, -99):
        np.testing.assert_allclose(normals(terrace + [0, 0, height], 8)[:, 2], up, atol=1e-6)


def test_noise_fills_0_to_1_and_centred_noise_has_both_signs(sheet: np.ndarray):
    noise = field(parametrise(sheet), new(), Dent())
    assert 0 <= noise.min() < 0.1
    assert 0.9 < noise.max() <= 1
    by = displace(sheet, new(), Dent(strength=1, centred=True))[1]
    np.testing.assert_allclose(by, 2 * noise - 1, atol=1e-12)
    deep = displace(sheet, new(), Dent(strength=1, centred=True, threshold=0.5))[1]
    np.testing.assert_array_equal(deep < 0, 2 * noise - 1 < -0.5)
    np.testing.assert_array_equal(deep > 0, 2 * noise - 1 > 0.5)


def test_the_field_is_a_fractal_sum_over_the_plane_in_units_of_its_longer_side():
    dent = Dent(scale=3, octaves=3, persistence=0.7, lacunarity=1.7, resolution=9)
    axes = np.linspace(0, 1, 9), np.linspace(0, 0.5, 9)
    at = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    values = fbm(at, [1, 0.5], Noise(3, 3, 0.7, 1.7), new())
    expected = (values - values.min()) / np.ptp(values)
    found = field(4 * at.reshape(-1, 2) - [7, 1], new(), dent)
    np.testing.assert_allclose(found, expected.ravel(), atol=1e-9)


def test_points_on_a_line_and_noise_that_is_nowhere_are_no_fault():
    line = np.arange(40.0)[:, None] * [1, 0, 0]
    assert np.isfinite(displace(line, new())[0]).all()
    corners = Dent(scale=1, octaves=1, resolution=2)  # Perlin noise is 0 on its lattice
    square = np.array([[0.0, 0.0], [1.0, 1.0], [0.3, 0.6]])
    np.testing.assert_array_equal(field(square, new(), corners), 0)


def test_the_field_is_read_bilinearly():
    dent = Dent(scale=3, resolution=5, octaves=1)
    corners = np.array([[0.0, 0.0], [1.0, 1.0], [0.25, 0.5], [0.5, 0.5], [0.25, 0.75], [0.5, 0.75]])
    inside = np.array([[0.3, 0.6]])
    values = field(np.concatenate([corners, inside]), new(), dent)
    u, v = 0.2, 0.4  # of the cell that holds the point
    expected = (1 - v) * ((1 - u) * values[2] + u * values[3]) + v * (
        (1 - u) * values[4] + u * values[5]
    )
    assert values[6] == pytest.approx(expected, abs=1e-12)


def test_a_threshold_leaves_most_points_where_they_were_and_makes_no_step(sheet: np.ndarray):
    dent = Dent(strength=0.2, threshold=0.7, octaves=1)
    moved, by = displace(sheet, new(), dent)
    noise = field(parametrise(sheet), new(), dent)
    np.testing.assert_array_equal(by > 0, noise > 0.7)
    assert 0.02 < (by > 0).mean() < 0.4
    np.testing.assert_array_equal(moved[by == 0], sheet[by == 0])
    assert by[(noise > 0.7) & (noise < 0.72)].max() < 0.02


def test_scale_and_octaves_make_the_surface_rougher(sheet: np.ndarray):
    def roughness(dent: Dent) -> float:
        axis = np.linspace(0, 4, 65)
        plane = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
        noise = field(plane.reshape(-1, 2), new(), dent).reshape(65, 65)
        return np.abs(np.diff(noise, n=2, axis=0)).mean()

    base = Dent(scale=2, octaves=1, resolution=65)
    assert roughness(replace(base, scale=8)) > 4 * roughness(base)
    assert roughness(replace(base, octaves=4)) > 2 * roughness(base)


def test_strength_is_the_largest_displacement_and_the_seed_decides(sheet: np.ndarray):
    one, again, other = (displace(sheet, new(s), Dent(strength=0.5))[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert 0.4 < np.linalg.norm(one - sheet, axis=1).max() <= 0.5


@pytest.mark.parametrize("name", ["cloud.npy", "cloud.ply"])
def test_points_come_back_from_a_file_bit_for_bit(ball: np.ndarray, tmp_path: Path, name: str):
    for by in (None, ball[:, 0]):
        write_points(tmp_path / name, ball, by)
        np.testing.assert_array_equal(read_points(tmp_path / name), ball)


def test_an_ascii_file_with_displacement_comes_back(ball: np.ndarray, tmp_path: Path):
    path = tmp_path / "cloud.ply"
    write_points(path, ball, ball[:, 0], ascii=True)
    assert b"property double displacement" in path.read_bytes()
    np.testing.assert_array_equal(read_points(path), ball)


def test_a_scanner_s_file_with_colours_and_faces_is_read(tmp_path: Path):
    vertices = np.array(
        [(1.5, 9, -2.0, 3.0), (0.0, 8, 4.0, 5.25)],
        dtype=[("x", "<f4"), ("red", "u1"), ("y", "<f4"), ("z", "<f4")],
    )
    head = (
        "ply\nformat binary_little_endian 1.0\ncomment made by hand\nelement vertex 2\n"
        "property float x\nproperty uchar red\nproperty float32 y\nproperty float z\n"
        "element face 1\nproperty list uchar int vertex_indices\nelement edge 0\n"
        "property int vertex1\nend_header\n"
    )
    path = tmp_path / "scan.ply"
    path.write_bytes(head.encode() + vertices.tobytes() + b"\x02\0\0\0\0\1\0\0\0")
    np.testing.assert_array_equal(read_points(path), [[1.5, -2.0, 3.0], [0.0, 4.0, 5.25]])


@pytest.mark.parametrize(
    ("names", "code", "value"),
    [
        ("char int8", "b", -3), ("uchar uint8", "B", 200), ("short int16", "h", -300),
        ("ushort uint16", "H", 60000), ("int int32", "i", -70000), ("uint uint32", "I", 2**31 + 9),
        ("float float32", "f", -0.5), ("double float64", "d", 0.1),
    ],
)  # fmt: skip
def test_numbers_of_every_type_are_read(tmp_path: Path, names: str, code: str, value: float):
    for name in names.split():
        head = "".join(f"property {name} {axis}\n" for axis in "zyx")
        head = f"ply\nformat binary_little_endian 1.0\nelement vertex 1\n{head}end_header\n"
        (tmp_path / "one.ply").write_bytes(head.encode() + struct.pack(f"<3{code}", 1, 2, value))
        np.testing.assert_array_equal(read_points(tmp_path / "one.ply"), [[value, 2, 1]])


def test_faces_behind_the_vertices_of_an_ascii_file_are_left(tmp_path: Path):
    head = "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
    rest = "property float z\nelement face 1\nproperty list uchar int i\nend_header\n"
    (tmp_path / "a.ply").write_text(f"{head}{rest}1 2 3.5\n3 0 0 0\n", encoding="ascii")
    np.testing.assert_array_equal(read_points(tmp_path / "a.ply"), [[1, 2, 3.5]])


@pytest.mark.parametrize("shape", [(4, 2), (4, 5), (12,)])
def test_an_array_of_another_shape_is_no_cloud(tmp_path: Path, shape: tuple[int, ...]):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(ValueError, match=r"a.npy: \(.*\) are no points; \(n, 3\) are needed"):
        read_points(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"solid", "no PLY file"),
        (b"ply\nformat binary_big_endian 1.0\nelement vertex 0\nproperty float x\n"
         b"property float y\nproperty float z\nend_header\n", "PLY binary_big_endian; ascii and"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n",
         "vertices have x; x, y, z are needed"),
        (b"ply\nformat ascii 1.0\nelement face 1\nend_header\n", "first element is not 'vertex'"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n",
         "a vertex property is a list"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_points_is_refused_with_its_name(
    tmp_path: Path, raw: bytes, reason: str
):
    path = tmp_path / "wrong.ply"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"wrong.ply: .*{reason}"):
        read_points(path)


def test_a_picture_shows_every_point_in_its_colour_and_the_cloud_in_its_shape(sheet: np.ndarray):
    moved, by = displace(sheet, new(), Dent(centred=True))
    axes = picture(moved, by - 1).axes[0]
    (dots,) = axes.collections
    np.testing.assert_array_equal(np.sort(np.asarray(dots.get_array())), np.sort(by - 1))
    most = np.abs(by - 1).max()
    assert dots.get_clim() == (-most, most)  # what did not move is grey
    sides = np.array(axes.get_box_aspect())
    np.testing.assert_allclose(sides / sides[0], np.ptp(moved, axis=0) / np.ptp(moved[:, 0]))


def test_too_few_points_and_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"points \(16, 3\); \(n, 3\) with n above 16"):
        displace(np.zeros((16, 3)), new())
    with pytest.raises(ValueError, match="threshold is 1"):
        Dent(threshold=1)
    with pytest.raises(ValueError, match="threshold is -0.1"):
        Dent(threshold=-0.1)
    with pytest.raises(ValueError, match="a plane needs 3 neighbours"):
        Dent(neighbours=2)
    with pytest.raises(ValueError, match="a field 2 points a side"):
        Dent(resolution=1)
