"""What every mapping of a configuration is made of."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping of the configuration; immutable, strict about its keys, and its numbers are finite."""

    # Infinity is no way to say "no limit" (null is), and passes bounds like `gt=0`.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
