"""What privacy costs a whole run: ``flwr run`` of this app beside a plain FedAvg app.

Both train the same model on the same clients' data with the same local steps in Flower's Ray
simulation, a tenth of the clients a round, and score every round's model on the validation images.
Bytes are those of the messages' records as Flower serialises them.
"""

from benchmarks.end_to_end.measure import run as run
