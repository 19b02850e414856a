"""Which stages recompute: keep their input alone, and run again when their gradient is due.

Also known as gradient checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
arXiv:1604.06174).  A training step keeps what every layer computed until the gradient has passed it; early
stages keep the most, at the highest resolution, and take few operations to run again.
"""

from collections.abc import Iterable, Mapping

from detector.component import Component
from detector.feature_extractors.convolution import StageChain
from detector.selectors import FreezeError, VariableRow, select_each


def recompute(
    components: Mapping[str, Component], rows: Iterable[VariableRow], selectors: Iterable[str]
) -> None:
    """Let the stages that `selectors` match recompute in training, and no others; before the first trace.

    Args:
        components: of the model.
        rows: of its variables.
        selectors: a stage is matched if a variable in it is.

    Raises:
        FreezeError: a selector matches nothing, or no stage of the feature extractor or the tower.
    """
    chains = {
        "feature_extractor": components["feature_extractor"],
        "box_classifier/tower": components["box_classifier"].tower,
    }
    stages = {
        f"{path}/{stage}": chain
        for path, chain in chains.items()
        if isinstance(chain, StageChain)
        for stage in chain.stages
    }
    chosen: set[str] = set()
    for selector, paths in select_each(selectors, list(rows), "train.recompute").items():
        found = {stage for stage in stages if any(path.startswith(f"{stage}/") for path in paths)}
        if not found:
            raise FreezeError(
                f"train.recompute selector {selector!r} matches no stage that can recompute; "
                f"expected some of {', '.join(stages)}"
            )
        chosen |= found
    for path, chain in chains.items():
        if isinstance(chain, StageChain):
            chain.recomputed = {name for name in chain.stages if f"{path}/{name}" in chosen}
