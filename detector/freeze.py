"""The freeze plan: selectors resolved against one model, so that every variable either trains or is frozen.

`resolve` works on rows (path, shape, restored) and needs no model; `FreezePlan.apply` tells tf_keras.
What the selectors are is in `detector.selectors`; the rules are in the design notes, "Freezing".
"""

import hashlib
import json
import shlex
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import tensorflow as tf
import tf_keras

from detector.batch_norm import BatchNorm
from detector.component import named_variables, own_variables, walk_layers
from detector.feature_extractors.convolution import Conv
from detector.selectors import FreezeError, VariableRow, largest_prefixes, select_each, under

RESTORE = "restore a checkpoint that has them"


def rows_of(
    components: Mapping[str, tf_keras.layers.Layer],
    restored: Collection[str] = (),
    api_names: Mapping[str, str] | None = None,
) -> list[VariableRow]:
    """Return one row per variable of the components, in the order of the forward pass.

    `restored` holds the paths whose values came from a checkpoint, `api_names` {path: Object Detection API
    name}.  Raises `ValueError` if `restored` names a path that the components do not have.
    """
    api_names = api_names or {}
    rows = []
    for name, component in components.items():
        walked = list(walk_layers(component, name))
        layers = [layer for _, layer in walked if layer is not component]
        index_of = {id(layer): index for index, layer in enumerate(layers)}
        for layer_path, layer in walked:
            normalises = isinstance(layer, tf_keras.layers.BatchNormalization)
            for leaf, variable in own_variables(layer).items():
                path = f"{layer_path}/{leaf}"
                row = VariableRow(
                    path=path,
                    shape=tuple(variable.shape),
                    restored=path in restored,
                    api_name=api_names.get(path),
                    statistic=normalises and leaf in ("moving_mean", "moving_variance"),
                    layer_index=index_of.get(id(layer)),
                    layer_count=None if layer is component else len(layers),
                )
                rows.append(row)
    unknown = set(restored) - {row.path for row in rows}
    if unknown:
        raise ValueError(f"restored variables that the model does not have: {_listed(sorted(unknown))}")
    return rows


@dataclass(frozen=True)
class PartSummary:
    """Counts over a part of the model; `parameters` are numbers, moving averages included."""

    variables: int
    parameters: int
    trained_variables: int
    trained_parameters: int
    trainable_variables: int  # all but the moving averages
    statistics: int
    updated_statistics: int
    restored_variables: int


@dataclass(frozen=True)
class FreezePlan:
    """What trains and what stands still.  Make one with `resolve`.

    `fates` says of every path, in the order of `rows`, whether it is "trained" (moved by gradients),
    "updated" (a moving average that follows the batches) or "frozen" (bit-identical).  `freeze`, `train_only`
    and `unfreeze` are {selector: how many variables it matched}.
    """

    rows: tuple[VariableRow, ...]
    fates: dict[str, str]
    freeze: dict[str, int]
    train_only: dict[str, int]
    allow_fresh: bool
    batch_norm: str
    unfreeze: dict[str, int] = field(default_factory=dict)

    def trains(self, path: str) -> bool:
        """Whether gradients move the variable at `path`; raises `KeyError` if the plan has none there."""
        return self.fates[path] == "trained"

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """The paths that gradients move, in model order."""
        return self._paths("trained")

    @cached_property
    def updated(self) -> tuple[str, ...]:
        """The moving averages that follow the batches, in model order."""
        return self._paths("updated")

    @cached_property
    def frozen(self) -> tuple[str, ...]:
        """The paths that nothing moves, in model order: the proof covers exactly these."""
        return self._paths("frozen")

    def _paths(self, fate: str) -> tuple[str, ...]:
        return tuple(path for path, its_fate in self.fates.items() if its_fate == fate)

    @property
    def fixed_statistics(self) -> tuple[str, ...]:
        """The paths of the BatchNorm layers that normalise with their moving averages and keep them."""
        still = (row.layer for row in self.rows if row.statistic and self.fates[row.path] == "frozen")
        return tuple(dict.fromkeys(still))

    @property
    def digest(self) -> str:
        """SHA-256 of what happens to each variable: equal for selectors that amount to the same."""
        return hashlib.sha256(json.dumps(self.fates, sort_keys=True).encode()).hexdigest()

    def summary(self, prefix: str = "") -> PartSummary:
        """Count what lies at or below the path `prefix`; without one, the whole model."""
        rows = [row for row in self.rows if not prefix or under(prefix, row.path)]
        trained = [row for row in rows if self.trains(row.path)]
        statistics = [row for row in rows if row.statistic]
        return PartSummary(
            variables=len(rows),
            parameters=sum(row.size for row in rows),
            trained_variables=len(trained),
            trained_parameters=sum(row.size for row in trained),
            trainable_variables=len(rows) - len(statistics),
            statistics=len(statistics),
            updated_statistics=sum(self.fates[row.path] == "updated" for row in statistics),
            restored_variables=sum(row.restored for row in rows),
        )

    def by_component(self) -> dict[str, PartSummary]:
        """Return {component: counts}, in model order."""
        return {name: self.summary(name) for name in dict.fromkeys(row.component for row in self.rows)}

    def by_stage(self) -> dict[str, PartSummary]:
        """Return {stage path: counts}, in model order; a path is like `box_classifier/tower/Mixed_5a`."""
        return {name: self.summary(name) for name in dict.fromkeys(row.stage for row in self.rows)}

    def frozen_prefix(self, stage_order: Sequence[str]) -> list[str]:
        """Return the longest leading run of the stage paths `stage_order` in which nothing moves.

        `stage_order` goes from the image on; a stage without variables (a pooling) never ends the run.
        What the run computes is the same at every step, so it needs no gradients and can be cached.
        """
        moving = self.trained + self.updated
        leading = []
        for stage in stage_order:
            if any(under(stage, path) for path in moving):
                break
            leading.append(stage)
        return leading

    def apply(self, components: Mapping[str, tf_keras.layers.Layer]) -> list[tf.Variable]:
        """Prepare built components for training and return the variables that train, in model order.

        Sets `trainable` (False exactly where nothing moves), the `fixed_statistics` of `BatchNorm` layers and
        the `is_differentiated` of `Conv` layers (False before everything that trains).  All are read when a
        graph is traced: apply first, and trace anew after applying another plan.
        Raises `FreezeError` if the plan was made for another model.
        """
        variables = named_variables(components)
        self._check_fits(variables)
        frozen, fixed, trained = set(self.frozen), set(self.fixed_statistics), set(self.trained)
        is_differentiated = False
        for name, component in components.items():
            # tf_keras hands the flag down to every layer inside, so the whole comes before its parts.
            component.trainable = any(under(name, path) for path in self.trained + self.updated)
            for path, layer in walk_layers(component, name):
                own = [f"{path}/{leaf}" for leaf in own_variables(layer)]
                if own:
                    layer.trainable = not frozen.issuperset(own)
                # Nothing lies behind the RPN: its proposals are constants to the box classifier.
                is_differentiated |= name != "rpn" and not trained.isdisjoint(own)
                if isinstance(layer, Conv):
                    layer.is_differentiated = is_differentiated
                if isinstance(layer, BatchNorm):
                    layer.fixed_statistics = path in fixed
                elif path in fixed and layer.trainable:
                    raise TypeError(
                        f"{path} is a {type(layer).__name__}, whose statistics cannot stand still while its "
                        "scale and offset train; build it as detector.batch_norm.BatchNorm"
                    )
        return [variables[path] for path in self.trained]

    def _check_fits(self, variables: Mapping[str, tf.Variable]) -> None:
        planned = {row.path: row.shape for row in self.rows}
        built = {path: tuple(variable.shape) for path, variable in variables.items()}
        differences = {
            "only in the plan": [path for path in planned if path not in built],
            "only in the model": [path for path in built if path not in planned],
            "of another shape": [p for p in planned if p in built and planned[p] != built[p]],
        }
        found = "; ".join(f"{what}: {_listed(paths)}" for what, paths in differences.items() if paths)
        if found:
            raise FreezeError(
                f"the freeze plan was made for another model ({found}); resolve it for this one"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values: the manifest that runs, checkpoints and SavedModels carry."""
        return {
            "freeze": dict(self.freeze),
            "train_only": dict(self.train_only),
            "unfreeze": dict(self.unfreeze),
            "allow_fresh": self.allow_fresh,
            "batch_norm": self.batch_norm,
            "digest": self.digest,
            "variables": [
                asdict(row) | {"shape": list(row.shape), "fate": self.fates[row.path]} for row in self.rows
            ],
        }

    @classmethod
    def from_dict(cls, manifest: Mapping[str, Any]) -> "FreezePlan":
        """Return the plan that `to_dict` wrote.  Raises `FreezeError` if it is not one, or was altered."""
        try:
            entries = [dict(entry) for entry in manifest["variables"]]
            fates = [entry.pop("fate") for entry in entries]
            rows = tuple(VariableRow(**(entry | {"shape": tuple(entry["shape"])})) for entry in entries)
            plan = cls(
                rows,
                {row.path: fate for row, fate in zip(rows, fates, strict=True)},
                freeze=dict(manifest["freeze"]),
                train_only=dict(manifest["train_only"]),
                allow_fresh=manifest["allow_fresh"],
                batch_norm=manifest["batch_norm"],
                unfreeze=dict(manifest.get("unfreeze", {})),
            )
            digest = manifest["digest"]
        except (KeyError, TypeError, ValueError) as error:
            raise FreezeError(f"not a freeze plan as FreezePlan.to_dict writes it: {error!r}") from None
        if plan.digest != digest:
            raise FreezeError(f"the freeze plan was altered: its digest is {plan.digest}, it says {digest}")
        return plan


def resolve(
    rows: Iterable[VariableRow],
    freeze: str | Sequence[str] = (),
    train_only: str | Sequence[str] = (),
    *,
    unfreeze: str | Sequence[str] = (),
    allow_fresh: bool = False,
    batch_norm: str = "fixed",
    remedy: str = RESTORE,
) -> FreezePlan:
    """Resolve selectors against the rows of a model.

    A variable trains if `train_only` (where given) matches it and `freeze` does not, as in the Object
    Detection API; and in any case if `unfreeze` matches it.  A BatchNorm layer's moving averages follow the
    batches only if `batch_norm` is "update" and the layer is not frozen: neither are they selected to be, nor
    are its scale and offset both frozen.

    Raises `FreezeError` for a selector that matches nothing or cannot be read, if nothing is left to train,
    and, unless `allow_fresh`, if a variable would keep a value that an initializer gave it; `remedy` is what
    that error says to do so that it gets another one.
    """
    rows = tuple(rows)
    if batch_norm not in ("fixed", "update"):
        raise ValueError(f"batch_norm: expected 'fixed' or 'update', got {batch_norm!r}")
    freezing = select_each(freeze, rows, "freeze")
    training = select_each(train_only, rows, "train_only")
    if train_only and not training:
        raise FreezeError("train_only 'none' would train nothing; leave train_only out to train everything")

    selected = set().union(*freezing.values())
    if training:
        selected |= {row.path for row in rows} - set().union(*training.values())
    thawing = select_each(unfreeze, rows, "unfreeze")
    selected -= set().union(*thawing.values())
    selected |= _statistics_of_frozen_layers(rows, selected)

    def fate(row: VariableRow) -> str:
        if row.path in selected or (row.statistic and batch_norm == "fixed"):
            return "frozen"
        return "updated" if row.statistic else "trained"

    plan = FreezePlan(
        rows,
        {row.path: fate(row) for row in rows},
        freeze={selector: len(matched) for selector, matched in freezing.items()},
        train_only={selector: len(matched) for selector, matched in training.items()},
        allow_fresh=allow_fresh,
        batch_norm=batch_norm,
        unfreeze={selector: len(matched) for selector, matched in thawing.items()},
    )
    if not plan.trained:
        given = _command(freezing, training)
        raise FreezeError(f"{given} leaves nothing to train: all {len(rows)} variables would be frozen")
    if not allow_fresh:
        _refuse_fresh(rows, selected, freezing, training, remedy)
        _refuse_fresh_statistics(plan)
    return plan


def _statistics_of_frozen_layers(rows: Sequence[VariableRow], selected: Collection[str]) -> set[str]:
    """Return the moving averages that stand still because of `selected`.

    A layer normalises with both its averages or with neither, so one that is selected holds the other.
    """
    by_layer: dict[str, list[VariableRow]] = defaultdict(list)
    for row in rows:
        by_layer[row.layer].append(row)
    still = set()
    for members in by_layer.values():
        statistics = [row.path for row in members if row.statistic]
        weights = [row.path for row in members if not row.statistic]
        if any(path in selected for path in statistics) or (
            weights and all(path in selected for path in weights)
        ):
            still.update(statistics)
    return still


def _refuse_fresh(
    rows: Sequence[VariableRow],
    selected: Collection[str],
    freezing: Mapping[str, set[str]],
    training: Mapping[str, set[str]],
    remedy: str,
) -> None:
    fresh = {row.path for row in rows if not row.restored and row.path in selected}
    if not fresh:
        return
    clean: list[str] = []
    for selector, matched in freezing.items():
        clean += largest_prefixes(rows, matched - fresh) if matched & fresh else [selector]
    outside = fresh - set().union(*training.values()) if training else set()
    wider = [*training, *largest_prefixes(rows, outside)]
    names = _listed([row.path for row in rows if row.path in fresh])
    advice = f"{remedy}, or set freeze.allow_fresh (--allow-fresh) to freeze them anyway"
    if 0 < len(clean) + len(wider) <= 8:
        advice = f"use {_command(dict.fromkeys(clean), dict.fromkeys(wider))}, {advice}"
    elif clean:
        advice = f"use a selector that leaves out {_listed(largest_prefixes(rows, fresh))}, {advice}"
    count = f"{len(fresh)} fresh variable{'s' if len(fresh) > 1 else ''}"
    raise FreezeError(
        f"{_command(freezing, training)} would freeze {count}, whose values come from an initializer "
        f"and not from a checkpoint: {names}; {advice}"
    )


def _refuse_fresh_statistics(plan: FreezePlan) -> None:
    frozen = set(plan.frozen)
    fresh = [row.path for row in plan.rows if row.statistic and not row.restored and row.path in frozen]
    if fresh:
        raise FreezeError(
            f"batch_norm 'fixed' would keep {len(fresh)} fresh moving averages at their initial values, and "
            f"so normalise nothing: {_listed(fresh)}; set model.batch_norm to update (--set "
            f"model.batch_norm=update) to train from scratch, {RESTORE}, or set freeze.allow_fresh "
            "(--allow-fresh)"
        )


def _command(freezing: Iterable[str], training: Iterable[str]) -> str:
    words = [word for selector in freezing for word in ("--freeze", selector)]
    words += [word for selector in training for word in ("--train-only", selector)]
    return shlex.join(words)


def _listed(paths: Sequence[str], limit: int = 6) -> str:
    more = f", and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(paths[:limit]) + more
