"""Rounds to 95 % and 98 % under a privacy budget: cohorts, local steps, skew, S and T.

1,000 clients who share the first 50,000 MNIST images, ``hog-linear``, client-level ε = 3 at
δ = 1e-5 spent over all rounds of a run. The peer is federated averaging without clipping or noise,
with the same cohorts, local steps and momentum, and the best of four server rates. A round
counts once every seed's validation accuracy has reached the mark; no client holds those images.
"""

from benchmarks.rounds.measure import draw as draw
from benchmarks.rounds.measure import run as run
