"""Ray Train for a lane, without the processes that a lane has no use for.

By default each Train run starts four actors beside its workers: its controller, one that removes placement groups
should the controller die, one for Ray Data sets, and one that reserves nodes for them. Each imports Ray Train anew, one
after the other, before the first worker starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.result import Result

# A lane reads no Ray Data set. Its placement group outlives a lane that is killed, so it is told of before it is used:
# whoever starts the lane anew removes it.
UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)


class LaneTrainer(TorchTrainer):
    """A TorchTrainer whose controller runs in the process that calls `fit`, which must be an actor's.

    Args:
        on_placed: called with each placement group that is made for workers.
    """

    def __init__(self, *given: Any, on_placed: Callable[[Any], None], **options: Any) -> None:
        super().__init__(*given, **options)
        self._on_placed = on_placed

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, UNUSED)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        on_placed = self._on_placed

        class Workers(WorkerGroup):
            def _create_placement_group(self, *given: Any, **options: Any) -> Any:
                handle = super()._create_placement_group(*given, **options)
                on_placed(handle.placement_group)
                return handle

        class Controller(TrainController):
            worker_group_cls = Workers

        controller = Controller(**arguments | {"scaling_policy": _FixedWorkers(self.scaling_config)})
        asyncio.run(controller.run())
        return controller.get_result()


class _FixedWorkers(FixedScalingPolicy):
    """As many workers as the job says. The placement group alone asks an autoscaler for their nodes."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass
