"""Clusters of 16,384 neurons by the cosine of their vectors, beside scikit-learn on the full cosine matrix.

    python benchmarks/clustering.py --json clustering.json

Neurons are clustered where |cos| passes a threshold: connected components, which is single linkage cut at that height
and DBSCAN where one point suffices for a core. Half of the neurons lie near a few hundred directions, half are random.
Each side is a fresh process. The cosine matrix of the peers is made in float32 and in place.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from typing import Any

import harness

TIME, MEMORY, THRESHOLD = 0.5, 0.25, 0.95


def neurons(count: int, width: int) -> Any:
    """Return neurons `[count, width]`, half of them near directions that 32 share."""
    import numpy as np

    rng = np.random.default_rng(0)
    found = rng.standard_normal((count, width))
    half = count // 2
    found[:half] = found[np.arange(half) % max(1, half // 32)] + 0.1 * rng.standard_normal((half, width))
    found *= rng.choice((-1, 1), size=(count, 1))
    return found[rng.permutation(count)].astype("f4")


def partition(labels: Any) -> dict[str, Any]:
    """Return the number of clusters, and a digest that is the same for the same clusters."""
    import numpy as np

    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    digest = hashlib.sha256(first[inverse].astype("<i8").tobytes()).hexdigest()
    return {"clusters": len(first), "digest": digest}


def distances(vectors: Any) -> Any:
    """Return 1 - |cos| of all pairs, never below zero."""
    import numpy as np

    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = unit @ unit.T
    np.abs(found, out=found)
    np.subtract(1, found, out=found)
    return np.maximum(found, 0, out=found)


def ours(count: int, width: int) -> Callable[[], Any]:
    """Return work of ours."""
    import scipy.sparse.csgraph  # noqa: F401, imported on first use otherwise

    from ckpt_plugins.neurons.clustering import threshold_clusters

    vectors = neurons(count, width)
    return lambda: partition(threshold_clusters(vectors, THRESHOLD))


def linkage(count: int, width: int) -> Callable[[], Any]:
    """Return work of scikit-learn's agglomerative clustering."""
    from sklearn.cluster import AgglomerativeClustering

    vectors = neurons(count, width)
    how = {"n_clusters": None, "metric": "precomputed", "linkage": "single", "distance_threshold": 1 - THRESHOLD}
    return lambda: partition(AgglomerativeClustering(**how).fit_predict(distances(vectors)))


def dbscan(count: int, width: int) -> Callable[[], Any]:
    """Return work of scikit-learn's DBSCAN."""
    from sklearn.cluster import DBSCAN

    vectors = neurons(count, width)
    how = {"eps": 1 - THRESHOLD, "min_samples": 1, "metric": "precomputed"}
    return lambda: partition(DBSCAN(**how).fit_predict(distances(vectors)))


CHILDREN = {"ours": ours, "sklearn linkage": linkage, "sklearn DBSCAN": dbscan}


def main() -> None:
    """Measure, print, write JSON."""
    given = harness.parser(__doc__, rounds=3, neurons=16384, width=256).parse_args()
    if given.child:
        name, count, width = given.child
        return harness.answer(CHILDREN[name](int(count), int(width)))
    report = harness.Report("clustering", harness.machine(("scipy", "scikit-learn")))
    sides = {name: harness.child(__file__, name, given.neurons, given.width) for name in CHILDREN}
    costs = harness.turns(sides, given.rounds)
    report.costs(costs)
    found = {name: rows[0].value for name, rows in costs.items()}
    report.found["clusters"] = {name: value["clusters"] for name, value in found.items()}
    report.found["same"] = len({value["digest"] for value in found.values()}) == 1
    print(f"clusters {report.found['clusters']}, the same: {report.found['same']}")
    for peer in (name for name in CHILDREN if name != "ours"):
        report.goal(f"clustering against {peer}: time", harness.ratio(costs["ours"], costs[peer], "seconds"), TIME)
        report.goal(f"clustering against {peer}: memory", harness.ratio(costs["ours"], costs[peer], "peak"), MEMORY)
    report.write(given.json)


if __name__ == "__main__":
    sys.exit(main())
