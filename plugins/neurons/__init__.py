"""Neurons as vectors: their norms, the cosines between them, and the clusters they form."""

from .clustering import threshold_clusters as threshold_clusters
from .vectors import neuron_vectors as neuron_vectors
from .vectors import norms as norms
