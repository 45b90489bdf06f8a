"""raysweep: distributed sweeps of the plasticity of transformers, on Ray.

sweep = raysweep.run("jobs/quickstart.yaml")
raysweep.load("quickstart-1").trials()
raysweep.export("quickstart-1", 6, "my-model")
model = raysweep.load_model("my-model")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysweep.api import export as export
    from raysweep.api import extend as extend
    from raysweep.api import fork as fork
    from raysweep.api import gc as gc
    from raysweep.api import load as load
    from raysweep.api import load_model as load_model
    from raysweep.api import repair as repair
    from raysweep.api import resume as resume
    from raysweep.api import retry as retry
    from raysweep.api import run as run
    from raysweep.api import stop as stop

__all__ = ["export", "extend", "fork", "gc", "load", "load_model", "repair", "resume", "retry", "run", "stop"]


def __getattr__(name: str) -> Any:
    """Import the API when it is first used: `import raysweep` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'raysweep' has no attribute {name!r}")
    from raysweep import api

    return getattr(api, name)
