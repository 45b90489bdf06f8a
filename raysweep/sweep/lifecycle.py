"""Check what is asked of a sweep that has begun: more trials or other limits, trials to run again, or a fork of one.

Nothing is written here. A sweep may be given other limits but no other meaning: its trials must stay comparable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raysweep.errors import ArchiveError, Fault, SpecError, UsageError, known_names_hint
from raysweep.job.checks.sections import TRIAL_SECTIONS
from raysweep.job.identity import CHANGEABLE, job_hash
from raysweep.job.jobfile import Job, apply_values, check_job, parse_settings
from raysweep.job.paths import get_path
from raysweep.job.plan import Fingerprints, PhasePlan, TrialPlan
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.records.schema import Proposal, Status
from raysweep.sweep.wording import some

Values = dict[str, Any]


def changed(job: Job, overrides: Sequence[str]) -> Job:
    """Return a sweep's job with other limits.

    Raises:
        SpecError: a setting is unknown, wrong, or not one of CHANGEABLE.
    """
    values, faults = parse_settings(overrides)
    faults += [_refused(key, value) for key, value in values.items() if key not in CHANGEABLE]
    more, planned = values.get("search.trials"), _trials(job)
    if isinstance(more, int) and more < planned:
        message = f"the sweep has {planned} trials already; it can be given more, not fewer."
        faults.append(Fault(file="--set", key="search.trials", value=more, message=message))
    if faults:
        raise SpecError(faults)
    return _checked(job, values) if values else job


def with_trials(job: Job, trials: str | int) -> Job:
    """Return a sweep's job with more trials.

    Args:
        trials: the number of trials in all, or `+N` for N more.

    Raises:
        UsageError: it is not a number, or not more than there are.
    """
    planned, text = _trials(job), str(trials).strip()
    # isdigit alone would let through digits of other scripts, such as superscripts, which int refuses.
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"--trials {text!r}: give a number of trials in all, or +N for N more.")
    wanted = int(digits) + (planned if text.startswith("+") else 0)
    if wanted <= planned:
        raise UsageError(
            f"--trials {text}: the sweep has {planned} trials already. Give more in all, or +N for N more."
        )
    return _checked(job, {"search.trials": wanted})


def check_same(folder: SweepFolder, job: Job) -> None:
    """Check that a sweep's job is still the one that its trials were planned by.

    Raises:
        ArchiveError: it was edited.
    """
    other = other_jobs(folder.proposals().values(), job)
    if other:
        raise ArchiveError(
            f"{folder.path / 'job.yaml'} is not the job that trials {some(other)} of sweep "
            f"{folder.name!r} were planned by: it was edited. Put it back as it was; limits are changed with 'raysweep "
            "resume --set', trials with 'raysweep fork', all else in a new sweep."
        )


def other_jobs(proposals: Iterable[Proposal], job: Job) -> list[int]:
    """Return the trials that were planned by another job than this one."""
    now = job_hash(job.spec)
    return [proposal.trial for proposal in proposals if proposal.job not in ("", now)]


def to_retry(folder: SweepFolder, statuses: Collection[Status]) -> list[int]:
    """Return the trials that ended with one of some statuses.

    Raises:
        ArchiveError: there is none.
    """
    found = [trial for trial, record in folder.trials().items() if record.status in statuses]
    if not found:
        raise ArchiveError(f"sweep {folder.name!r} has no trial that is {' or '.join(statuses)}: nothing to retry.")
    return sorted(found)


def forked(
    folder: SweepFolder, job: Job, fingerprints: Fingerprints, trial: int, after: str, overrides: Sequence[str]
) -> Proposal:
    """Propose a trial that is equal to another one up to a phase, and goes on with other settings.

    Raises:
        ArchiveError: no such trial.
        SpecError: no such phase, or a setting is wrong or touches a phase before the fork.
    """
    proposals = folder.proposals()
    if trial not in proposals:
        known = ", ".join(map(str, sorted(proposals))) or "none yet"
        raise ArchiveError(f"sweep {folder.name!r} has no trial {trial}. Its trials: {known}.")
    parent = proposals[trial]
    settings = _settings_of_fork(overrides)
    # attempt=0: the agenda counts one more when it runs the fork, as for every trial that it finds unfinished.
    whole = plan_of(job, parent, fingerprints)
    kept = _up_to(whole, after)
    fork = replace(
        parent, trial=max(proposals) + 1, proposer="fork", of=trial, attempt=0, values=_merged(job, parent, settings)
    )
    try:
        plan = plan_of(job, fork, fingerprints)
    except SpecError as error:
        raise SpecError([replace(f, file="--set" if f.key in settings else f.file) for f in error.faults]) from None
    _check_kept(job, parent, fingerprints, kept, settings, plan)
    if [phase.key for phase in plan.phases] == [phase.key for phase in whole.phases]:
        key, value = list(settings.items())[-1]
        message = f"changes no phase after {after!r}: the fork would be trial {trial} itself."
        raise SpecError([Fault(file="--set", key=key, value=value, message=message)])
    return fork


def _settings_of_fork(overrides: Sequence[str]) -> Values:
    """Return what a fork changes.

    Raises:
        SpecError: nothing, or something that is no part of a trial.
    """
    settings, faults = parse_settings(overrides)
    faults += [
        Fault(file="--set", key=key, value=value, message=f"is no part of a trial, as {', '.join(TRIAL_SECTIONS)} are.")
        for key, value in settings.items()
        if key.split(".")[0] not in TRIAL_SECTIONS
    ]
    if not settings and not faults:
        faults.append(Fault(file="--set", key="", message="say what the fork does otherwise, as key=value."))
    if faults:
        raise SpecError(faults)
    return settings


def _up_to(plan: TrialPlan, after: str) -> list[PhasePlan]:
    labels = [phase.label for phase in plan.phases]
    if after not in labels:
        raise SpecError([Fault(file="--after", key=after, message=f"{known_names_hint(after, labels)}")])
    return list(plan.phases[: labels.index(after) + 1])


def _merged(job: Job, parent: Proposal, settings: Mapping[str, Any]) -> Values:
    """Return a fork's values: its parent's, less the options of strategies that it replaces, and its own."""
    # To replace a strategy resets the options of the old one: the parent's values that are gone then are left out.
    before = apply_values(job.spec.resolved(), parent.values)
    after = apply_values(before, settings)
    stay = {path: value for path, value in parent.values.items() if get_path(after, path) == value}
    return {**stay, **settings}


def _check_kept(
    job: Job, parent: Proposal, fingerprints: Fingerprints, kept: Sequence[PhasePlan], settings: Values, plan: TrialPlan
) -> None:
    """Check that a fork shares the phases before it.

    Raises:
        SpecError: a setting touches one of them.
    """
    touched = _first_touched(kept, plan)
    if touched is None:
        return
    # The error names the first setting that, together with those before it, changes a phase before the fork.
    culprit = list(settings)[-1]
    for count, key in enumerate(settings, start=1):
        some = dict(list(settings.items())[:count])
        try:
            found = _first_touched(kept, plan_of(job, replace(parent, values=_merged(job, parent, some)), fingerprints))
        # A setting may be valid only beside a later one, as an option beside its strategy.
        except SpecError:
            continue
        if found is not None:
            culprit, touched = key, found
            break
    before = kept.index(touched)
    way = f"fork after {kept[before - 1].label!r} instead" if before else "start a new sweep"
    message = f"changes phase {touched.label!r}, which is before the fork: {way}, or leave it out."
    raise SpecError([Fault(file="--set", key=culprit, value=settings[culprit], message=message)])


def _first_touched(kept: Sequence[PhasePlan], plan: TrialPlan) -> PhasePlan | None:
    keys = {phase.key for phase in plan.phases}
    return next((phase for phase in kept if phase.key not in keys), None)


def _refused(key: str, value: Any) -> Fault:
    message = (
        f"a sweep that has begun may be given other limits ({', '.join(CHANGEABLE)}), not another meaning. "
        "Fork a trial ('raysweep fork SWEEP TRIAL --after PHASE --set ...'), or start a new sweep."
    )
    return Fault(file="--set", key=key, value=value, message=message)


def _checked(job: Job, values: Values) -> Job:
    try:
        return check_job(apply_values(job.spec.resolved(), values), job.source)
    except SpecError as error:
        raise SpecError([replace(f, file="--set" if f.key in values else f.file) for f in error.faults]) from None


def _trials(job: Job) -> int:
    return job.spec.search.trials if job.spec.search else 1
