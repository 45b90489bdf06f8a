"""Train the model of one phase: report progress to the sweep, write checkpoints, and resume from the newest.

A resumed phase ends with the same bits as an uninterrupted one. A checkpoint therefore holds, beside weights and
optimizer state, each rank's losses that are not logged yet, what events have changed, and where trajectories stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raysweep.contracts import GO, Decision, first_not_go, raise_unless_go
from raysweep.contracts.events import PhaseResumed, StepLogged
from raysweep.job.plan import PhasePlan, derived_seed
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.trial.data.tokens import BatchOrder
from raysweep.trial.judged import JudgedProgress
from raysweep.trial.measures.measures import Measures
from raysweep.trial.state import TrialState
from raysweep.trial.store.phase_store import Partial, PhaseStore
from raysweep.trial.training.continuous import Events
from raysweep.trial.training.loop import Schedule, Training
from raysweep.trial.training.trajectory import Trajectory

UNLOGGED = "progress/unlogged"
"""Name of the tensor of unlogged losses in a checkpoint, one row a rank."""


@dataclass(kw_only=True)
class PhaseTraining:
    """Trains the model of a trial as one of its phases says; every rank runs it alike."""

    phase: PhasePlan
    arm: str
    state: TrialState
    measures: Measures
    store: PhaseStore
    judged: JudgedProgress | None
    """Reports held-out losses to the stopping rule; None where they do not count, as in control arms."""
    events: Events | None = None
    """Prunes and grows between two steps; None in phases without them."""
    _training: Training = field(init=False)
    _trajectory: Trajectory = field(init=False)
    _answers: list[Decision] = field(init=False, default_factory=list)
    """The sweep's answers since the last call of `_between_steps`."""
    _flops_of_heads: tuple[HeadMap | None, float] = (None, 0.0)
    """The head map of the last step, and the FLOPs of a step with it."""

    def __post_init__(self) -> None:
        phase, plan, data = self.phase, self.measures.plan, self.measures.data
        # A baseline has no settings of new heads; the schedule's defaults are those of a phase without any.
        names = Schedule.__dataclass_fields__
        schedule = Schedule(**{name: phase.params[name] for name in names if name in phase.params})
        self._trajectory = Trajectory(
            state=self.state,
            meter=self.measures.head_meter(),
            gate=schedule.gate,
            steps=phase.steps,
            # By default at least four points between two events, so that no generation of new heads passes unseen.
            every=phase.params.get("trajectory_every") or max(1, _stretch(phase) // 4),
        )
        self._training = Training(
            state=self.state,
            schedule=schedule,
            examples=data.train,
            task=self.measures.task,
            order=BatchOrder(
                num_windows=len(data.train),
                batch_size=plan.training["batch_size"],
                # Derived from the trial's seed and not from the phase key: arms whose earlier phases differ then train
                # on the same windows in the same order, and the difference of their results is not one of data.
                seed=derived_seed(str(plan.seed), "batches", phase.kind, phase.cycle),
            ),
            training=plan.training,
            runtime=self.measures.runtime,
            on_point=self._report_progress,
            on_step=self._trajectory.follow,
            evaluate=lambda: self.measures.held_out(self.state).loss,
            evaluate_every=phase.params["evaluate_every"],
            step_flops=self._step_flops,
            between_steps=self._between_steps,
            before_step=self.events.happen if self.events else lambda step: None,
        )

    def run(self) -> dict[str, Any]:
        """Train to the end, from the newest checkpoint if there is one; return fields of the phase's record.

        Raises:
            DivergedError: a loss or a gradient norm is not finite.
            Interrupted: the sweep decided to stop the trial, to pause it, or to end and leave it for later.
            DiskFullError: a checkpoint cannot be written.
        """
        training = self._training
        curve = training.run(self._resume())
        return {
            "curve": curve,
            "evaluations": training.evaluations,
            "trajectory": self._trajectory.points,
            "training_flops": training.flops,
            "dense_training_flops": self.measures.dense_step_flops(self.state) * self.phase.steps,
        }

    def _resume(self) -> int:
        """Restore the newest checkpoint; return the number of finished steps."""
        training, runtime = self._training, self.measures.runtime
        partial = self.store.find_partial(self.phase.key)
        start = partial.step if partial else 0
        # Every rank reads the store by itself. Ranks that began at different steps would wait for each other for ever.
        runtime.assert_equal(start)
        if partial is not None:
            self.state.load_tensors(partial.tensors)
            training.curve, training.evaluations = partial.curve, partial.evaluations
            training.flops = partial.flops
            # In this order: events clear slices by their head map in the loaded weights, and the trajectory looks up
            # the heads that events have grown.
            if self.events is not None:
                self.events.load(partial.structure, partial.tensors)
            self._trajectory.resume(partial.trajectory, partial.tensors)
            training.unlogged.copy_(partial.tensors[UNLOGGED][runtime.rank])
            if runtime.rank == 0:
                runtime.emit(PhaseResumed.of(self.measures.plan, self.phase, self.arm, step=start))
        return start

    def _between_steps(self, step: int) -> None:
        """Report an evaluation of this step; write a checkpoint if one is due or the trial may resume from here.

        Raises:
            Interrupted: the sweep decided that the trial does not go on.
        """
        training = self._training
        # The list holds all evaluations so far, so the last one may be of an earlier step.
        if training.evaluations and training.evaluations[-1]["step"] == step:
            self._answers.append(self._report(training.evaluations[-1]))
        decision = first_not_go(self._answers)
        self._answers.clear()
        # A trial that is paused, or left because the sweep ends, resumes from this very step. One that is stopped never
        # resumes, and needs no checkpoint.
        if decision.action in ("pause", "leave") or step % self.measures.plan.checkpoint_every_steps == 0:
            self._checkpoint(step)
        raise_unless_go(decision)

    def _checkpoint(self, step: int) -> None:
        """Write a checkpoint of the phase after `step` steps; called by all ranks together.

        Raises:
            DiskFullError: it cannot be written.
        """
        training, events = self._training, self.events
        # Weights and moments are equal on all ranks, but each rank has summed the losses of its own examples: without
        # the sums of all, the first point after a resume would be another one.
        unlogged = self.measures.runtime.all_gather(training.unlogged)

        def write() -> None:
            tensors = self.state.tensors() | {UNLOGGED: unlogged} | self._trajectory.tensors()
            partial = Partial(
                step=step,
                curve=training.curve,
                evaluations=training.evaluations,
                flops=training.flops,
                structure=events.structure() if events else {},
                tensors=tensors | (events.tensors() if events else {}),
                trajectory=self._trajectory.points,
            )
            self.store.save_partial(self.phase.key, partial)

        self.measures.runtime.write(write)
        self.measures.runtime.barrier()

    def _report_progress(self, point: dict[str, float]) -> None:
        """Report a logged point to the sweep, and keep its answer until the step is over."""
        logged = StepLogged.of(self.measures.plan, self.phase, self.arm, point=point)
        self._answers.append(self.measures.runtime.ask(logged))

    def _report(self, point: dict[str, float]) -> Decision:
        """Report an evaluation to the stopping rule; return its decision."""
        if self.judged is None:
            return GO
        return self.judged.report(
            self.phase, int(point["step"]), loss=point["loss"], flops=point["training_flops"],
            dense_flops_per_step=self.measures.dense_step_flops(self.state),
        )  # fmt: skip

    def _step_flops(self) -> float:
        """Return the FLOPs of a training step with the present heads."""
        # Counting walks through all modules, so it is done again only when events have changed the heads. Head maps
        # are never changed in place: another map is another object.
        if self._flops_of_heads[0] is not self.state.head_map:
            self._flops_of_heads = (self.state.head_map, self.measures.step_flops(self.state, self.state.head_map))
        return self._flops_of_heads[1]


def _stretch(phase: PhasePlan) -> int:
    """Return the steps from the first event of a phase to the next, or to the end; without events, all of them."""
    # A phase without events counts as one with an event before its first step.
    first, *later = [event["step"] for event in phase.params.get("events", ())] or [0]
    return (later or [phase.steps])[0] - first
