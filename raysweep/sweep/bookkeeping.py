"""Record an event of a running sweep, and tell the agenda what follows from it; for a driver and for the simulation."""

from __future__ import annotations

from raysweep.contracts.events import Event, TrialFinished, TrialPaused, TrialResumed
from raysweep.sweep.agenda import Agenda
from raysweep.sweep.recorder import Recorder


def record(event: Event, recorder: Recorder, agenda: Agenda) -> None:
    """Record an event, then tell the agenda: what it proposes next must follow from the archive."""
    recorder.handle(event)
    match event:
        case TrialFinished():
            agenda.ended(recorder.record_of(event.trial), recorder.reports_of(event.trial))
        case TrialPaused():
            agenda.paused(event.trial)
        case TrialResumed():
            agenda.resumed(event.trial)
        case _:
            # Other events change neither what is left to run nor what the sampler knows.
            pass
