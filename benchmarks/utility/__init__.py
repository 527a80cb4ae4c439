"""Accuracy under client-level privacy: Geyer et al. 2017's protocol, and disjoint clients.

Two protocols on MNIST, both with label-sorted shards, two a client:

- *Geyer*: that of Geyer, Klein and Nabi 2017 (arXiv 1712.07557), with its ε, δ and
  numbers of clients. All 60,000 training images in 200 shards of 300; for N = 1,000 and 10,000
  the data are *repeated*, each shard with 10 or 100 clients.
- *disjoint*: 1,000 clients, shards of 25 of the first 50,000 images, every image with one client.

Every run spends exactly its budget under add or remove one client, which the product's own
accounting calibrates; cohorts, clipping, noise and server step are the product's own too. The
settings were chosen on the last 10,000 training images, which no client held in those runs. The
accuracy is on the test images, after the last round.
"""

from benchmarks.utility.measure import draw as draw
from benchmarks.utility.measure import run as run
