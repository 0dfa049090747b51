"""What is read of a notebook file and of the record that its run leaves, as schemas: both may be anybody's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt


class Tags(BaseModel):
    """Metadata of a cell, as far as they are read."""

    model_config = ConfigDict(extra="allow")

    tags: list[str] = Field(default_factory=list)


class Cell(BaseModel):
    """A cell of a notebook, as far as it is read."""

    model_config = ConfigDict(extra="allow")

    cell_type: Literal["code", "markdown", "raw"]
    source: str | list[str]
    metadata: Tags = Field(default_factory=Tags)


class Kernel(BaseModel):
    """Which kernel a notebook asks for."""

    model_config = ConfigDict(extra="allow")

    name: str = ""


class About(BaseModel):
    """Metadata of a notebook, as far as they are read."""

    model_config = ConfigDict(extra="allow")

    kernelspec: Kernel = Field(default_factory=Kernel)


class Content(BaseModel):
    """A notebook file, as far as it is read."""

    model_config = ConfigDict(extra="allow")

    nbformat: Literal[4] = 4
    cells: list[Cell]
    metadata: About = Field(default_factory=About)


class Recorded(BaseModel):
    """What a run leaves in metrics.json, as far as it is read."""

    model_config = ConfigDict(extra="allow")

    notebook: str
    profile: str
    metrics: dict[str, StrictBool | StrictInt | StrictFloat]
    figures: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]]
    provenance: dict[str, Any] = Field(default_factory=dict)
