"""Groups of vectors that point the same way.

Two vectors are neighbours when |cos| (or cos, if signed) exceeds a threshold t; the clusters are the connected
components of that graph. That is exactly single linkage on the distance 1 - |cos|, cut at 1 - t, found tile by tile of
the cosine matrix in memory O(n d), or at once for a stack of small problems. Single linkage can chain: a bridge of
loose vectors joins two clusters. `within_cosine` shows it: the smallest cosine of any member to its cluster's mean.

Partitions are passed as *roots* `[..., n]`: for each vector the smallest index of its cluster, -1 for none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import OptionError

from .cosines import BLOCK, Array, Decide, Floats, Mask, Pairs, PairSums, Tile, exactly, tiles, unit_rows, where
from .vectors import norms

Ints = NDArray[np.int64]
Units = NDArray[np.float32]


def threshold_clusters(vectors: Array, threshold: float, *, signed: bool = False) -> Ints:
    """Return the roots `[n]` of the components of rows `[n, d]` whose cosine exceeds `threshold`, in O(n d) memory.

    >>> threshold_clusters(np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.1]]), 0.95).tolist()
    [0, 1, 0]
    """
    u = unit_rows(vectors, norms(vectors))
    components = Components(len(u))
    for tile in tiles(u, threshold, signed, exactly(vectors, np.arange(len(u)), threshold, signed), components.one):
        components.join(tile)
    return components.roots()


def scan(u: Units, threshold: float, decide: Decide, *, signed: bool = False) -> tuple[Pairs, Ints]:
    """Return pair statistics and component roots `[n]` of unit rows `u [n, d]` in one pass of tiles."""
    sums, components = PairSums(len(u)), Components(len(u))
    for tile in tiles(u, threshold, signed, decide):
        sums.add(tile, signed)
        components.join(tile)
    return sums.stats(u), components.roots()


class Components:
    """Connected components of a graph that arrives in tiles; tiles inside one component cost next to nothing."""

    def __init__(self, n: int) -> None:
        self._label = np.arange(n, dtype=np.int32)

    def join(self, tile: Tile) -> None:
        """Merge the components that a tile's edges connect."""
        if tile.edges is None or self.one(tile.rows, tile.columns):
            return
        edges = self._crossing(tile)
        if np.count_nonzero(edges) > 4 * sum(edges.shape):
            # Most of a dense tile falls to one edge per row and column; only what still crosses is listed in full.
            self._merge(*_first_edges(edges), tile)
            self._merge(*_first_edges(edges.T)[::-1], tile)
            edges = self._crossing(tile)
        self._merge(*where(edges), tile)

    def _crossing(self, tile: Tile) -> Mask:
        """Return the tile's edges between different components."""
        return np.asarray(tile.edges & (self._label[tile.rows][:, None] != self._label[tile.columns]))

    def roots(self) -> Ints:
        """Return for each vector the smallest index of its component."""
        _, first, inverse = np.unique(self._label, return_index=True, return_inverse=True)
        return np.asarray(first[inverse], dtype=np.int64)

    def one(self, rows: slice, columns: slice) -> bool:
        """Return whether all these vectors are known to be of one component."""
        left, right = self._label[rows], self._label[columns]
        return bool((left == left[0]).all() and (right == left[0]).all())

    def _merge(self, i: NDArray[np.intp], j: NDArray[np.intp], tile: Tile) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        a, b = self._label[tile.rows][i], self._label[tile.columns][j]
        crossing = a != b
        if crossing.any():
            a, b, n = a[crossing], b[crossing], len(self._label)
            graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
            self._label = connected_components(graph, directed=False)[1][self._label]


def _first_edges(edges: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    rows = np.flatnonzero(edges.any(axis=1))
    return rows, edges[rows].argmax(axis=1)


def component_roots(neighbours: Mask) -> Ints:
    """Return the roots `[b, n]` of a stack of graphs given as symmetric masks `[b, n, n]` with a true diagonal."""
    kind = np.int16 if neighbours.shape[-1] <= np.iinfo(np.int16).max else np.int32
    roots = _jumped(neighbours.argmax(axis=-1).astype(kind))
    active = np.flatnonzero((neighbours & (roots[:, :, None] != roots[:, None, :])).any(axis=(1, 2)))
    while active.size:
        part, before = neighbours[active], roots[active]
        lowest = np.where(part, before[:, None, :], before.dtype.type(part.shape[-1])).min(axis=-1)
        # The lowest root any member sees goes to the whole component at once, through its root.
        hooked = before.copy()
        np.minimum.at(hooked, (np.arange(len(active))[:, None], before), lowest)
        roots[active] = _jumped(hooked)
        active = active[(roots[active] != before).any(axis=1)]
    return roots.astype(np.int64)


def _jumped(roots: NDArray[Any]) -> NDArray[Any]:
    """Follow pointers to smaller indices until every vector points at a root."""
    while True:
        further = np.take_along_axis(roots, roots, axis=-1)
        if np.array_equal(further, roots):
            return roots
        roots = further


def linkage_clusters(distances: Array, method: str, cut: float) -> Ints:
    """Return the roots `[n]` of hierarchical clustering of a distance matrix `[n, n]`, cut at height `cut`.

    `method` is "average" or "complete" (scipy's; scikit-learn's AgglomerativeClustering gives the same partition at
    twice the time and memory).
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(distances) < 2:
        return np.zeros(len(distances), dtype=np.int64)
    tree = linkage(squareform(distances, checks=False), method)
    return _roots_of(fcluster(tree, cut, criterion="distance"))


def density_clusters(distances: Array, smallest: int) -> Ints:
    """Return the roots `[n]` of HDBSCAN (scikit-learn) on distances `[n, n]`; noise makes clusters of one."""
    from sklearn.cluster import HDBSCAN

    n = len(distances)
    if n < max(2, smallest):
        return np.arange(n, dtype=np.int64)
    found = HDBSCAN(min_cluster_size=smallest, metric="precomputed", copy=True).fit(distances.astype(np.float64))
    return _roots_of(np.where(found.labels_ < 0, n + np.arange(n), found.labels_))


def _roots_of(labels: Array) -> Ints:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)


def partition(u: Units, method: str, threshold: float, *, signed: bool, smallest: int, largest: int, what: str) -> Ints:
    """Return the roots `[n]` of unit rows `u` by "average", "complete" or "hdbscan", which need all distances at once.

    Raises OptionError naming `what` when there are more than `largest` rows.
    """
    if len(u) > largest:
        gigabytes = 8 * len(u) ** 2 / 1e9
        raise OptionError(
            f"{what} has {len(u)} neurons, but method {method!r} needs all their distances at once "
            f"({gigabytes:.1f} GB) and is limited to {largest}. Use method 'components', select smaller matrices, "
            "or raise condensation.max_dense."
        )
    cosines = u @ u.T
    distances = np.clip(1 - (cosines if signed else np.abs(cosines)), 0, None)
    np.fill_diagonal(distances, 0)
    if method == "hdbscan":
        return density_clusters(distances, smallest)
    return linkage_clusters(distances, method, 1 - threshold)


def cluster_sizes(roots: Ints) -> Ints:
    """Return the number of members `[..., n]` at each cluster's root, 0 elsewhere."""
    n = roots.shape[-1]
    flat = roots.reshape(-1, n)
    lines = np.arange(len(flat))[:, None] * (n + 1) + np.where(flat < 0, n, flat)
    return np.bincount(lines.ravel(), minlength=len(flat) * (n + 1)).reshape(-1, n + 1)[:, :n].reshape(roots.shape)


def numbered(roots: Ints) -> Ints:
    """Return labels `[..., n]`: clusters are numbered by size, largest first, then by first member; -1 for none.

    >>> numbered(np.array([0, 1, 1, 3, -1])).tolist()
    [1, 0, 0, 2, -1]
    """
    if roots.shape[-1] == 0:
        return roots
    order = np.argsort(-cluster_sizes(roots), axis=-1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(roots.shape[-1]), order.shape), axis=-1)
    return np.where(roots < 0, -1, np.take_along_axis(place, np.maximum(roots, 0), axis=-1))


def size_entropy(sizes: Ints) -> Floats:
    """Return the entropy `[...]` in nats of sizes `[..., n]` as shares: 0 for one cluster, log k for k equal ones."""
    total = sizes.sum(axis=-1, keepdims=True)
    p = np.divide(sizes, total, out=np.zeros(sizes.shape), where=total > 0)
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1))


def within_cosine(u: Units, roots: Ints, *, signed: bool = False) -> float:
    """Return the smallest cosine of a member to the mean of its cluster, for unit rows `u [n, d]` and `roots [n]`.

    Near 1 when all clusters are tight or single, small or negative when they chain. Unless `signed`, members are first
    flipped to agree with the first member of their cluster.
    """
    from scipy.sparse import csr_array

    members = np.flatnonzero(cluster_sizes(roots)[roots] > 1) if len(roots) else roots
    if not members.size:
        return 1.0 if len(roots) else float("nan")
    first, cluster = np.unique(roots[members], return_inverse=True)
    opposed = _dots(u, members, u, first[cluster]) < 0
    signs = np.where(opposed & (not signed), -1, 1).astype(np.float32)
    at = (cluster, members)
    means = csr_array((signs, at), shape=(len(first), len(u))) @ u
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return float(min(1.0, (signs * _dots(u, members, means, cluster)).min()))


def _dots(a: Array, i: NDArray[Any], b: Array, j: NDArray[Any]) -> Floats:
    """Return the dot products of rows `a[i]` and `b[j]`, a bounded number of rows at a time."""
    step = max(1, BLOCK // (4 * a.shape[1]))
    parts = [
        np.einsum("ij,ij->i", a[i[s : s + step]], b[j[s : s + step]], dtype=np.float64) for s in range(0, len(i), step)
    ]
    return np.concatenate(parts)
