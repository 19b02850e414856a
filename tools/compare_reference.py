"""Compare the detector with what the original computes from the same weights, key by key.

python tools/compare_reference.py --checkpoint model.ckpt --model-config model.config --reference
reference.npz
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import launch


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 if every key agrees, 1 if one does not, 2 if they could not be compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="PREFIX", help="the original's weights"
    )
    parser.add_argument(
        "--model-config", type=Path, required=True, metavar="FILE", help="`model { faster_rcnn { … } }`"
    )
    parser.add_argument("--reference", type=Path, required=True, metavar="FILE.npz", help="arrays by key")
    arguments = parser.parse_args(argv)
    return launch.run(lambda: _compare(arguments))


def _compare(arguments: argparse.Namespace) -> int:
    from detector.builder import build_model, build_resizer
    from detector.config import validate
    from detector.determinism import enable_determinism
    from detector.pipeline_config import read_pipeline_config
    from detector.reference import (
        compare,
        end_to_end,
        first_pass,
        read_reference,
        training_settings,
        variable_names,
    )
    from detector.weights.importing import import_weights

    reference = read_reference(arguments.reference)
    settings = read_pipeline_config(arguments.model_config, training=False).values["model"]
    config = validate({"model": training_settings(settings)}, str(arguments.model_config)).model
    # The original knows its classes by number; a fresh name for each is as good.
    model = build_model(config, [str(number) for number in range(1, (config.num_classes or 1) + 1)])
    report = import_weights(model, arguments.checkpoint)
    print(f"{report.source}: {report.format}, {len(report.restored)} variables", flush=True)
    if report.fresh:
        raise ValueError(f"{report.source} lacks weights: {', '.join(report.fresh)}")
    if note := enable_determinism():
        print(note, flush=True)

    keys = failures = 0
    start = first_pass(model, build_resizer(config), reference)
    for result in compare(model, start, reference, variable_names(model)):
        keys += 1
        failures += not result.agrees
        shape = f"[{', '.join(map(str, result.shape))}]"
        outcome = result.problem or f"{result.error:.2e} (at most {result.tolerance:g})"
        print(f"{'ok    ' if result.agrees else 'FAILED'} {result.key} {shape}: {outcome}", flush=True)
    for key, found in end_to_end(model, start, reference).items():
        print(f"with nothing taken from the reference: {found:.1%} of the rows of {key}")
    print(f"{keys - failures} of {keys} keys agree" + (f", {failures} do not" if failures else ""))
    return 1 if failures or not keys else 0


if __name__ == "__main__":
    sys.exit(main())
