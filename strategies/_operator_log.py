"""The operator's own log: actual cohorts, node ids and reasons go here and nowhere else.

It is silent until the operator gives the logger ``bloomseal.operator`` a handler, and never
reaches the log that Flower streams to users.
"""

import logging

operator_log = logging.getLogger("bloomseal.operator")
operator_log.propagate = False
operator_log.addHandler(logging.NullHandler())
operator_log.setLevel(logging.INFO)
