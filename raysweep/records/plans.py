"""Resolve a proposed trial to its plan."""

from __future__ import annotations

from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, TrialPlan, make_plan
from raysweep.records.schema import DERIVED, Proposal


def plan_of(job: Job, proposal: Proposal, fingerprints: Fingerprints) -> TrialPlan:
    """Return the plan of a proposed trial, with its values and its seed.

    Raises:
        SpecError: the values break a rule of the job.
    """
    spec = job.with_values(proposal.values, proposal.seed)
    # Replicates, confirmations and forks run to their end: one that was stopped would have no result to compare.
    judged = proposal.proposer not in DERIVED
    return make_plan(spec, proposal.values, trial=proposal.trial, fingerprints=fingerprints, judged=judged)
