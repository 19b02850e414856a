"""What every mapping of a configuration is made of."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping of the configuration; immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
