"""3D-PNAS as published: bumps and pits on point clouds, by Perlin noise along the normals.

Paper: Cheng & Du, arXiv 2504.12856. For points P (n, 3):

    1 parameterise  P_c = P - mean = U S V^T,   P_2D = P_c V_1:2
    2 noise field   on a grid over [min P_2D, max P_2D], octaves, then (n - min) / (max - min)
    3 sample        n_i, bilinear in the field at P_2D,i
    4 displace      p'_i = p_i + strength n_i N_i,   N_i the normal of the nearest neighbours' plane

Steps 3 and 4 were not public in detail when this was written, but for "along its normal direction".
Normals are oriented by a minimum spanning tree over neighbours (Hoppe et al., SIGGRAPH 1992). The
plane folds closed surfaces: front and back get the same noise. As published a displacement has one
sign; `centred` takes bumps and pits. Left out: faces and other properties of PLY files are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import KDTree

from ecgad.parts.synthesis.perlin import Noise, fbm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLY = {
    "char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4",
    "float": "<f4", "double": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2",
    "int32": "<i4", "uint32": "<u4", "float32": "<f4", "float64": "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class Dent:
    """The paper's three controls, and the choices it leaves open."""

    scale: float = 4.0  # cells of the noise along the longer side of the plane
    strength: float = 0.05  # the largest displacement, in the unit of the points
    octaves: int = 4
    persistence: float = 0.5
    lacunarity: float = 2.0
    threshold: float = 0.0  # of the noise's size: below it nothing moves, from it on softly
    centred: bool = False  # noise in -1..1, bumps and pits, instead of 0..1
    neighbours: int = 16  # of a normal
    resolution: int = 128  # points of the field along each side

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; the noise lies in 0 .. 1")
        if self.neighbours < 3 or self.resolution < 2:
            raise ValueError(f"{self}: a plane needs 3 neighbours, a field 2 points a side")


def displace(
    points: np.ndarray, rng: np.random.Generator, dent: Dent | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`points` (n, 3) moved along their normals: the cloud (n, 3), and by how much (n,), signed.

    Where that is 0 a point stays bit for bit. Raises `ValueError` for fewer points than a normal
    needs.
    """
    dent = dent or Dent()
    if points.ndim != 2 or points.shape[1] != 3 or len(points) <= dent.neighbours:
        raise ValueError(
            f"points {points.shape}; (n, 3) with n above {dent.neighbours} are needed for normals"
        )
    noise = field(parametrise(points), rng, dent)
    if dent.centred:
        noise = 2 * noise - 1
    above = np.maximum(np.abs(noise) - dent.threshold, 0) / (1 - dent.threshold)
    by = dent.strength * np.sign(noise) * above
    return points + by[:, None] * normals(points, dent.neighbours), by


def parametrise(points: np.ndarray) -> np.ndarray:
    """Coordinates of `points` (n, 3) in the plane of their two main directions, (n, 2)."""
    centred = points - points.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:2].T


def field(plane: np.ndarray, rng: np.random.Generator, dent: Dent) -> np.ndarray:
    """The noise at points of the plane (n, 2): a grid's worth, scaled to 0..1, read bilinearly."""
    low, size = plane.min(0), np.maximum(np.ptp(plane, axis=0), 1e-12)
    sides = [np.linspace(0, s, dent.resolution) for s in size / size.max()]
    grid = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)  # (r, r, 2)
    noise = Noise(dent.scale, dent.octaves, dent.persistence, dent.lacunarity)
    values = fbm(grid, [side[-1] for side in sides], noise, rng)
    values = (values - values.min()) / max(np.ptp(values), 1e-12)
    return RegularGridInterpolator(sides, values)((plane - low) / size.max())


def normals(points: np.ndarray, neighbours: int) -> np.ndarray:
    """Unit normals (n, 3): the direction in which a point's neighbours vary least, oriented."""
    near = np.asarray(KDTree(points).query(points, neighbours + 1)[1])  # itself is one of them
    around = points[near] - points[near].mean(1, keepdims=True)  # (n, neighbours + 1, 3)
    _, vectors = np.linalg.eigh(np.swapaxes(around, 1, 2) @ around)
    return _oriented(points, vectors[:, :, 0], near)


def _oriented(points: np.ndarray, normals: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Neighbours agree; in each connected piece the point farthest out looks outwards."""
    n, k = near.shape
    rows, columns = np.repeat(np.arange(n), k), near.ravel()
    bend = 1 - np.abs((normals[rows] * normals[columns]).sum(1)) + 1e-9  # 0 would be no edge
    tree = minimum_spanning_tree(csr_array((bend, (rows, columns)), shape=(n, n)))
    out, away = normals.copy(), points - points.mean(0)
    pieces, piece = connected_components(tree, directed=False)
    for number in range(pieces):
        inside = np.flatnonzero(piece == number)
        root = inside[np.linalg.norm(away[inside], axis=1).argmax()]
        if out[root] @ away[root] < 0:
            out[root] *= -1
        order, parent = breadth_first_order(tree, root, directed=False)
        for i in order[1:]:
            if out[i] @ out[parent[i]] < 0:
                out[i] *= -1
    return out


def read_points(path: Path | str) -> np.ndarray:
    """The points of a `.npy` or a PLY file (ascii, or binary little endian), (n, 3).

    Raises `ValueError` that names the file for anything else.
    """
    path = Path(path)
    try:
        points = np.load(path) if path.suffix == ".npy" else _read_ply(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if points.ndim != 2 or points.shape[1] not in (3, 4):
        raise ValueError(f"{path}: {points.shape} are no points; (n, 3) are needed")
    return points[:, :3].astype(float)


def write_points(
    path: Path | str, points: np.ndarray, by: np.ndarray | None = None, *, ascii: bool = False
) -> None:
    """`points` (n, 3) as `.npy`, else as PLY; with `by` (n,) as `displacement`, a fourth column."""
    path = Path(path)
    if path.suffix == ".npy":
        np.save(path, points if by is None else np.column_stack([points, by]))
        return
    names = ["x", "y", "z"] + (["displacement"] if by is not None else [])
    rows = np.column_stack([points] if by is None else [points, by]).astype("<f8")
    header = "\n".join([
        "ply",
        f"format {'ascii' if ascii else 'binary_little_endian'} 1.0",
        f"element vertex {len(rows)}",
        *(f"property double {name}" for name in names),
        "end_header\n",
    ])  # fmt: skip
    body = "".join(" ".join(map(repr, row)) + "\n" for row in rows.tolist()).encode()
    path.write_bytes(header.encode() + (body if ascii else rows.tobytes()))


def _read_ply(raw: bytes) -> np.ndarray:
    head, end, body = raw.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    if not end or lines[0] != ["ply"]:
        raise ValueError("no PLY file: it begins with 'ply' and its header ends with 'end_header'")
    kind = next((line[1] for line in lines if line[0] == "format"), "of no format")
    count, columns = _vertices(lines)
    if kind == "ascii":
        rows = [line.split() for line in body.decode("ascii").splitlines()[:count]]
        table: Any = dict(zip(columns, np.array(rows, dtype=float).T, strict=True))
    elif kind == "binary_little_endian":
        table = np.frombuffer(body, np.dtype(list(columns.items())), count)
    else:
        raise ValueError(f"PLY {kind}; ascii and binary_little_endian are read")
    return np.column_stack([table[axis] for axis in "xyz"])


def _vertices(lines: list[list[str]]) -> tuple[int, dict[str, str]]:
    """How many vertices, and their properties with their types; they must come first."""
    elements = [i for i, line in enumerate(lines) if line[:1] == ["element"]]
    if not elements or lines[elements[0]][1] != "vertex":
        raise ValueError("the first element is not 'vertex'; write the vertices first")
    last = elements[1] if len(elements) > 1 else len(lines)
    found = [line for line in lines[elements[0] : last] if line[0] == "property"]
    if unknown := [line[1] for line in found if line[1] not in _PLY]:
        raise ValueError(f"a vertex property is a {unknown[0]}; plain numbers are read")
    columns = {name: _PLY[kind] for _, kind, name in found}
    if not {"x", "y", "z"} <= set(columns):
        raise ValueError(f"vertices have {', '.join(columns) or 'nothing'}; x, y, z are needed")
    return int(lines[elements[0]][2]), columns


def picture(points: np.ndarray, by: np.ndarray) -> Figure:
    """`points` (n, 3) coloured by how far each was moved (n,)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes: Any = figure.add_subplot(projection="3d")
    most = max(float(np.abs(by).max()), 1e-12)
    dots = axes.scatter(*points.T, c=by, s=3, cmap="coolwarm", vmin=-most, vmax=most)
    axes.set_box_aspect(np.maximum(np.ptp(points, axis=0), 1e-9))
    figure.colorbar(dots, label="moved along the normal", shrink=0.7)
    return figure
