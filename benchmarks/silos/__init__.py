"""Accuracy of record-level privacy across silos: ours, each silo's own noise, a curator, none.

MNIST's first 50,000 training images are divided among K silos, every image a person. In a step each
silo draws its persons by Poisson sampling, clips and sums. The arms differ in the noise alone:

- *ours*: distributed DP-SGD. The shares of the fewest honest silos (of those whose sum is opened,
  all but one that may collude) make the noise; all K silos are there and add theirs.
- *own noise*: every silo adds the whole noise, so that its own sum is private by itself. Opacus
  adds √K times the noise to the pooled sum, which is what the silos' noises add up to.
- *curator*: Opacus on the pooled data, with somebody whom everybody trusts.
- *none*: plain SGD on the pooled data, not clipped.

All arms spend exactly ε at δ = 1e-5 by the product's own accounting; the ε of Opacus's accountant
is logged beside. A sum over the silos is the sum over everybody whom they drew, so that neither the
sizes of silos nor the skew of their labels changes the arms: ours is computed with one ``silo_sum``
over all the persons and the shares of the other silos, without messages (the test of the benchmark
compares it with one ``silo_sum`` a silo). Where silos have log-normal sizes and few labels each,
every silo has a sum of its own. Settings were chosen on the last 10,000 training images, of which
no silo held one, for each arm, ε and K; the accuracy is on the test images.

Last come a step's seconds and bytes, with secure aggregation and every message.

All cells take hours. Each run's score is kept in ``results/benchmarks/silos-runs.json`` until the
end, so that a run that is stopped goes on when the command is given again; delete that file after a
change of what is trained.
"""

from benchmarks.silos.measure import draw as draw
from benchmarks.silos.measure import run as run
