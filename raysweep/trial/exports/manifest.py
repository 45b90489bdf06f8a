"""raysweep.json: what an exported folder says of itself beyond its configuration and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from raysweep.errors import ModelError

FILE = "raysweep.json"
Format = Literal["compact", "dense"]


class Manifest(BaseModel):
    """The content of raysweep.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    raysweep_schema: Literal[1] = 1
    format: Format
    family: str
    """a file in raysweep/networks/models/."""
    task: str
    model_class: str
    """The class of transformers that the network is of."""
    base_model: str
    sweep: str
    trial: int
    plan_key: str
    """Key of the last phase: the hash of everything that determined these weights."""
    cycles: int
    head_map: list[list[int]]
    """[layer][head]: -1 absent, otherwise the cycle in which the head was grown (0: original)."""
    kv_index: list[list[int] | None]
    """Each layer's key/value head of each remaining query head; null where they divide evenly."""
    metrics: dict[str, float | None]
    data: dict[str, Any]
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read a folder's manifest.

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
            reason = " ".join(str(error).splitlines()[1:4]) if isinstance(error, ValidationError) else str(error)
            raise ModelError(f"{str(path)!r} is damaged: {reason}. Export the trial again.") from error
