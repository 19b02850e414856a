"""What every mapping of a configuration is made of."""

from typing import Any, TypeGuard, get_args

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping of the configuration; immutable, strict about its keys, and its numbers are finite."""

    # Infinity is no way to say "no limit" (null is), and passes bounds like `gt=0`.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the mappings that a key of this type may hold."""
    if is_section(annotation):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_of(part)]


def is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    """Whether a key of this type is a mapping, and one of a single kind."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
