"""Read and write raysweep.json, which describes an exported folder beyond its configuration and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from raysweep.errors import ModelError

FILE = "raysweep.json"
Format = Literal["compact", "dense"]


class Manifest(BaseModel):
    """The content of raysweep.json."""

    # An unknown field means another version of this file, which may mean something else by the fields it shares.
    model_config = ConfigDict(extra="forbid", frozen=True)

    raysweep_schema: Literal[1] = 1
    format: Format
    family: str
    """Name of a file in raysweep/networks/models/."""
    task: str
    """Name of a file in raysweep/networks/tasks/."""
    model_class: str
    """The network's class, of transformers or of raysweep."""
    base_model: str
    """Name of the model that the trial began with."""
    sweep: str
    trial: int
    plan_key: str
    """Key of the last phase: the hash of everything that determined these weights."""
    cycles: int
    head_map: list[list[int]]
    """[layer][head]: -1 absent, otherwise the cycle in which the head was grown (0: original)."""
    kv_index: list[list[int] | None]
    """[layer][remaining query head]: its key/value head; null for a layer in which all groups are equally large."""
    metrics: dict[str, float | None]
    data: dict[str, Any]
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write raysweep.json into a folder."""
        (folder / FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read raysweep.json of a folder.

        Raises:
            ModelError: there is none, or it is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            raise ModelError(
                f"{str(folder)!r} holds no {FILE}: it is no export of raysweep. Make one with 'raysweep export', or "
                "load a plain model with transformers."
            )
        try:
            return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError, OSError) as error:
            # The first line of pydantic's message only counts the errors; the next ones name the first of them.
            reason = " ".join(str(error).splitlines()[1:4]) if isinstance(error, ValidationError) else str(error)
            raise ModelError(f"{str(path)!r} is damaged: {reason}. Export the trial again.") from error
