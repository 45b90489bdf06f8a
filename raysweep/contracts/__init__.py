"""The contracts between rooms, one file a subject; import them from here: `from raysweep.contracts import Array`."""

# The one __init__ of the package that hands on names. Code outside raysweep imports them from here, so a
# contract can move to another file of this folder without breaking it.
from raysweep.contracts.arrays import Array, Examples, Mask, Slot
from raysweep.contracts.data import Batch, Facts, Task
from raysweep.contracts.exits import Exit, ExitLook
from raysweep.contracts.families import AttentionSite, Family, HeadSlice, Place, Role
from raysweep.contracts.heads import (
    HEAD_STATISTICS,
    HEAD_STATISTICS_ON_DEMAND,
    Grower,
    HeadStatistics,
    Initializer,
    NewSlice,
    Pruner,
    SensitivityForm,
)
from raysweep.contracts.search import FAILED, TOLD, Draw, Sampler, SearchFeature
from raysweep.contracts.stopping import (
    GO,
    Decision,
    Interrupted,
    Report,
    Scheduler,
    StoppingRule,
    first_not_go,
    raise_unless_go,
)

__all__ = [
    "Array",
    "AttentionSite",
    "Batch",
    "FAILED",
    "Decision",
    "Draw",
    "Examples",
    "Exit",
    "Facts",
    "Family",
    "GO",
    "Grower",
    "HEAD_STATISTICS",
    "HEAD_STATISTICS_ON_DEMAND",
    "HeadSlice",
    "HeadStatistics",
    "Initializer",
    "Interrupted",
    "ExitLook",
    "Mask",
    "NewSlice",
    "Place",
    "Pruner",
    "Report",
    "Role",
    "Sampler",
    "Scheduler",
    "SearchFeature",
    "SensitivityForm",
    "Slot",
    "StoppingRule",
    "TOLD",
    "Task",
    "first_not_go",
    "raise_unless_go",
]
