"""Public statistics of tables that nobody sees: means, deviations, counts, histograms of persons.

Silos answer one query together, by the machinery of a training step: a clipped sum over persons,
noise in shares, secure aggregation. It is an event in the same ledger.
"""

from privacy.statistics.silo_statistics import silo_statistics as silo_statistics
from privacy.statistics.table_query import Statistics as Statistics
from privacy.statistics.table_query import TableQuery as TableQuery
