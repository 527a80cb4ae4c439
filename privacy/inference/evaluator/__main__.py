"""``python -m privacy.inference.evaluator FILE``: the process of a model from a file.

For :class:`EvaluatorProcess`, which speaks with it over its standard streams.
"""

import sys
from pathlib import Path

from privacy.command_line import CommandParser
from privacy.inference.errors import ModelFileError
from privacy.inference.evaluator.process import serve_evaluations
from privacy.inference.packed_model import PackedModel


def main(arguments: list[str] | None = None) -> None:
    """Answer until the standard input ends; a file that cannot be read ends the program."""
    path = command_parser().parse_args(arguments).file
    try:
        serve_evaluations(lambda: PackedModel.load(path))
    except ModelFileError as error:
        sys.exit(f"error: {error}")


def command_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m privacy.inference.evaluator",
        description="The process of a compiled model, for EvaluatorProcess: it answers encrypted "
        "questions over its standard streams, without PyTorch.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="that CompiledModel.save wrote")
    return parser


if __name__ == "__main__":
    main()
