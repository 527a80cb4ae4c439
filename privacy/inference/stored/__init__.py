"""Programs as arrays and an outline, and back: for files, which a stranger may have made."""

from privacy.inference.stored.reading import read_program as read_program
from privacy.inference.stored.writing import written_program as written_program
