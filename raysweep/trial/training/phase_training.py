"""The training of one phase: told and asked about step by step, and gone on with from its last checkpoint."""

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


@dataclass(kw_only=True)
class PhaseTraining:
    """Trains the model of a trial as one of its phases says; the same on every rank."""

    phase: PhasePlan
    arm: str
    state: TrialState
    measures: Measures
    store: PhaseStore
    judged: JudgedProgress | None
    """Told of the held-out losses on the way, where they count."""
    events: Events | None = None
    """What happens to heads between two steps."""
    _training: Training = field(init=False)
    _trajectory: Trajectory = field(init=False)
    _answers: list[Decision] = field(init=False, default_factory=list)
    """To what was said since the last step."""
    _flops_of_heads: tuple[HeadMap | None, float] = (None, 0.0)
    """The head map of the last step, and what a step takes with it."""

    def __post_init__(self) -> None:
        phase, plan, data = self.phase, self.measures.plan, self.measures.data
        names = Schedule.__dataclass_fields__
        schedule = Schedule(**{name: phase.params[name] for name in names if name in phase.params})
        self._trajectory = Trajectory(
            state=self.state,
            examiner=self.measures.examiner(),
            gate=schedule.gate,
            steps=phase.steps,
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
                # Of the trial's seed and not the key: arms that differ before this phase see the same data in it.
                seed=derived_seed(str(plan.seed), "batches", phase.kind, phase.cycle),
            ),
            training=plan.training,
            runtime=self.measures.runtime,
            on_point=self._tell,
            on_step=self._trajectory.follow,
            evaluate=lambda: self.measures.held_out(self.state).loss,
            evaluate_every=phase.params["evaluate_every"],
            step_flops=self._step_flops,
            between_steps=self._between_steps,
            before_step=self.events.happen if self.events else lambda step: None,
        )

    def run(self) -> dict[str, Any]:
        """Train to the end, from the last checkpoint if there is one; return what the phase's record says of it.

        Raises:
            DivergedError: a loss or a gradient is not finite.
            Interrupted: the sweep says that the trial shall not go on, or not here.
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
        """Take up the last checkpoint; return the step to go on from."""
        training, runtime = self._training, self.measures.runtime
        partial = self.store.find_partial(self.phase.key)
        start = partial.step if partial else 0
        runtime.assert_equal(start)
        if partial is not None:
            self.state.load_tensors(partial.tensors)
            training.curve, training.evaluations = partial.curve, partial.evaluations
            training.flops = partial.flops
            if self.events is not None:
                self.events.load(partial.structure, partial.tensors)
            self._trajectory.resume(partial.trajectory, partial.tensors)
            training.unlogged.copy_(partial.tensors[UNLOGGED][runtime.rank])
            if runtime.rank == 0:
                runtime.emit(PhaseResumed.of(self.measures.plan, self.phase, self.arm, step=start))
        return start

    def _between_steps(self, step: int) -> None:
        """Report an evaluation of this step, and write a checkpoint where one is due or the sweep ends the trial."""
        training = self._training
        if training.evaluations and training.evaluations[-1]["step"] == step:
            self._answers.append(self._report(training.evaluations[-1]))
        decision = first_not_go(self._answers)
        self._answers.clear()
        if decision.action in ("pause", "leave") or step % self.measures.plan.checkpoint_every_steps == 0:
            self._checkpoint(step)
        raise_unless_go(decision)

    def _checkpoint(self, step: int) -> None:
        training, events = self._training, self.events
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

    def _tell(self, point: dict[str, float]) -> None:
        logged = StepLogged.of(self.measures.plan, self.phase, self.arm, point=point)
        self._answers.append(self.measures.runtime.ask(logged))

    def _report(self, point: dict[str, float]) -> Decision:
        if self.judged is None:
            return GO
        return self.judged.report(
            self.phase, int(point["step"]), loss=point["loss"], flops=point["training_flops"],
            dense_flops_per_step=self.measures.dense_step_flops(self.state),
        )  # fmt: skip

    def _step_flops(self) -> float:
        if self._flops_of_heads[0] is not self.state.head_map:
            self._flops_of_heads = (self.state.head_map, self.measures.step_flops(self.state, self.state.head_map))
        return self._flops_of_heads[1]


def _stretch(phase: PhasePlan) -> int:
    """Return the steps from the first event of a phase to the next, or to the end; without events, all of them."""
    first, *later = [event["step"] for event in phase.params.get("events", ())] or [0]
    return (later or [phase.steps])[0] - first
