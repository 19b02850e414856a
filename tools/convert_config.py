"""Write the YAML that an Object Detection API pipeline.config amounts to.

python tools/convert_config.py pipeline.config --output configs/mine.yaml
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import command_line
import launch


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline_config", type=Path, metavar="PIPELINE_CONFIG")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write (default: standard output)"
    )
    parser.set_defaults(set=[])
    arguments = parser.parse_args(argv)
    return launch.run(lambda: _convert(arguments))


def _convert(arguments: argparse.Namespace) -> int:
    text = command_line.load_config(arguments).to_yaml()
    if arguments.output is None:
        print(text, end="")
        return 0
    if arguments.output.exists():
        raise ValueError(f"{arguments.output} is there already; name another --output")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
