"""Selectors: the text by which people choose variables, resolved to sets of paths.

    box_classifier                    a path prefix, at `/` boundaries
    feature_extractor/Mixed_3*        with globs: `*` and `?` stay within one name, `**` crosses `/`
    feature_extractor[:Mixed_4c]      stages from the first through that one (the end is included)
    box_classifier/tower[Mixed_5b:]   the same one level down
    feature_extractor[:100]           `component.layers[:100]`, as in Python (the end is excluded)
    re:PATTERN                        a regular expression over the path and the Object Detection API name
    api:PATTERN                       the same over the Object Detection API name alone
    all_but:SELECTOR[,SELECTOR...]    everything that none of them matches
    none                              nothing; stands alone

Several selectors are a list, or one text with commas.  `re:`, `api:` and `all_but:` take the rest of their
text, commas included.

`api:` is for the `freeze_variables` of a `pipeline.config`: a pattern that says what a name must *not* hold,
`^((?!FirstStage).)*$`, is true of every path, and would mean everything as `re:`.

Both search anywhere in the name, as `tf.contrib.framework.filter_variables` did for the Object Detection
API's Estimator trainer (`model_lib.py`).  Its older `legacy/trainer.py` matched from the start of the name
(`variables_helper.py`); a pattern written for that one needs a leading `^` where the difference matters.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_REGEX_PREFIXES = ("re:", "api:")


class FreezeError(ValueError):
    """Selectors that cannot mean what was wanted; the message says what to write instead."""


@dataclass(frozen=True)
class VariableRow:
    """What freezing needs to know of one variable.

    `path` is `component/stage/.../leaf`; `restored` is whether its value came from a checkpoint; `statistic`
    marks BatchNorm's moving averages, which no gradient moves.  `layer_index` is the position of its layer in
    `component.layers`, which has `layer_count` entries (some of them without variables); both are None for a
    variable of the component itself.  `api_name` is its name in the Object Detection API, where it has one.
    """

    path: str
    shape: tuple[int, ...]
    restored: bool
    api_name: str | None = None
    statistic: bool = False
    layer_index: int | None = None
    layer_count: int | None = None

    @property
    def component(self) -> str:
        """The first name of the path."""
        return self.path.split("/")[0]

    @property
    def stage(self) -> str:
        """The path of its stage; see `stage_of`."""
        return stage_of(self.path)

    @property
    def layer(self) -> str:
        """The path of the layer that owns the variable."""
        return self.path.rpartition("/")[0]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        size = 1
        for length in self.shape:
            size *= length
        return size


def stage_of(path: str) -> str:
    """Return the path of the stage that the variable or layer at `path` is of.

    The feature extractor and the tower are chains of stages; the RPN and the predictor are one stage each.
    """
    names = path.split("/")
    depth = 1 if names[0] == "rpn" else 3 if names[:2] == ["box_classifier", "tower"] else 2
    return "/".join(names[:depth])


def split_selectors(texts: str | Iterable[str]) -> list[str]:
    """Return single selectors from one comma-separated text or several, in order.

    Raises `FreezeError` on an empty one.
    """
    selectors = []
    for text in [texts] if isinstance(texts, str) else texts:
        rest: str | None = text
        while rest is not None:
            rest = rest.strip()
            if rest.startswith((*_REGEX_PREFIXES, "all_but:")):
                selector, rest = rest, None
            else:
                selector, comma, tail = rest.partition(",")
                rest = tail if comma else None
            if not selector.strip():
                raise FreezeError(f"empty selector in {text!r}; to select nothing write 'none'")
            selectors.append(selector.strip())
    return selectors


def select_each(
    texts: str | Iterable[str], rows: Sequence[VariableRow], role: str = "freeze"
) -> dict[str, set[str]]:
    """Return {selector: paths it matches}; `none` gives an empty mapping.  Raises as `select` does."""
    selectors = split_selectors(texts)
    if "none" in selectors:
        if len(selectors) > 1:
            others = ", ".join(repr(selector) for selector in selectors if selector != "none")
            raise FreezeError(f"{role} selector 'none' stands alone, but came with {others}; leave one out")
        return {}
    return {selector: select(selector, rows, role) for selector in selectors}


def select(selector: str, rows: Sequence[VariableRow], role: str = "freeze") -> set[str]:
    """Return the paths that one selector matches: at least one, unless it is `none`.

    `role` (`freeze`, `train_only`) opens the messages.  Raises `FreezeError` where the selector matches
    nothing or cannot be read.
    """
    if selector == "none":
        return set()
    if selector.startswith(_REGEX_PREFIXES):
        return _select_regex(selector, rows, role)
    if selector.startswith("all_but:"):
        kept = set().union(*select_each(selector.removeprefix("all_but:"), rows, role).values())
        matched = {row.path for row in rows} - kept
        if not matched:
            raise FreezeError(f"{role} selector {selector!r} matches nothing: it leaves out every variable")
        return matched
    if "[" in selector or "]" in selector:
        return _select_slice(selector, rows, role)
    pattern = _glob_regex(selector.rstrip("/"))
    matched = {row.path for row in rows if pattern.match(row.path)}
    if not matched:
        wanted = selector.replace("*", "").replace("?", "")
        raise FreezeError(f"{role} selector {selector!r} matches nothing; {_nearest(wanted, rows)}")
    return matched


def under(prefix: str, path: str) -> bool:
    """Whether `path` is `prefix` or lies below it."""
    return path == prefix or path.startswith(prefix + "/")


def largest_prefixes(rows: Iterable[VariableRow], chosen: Iterable[str]) -> list[str]:
    """Return the fewest path prefixes that hold exactly the `chosen` paths, in the order of `rows`."""
    chosen = set(chosen)
    paths = [row.path for row in rows]
    mixed = {prefix for path in paths if path not in chosen for prefix in _prefixes(path)}
    largest = (
        next(prefix for prefix in _prefixes(path) if prefix not in mixed) for path in paths if path in chosen
    )
    return list(dict.fromkeys(largest))


def _prefixes(path: str) -> list[str]:
    names = path.split("/")
    return ["/".join(names[: depth + 1]) for depth in range(len(names))]


def _glob_regex(glob: str) -> re.Pattern[str]:
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    return re.compile("".join(meaning.get(piece, re.escape(piece)) for piece in pieces) + "(?:/|$)")


def _select_regex(selector: str, rows: Sequence[VariableRow], role: str) -> set[str]:
    prefix, _, text = selector.partition(":")
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise FreezeError(f"{role} selector {selector!r} is not a regular expression: {error}") from None
    if not text:
        raise FreezeError(f"{role} selector {selector!r} has no pattern after the colon")
    matched = {row.path for row in rows if row.api_name is not None and pattern.search(row.api_name)}
    if prefix == "re":
        matched |= {row.path for row in rows if pattern.search(row.path)}
    if not matched:
        wanted = re.sub(r"[\\^$.*+?()|{}\[\]]", "", text)
        raise FreezeError(f"{role} selector {selector!r} matches nothing; {_nearest(wanted, rows, api=True)}")
    return matched


def _select_slice(selector: str, rows: Sequence[VariableRow], role: str) -> set[str]:
    opening = f"{role} selector {selector!r}"
    form = re.fullmatch(r"([^\[\]]*)\[([^\[\]:]*):([^\[\]:]*)\]", selector)
    if not form:
        raise FreezeError(
            f"{opening} is not a slice; write component[FIRST:LAST] with stage names, component[START:STOP] "
            "with layer numbers, or component/STAGE for one stage"
        )
    scope, start, stop = (text.strip() for text in form.groups())
    inside = [row for row in rows if row.path.startswith(scope + "/")]
    if not inside:
        problem = f"slices {scope!r}, which does not exist" if scope else "does not say what it slices"
        raise FreezeError(f"{opening} {problem}; {_nearest(scope, rows)}")
    bounds = [bound for bound in (start, stop) if bound]
    numbers = [bound for bound in bounds if re.fullmatch(r"[+-]?\d+", bound)]
    if not numbers:
        return _select_stages(opening, scope, start, stop, inside, rows)
    if len(numbers) < len(bounds):
        raise FreezeError(f"{opening} mixes a layer number and a stage name; use two of a kind")
    if "/" in scope:
        component = scope.split("/")[0]
        raise FreezeError(
            f"{opening} numbers the layers of {scope!r}, but layer numbers count within a whole component; "
            f"write {component}[{start}:{stop}] with numbers of {component}.layers, or name stages"
        )
    count = max(row.layer_count or 0 for row in inside)
    wanted = range(count)[int(start) if start else None : int(stop) if stop else None]
    matched = {row.path for row in inside if row.layer_index is not None and row.layer_index in wanted}
    if not matched:
        raise FreezeError(
            f"{opening} matches nothing: {scope}.layers has {count} layers, and the {len(wanted)} in the "
            "slice hold no variables"
        )
    return matched


def _select_stages(
    opening: str,
    scope: str,
    first: str,
    last: str,
    inside: Sequence[VariableRow],
    rows: Sequence[VariableRow],
) -> set[str]:
    def name_of(row: VariableRow) -> str:
        return row.path.removeprefix(scope + "/").split("/")[0]

    names = list(dict.fromkeys(name_of(row) for row in inside))
    stages = f"its stages: {', '.join(names)}"
    for bound in filter(None, (first, last)):
        if bound not in names:
            below = [p for p in _all_prefixes(rows) if under(scope, p) and p.endswith("/" + bound)]
            hint = f" ({below[0].rpartition('/')[0]!r} has)" if below else ""
            raise FreezeError(f"{opening}: {scope!r} has no stage {bound!r}{hint}; {stages}")
    begin = names.index(first) if first else 0
    end = names.index(last) if last else len(names) - 1
    if begin > end:
        raise FreezeError(f"{opening} matches nothing: {first!r} comes after {last!r}; {stages}")
    wanted = set(names[begin : end + 1])
    return {row.path for row in inside if name_of(row) in wanted}


def _all_prefixes(rows: Iterable[VariableRow]) -> list[str]:
    return list(dict.fromkeys(prefix for row in rows for prefix in _prefixes(row.path)))


def _nearest(wanted: str, rows: Sequence[VariableRow], api: bool = False) -> str:
    """Say which prefixes are most like `wanted`: wholly, or by as many of their last names as it has."""
    candidates = _all_prefixes(rows)
    if api:
        candidates += dict.fromkeys(p for row in rows if row.api_name for p in _prefixes(row.api_name))
    depth = wanted.count("/") + 1
    matcher = difflib.SequenceMatcher(b=wanted.lower(), autojunk=False)
    likeness: dict[str, float] = {}
    for candidate in candidates:
        for text in (candidate, "/".join(candidate.split("/")[-depth:])):
            matcher.set_seq1(text.lower())
            likeness[candidate] = max(likeness.get(candidate, 0.0), matcher.ratio())
    best = max(likeness.values(), default=0.0)
    # Far below the best, a candidate only distracts.
    close = [name for name in candidates if likeness[name] >= max(0.6, best - 0.1)]
    close.sort(key=lambda name: (-likeness[name], name.count("/")))
    if close:
        return f"nearest: {', '.join(repr(name) for name in close[:3])}"
    components = dict.fromkeys(row.component for row in rows)
    return f"the components are {', '.join(repr(name) for name in components)}"
