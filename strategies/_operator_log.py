"""The operator's own log: actual cohorts, node ids and reasons go here and nowhere else.

It is silent until the operator gives the logger ``bloomseal.operator`` a handler, and never
reaches the log that Flower streams to users. An entry is one line, whatever comes into it: what
clients write is quoted where it does (``privacy.untrusted_text``), and escaped here in any case.
"""

import logging

from privacy.untrusted_text import one_line


def _on_one_line(record: logging.LogRecord) -> bool:
    record.msg, record.args = one_line(record.getMessage()), ()
    return True


operator_log = logging.getLogger("bloomseal.operator")
operator_log.propagate = False
operator_log.addFilter(_on_one_line)
operator_log.addHandler(logging.NullHandler())
operator_log.setLevel(logging.INFO)
