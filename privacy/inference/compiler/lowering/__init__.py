"""The compiler's front end: from a model to affine maps with polynomials between them.

Another backend than CKKS takes the graph of values, with lowerings of its own for layers that CKKS
does not evaluate.
"""

from privacy.inference.compiler.lowering.elementwise import Elementwise as Elementwise
from privacy.inference.compiler.lowering.elementwise import linear_of as linear_of
from privacy.inference.compiler.lowering.elementwise import scaled as scaled
from privacy.inference.compiler.lowering.elementwise import shifted as shifted
from privacy.inference.compiler.lowering.elementwise import total as total
from privacy.inference.compiler.lowering.forward import reference as reference
from privacy.inference.compiler.lowering.operation import Entry as Entry
from privacy.inference.compiler.lowering.operation import Operation as Operation
from privacy.inference.compiler.lowering.operation import is_source as is_source
from privacy.inference.compiler.lowering.operations import Lowering as Lowering
from privacy.inference.compiler.lowering.operations import lowered as lowered
from privacy.inference.compiler.lowering.tracing import drawn_points as drawn_points
from privacy.inference.compiler.lowering.tracing import trace as trace
from privacy.inference.compiler.lowering.values import Activated as Activated
from privacy.inference.compiler.lowering.values import Value as Value
from privacy.inference.compiler.lowering.values import in_order as in_order
from privacy.inference.compiler.ranges import Interval as Interval
