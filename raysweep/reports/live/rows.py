"""Draw running trials as the rows of a live table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Group
from rich.table import Table
from rich.text import Text

from raysweep.contracts import Report
from raysweep.job.plan import PhasePlan, TrialPlan
from raysweep.records.schema import PhaseRecord

DONE, REUSED, RUNNING, WAITING, PAUSED = "✓", "◇", "▶", "…", "‖"


@dataclass(kw_only=True)
class Row:
    """A running trial: what it has done and what it is doing."""

    trial: int
    planned: tuple[PhasePlan, ...] = ()
    """Its own phases, without those of control arms."""
    done: list[PhaseRecord] = field(default_factory=list)
    now: tuple[str, str] | None = None
    """The running phase and its state, such as `▶ 20/60`; None between two phases."""
    attempt: int = 1
    loss: float | None = None
    """Training loss, as it was last logged."""
    held_out: float | None = None
    seconds: float = 0.0
    """What its phases took so far; `Progress` leaves out a baseline that later trials reuse."""

    @staticmethod
    def of(plan: TrialPlan) -> Row:
        return Row(trial=plan.trial, planned=plan.phases)

    def log(self, phase: str, step: int, steps: int, loss: float) -> None:
        self.now, self.loss = (self._name_of(phase), f"{RUNNING} {step}/{steps}"), loss

    def wait(self, phase: str, cycle: int) -> None:
        """Show that it waits for a phase that another trial is running and that it will reuse."""
        self.now = (self._name(phase, cycle), f"{WAITING} another trial runs it")

    def pause(self) -> None:
        # The phase in which it was paused stays visible.
        self.now = ((self.now or ("", ""))[0], f"{PAUSED} paused by its stopping rule")

    def go_on(self) -> None:
        self.now = None

    def lose_workers(self, attempt: int) -> None:
        """Reset for a new attempt, which reports the finished phases again."""
        self.attempt, self.done, self.now = attempt, [], None

    def report(self, report: Report) -> None:
        self.held_out = report.loss

    def finish(self, record: PhaseRecord) -> None:
        self.done.append(record)
        self.now, self.held_out = None, record.loss

    def ticks(self) -> str:
        """Write the finished phases, each with its mark; those of control arms with the name of the arm."""
        return " ".join(self._tick(record) for record in self.done)

    def way(self) -> Text:
        """Write all phases: finished cycles in short, those of this cycle, the running one, and those still to come."""
        # Cycles are counted from 1; the baseline alone has cycle 0, and is always shown.
        cycle = max((record.cycle for record in self.done), default=0)
        first = [self._tick(record) for record in self.done if record.cycle == 0]
        earlier = [self._cycle_tick(number) for number in range(1, cycle)]
        done = [self._tick(record) for record in self.done if record.cycle == cycle > 0]
        # Control arms run phases of the same names, which do not count as the trial's own.
        known = {(record.phase, record.cycle) for record in self.done if record.arm == "main"}
        to_come = [self._name(p.kind, p.cycle) for p in self.planned if (p.kind, p.cycle) not in known]
        text = Text(" ".join([*first, *earlier, *done]))
        # Blanks go between the parts only where something stands before them.
        if self.now is not None:
            text.append(" " * bool(text) + " ".join(self.now), style="bold")
            to_come = [name for name in to_come if name != self.now[0]]
        text.append(" " * bool(text) + " ".join(to_come), style="dim")
        return text

    def heads(self) -> str:
        if not self.done:
            return ""
        last = self.done[-1]
        return f"{last.active_heads}/{sum(map(len, last.head_map))}"

    def _cycle_tick(self, cycle: int) -> str:
        reused = all(record.reused for record in self.done if record.cycle == cycle)
        return f"cycle {cycle} {REUSED if reused else DONE}"

    def _tick(self, record: PhaseRecord) -> str:
        arm = "" if record.arm == "main" else f"{record.arm}:"
        return f"{arm}{self._name(record.phase, record.cycle)} {REUSED if record.reused else DONE}"

    def _name_of(self, kind: str) -> str:
        """Return the name of the next phase of a kind."""
        known = {(record.phase, record.cycle) for record in self.done if record.arm == "main"}
        # A logged step names its kind of phase alone: the cycle is the first in which that kind is still to be run.
        cycles = [p.cycle for p in self.planned if p.kind == kind and (p.kind, p.cycle) not in known]
        return self._name(kind, cycles[0] if cycles else 1)

    def _name(self, kind: str, cycle: int) -> str:
        # With its level where it prunes: later cycles may prune more than the first.
        phase = next((p for p in self.planned if (p.kind, p.cycle) == (kind, cycle)), None)
        level = f" {100 * phase.params['level']:.3g}%" if phase and "level" in phase.params else ""
        return (kind if cycle <= 1 else f"{kind}@{cycle}") + level


def live_table(rows: Iterable[Row], summary: Sequence[str], height: int) -> Group:
    """Draw the rows that fit into `height` lines, and a line that sums up the sweep."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("#", "phases", "heads", "loss", "held-out", "attempt"):
        table.add_column(heading, justify="left" if heading == "phases" else "right", no_wrap=heading != "phases")
    # Waiting trials last: where the screen is too small, they are the ones to leave out.
    ordered = sorted(rows, key=lambda row: (row.now is not None and WAITING in row.now[1], row.trial))
    # Kept free are lines for the headings, the number of rows left out and the summary, and one for the cursor.
    # At least one row, on the smallest screen.
    shown = ordered[: max(1, height - 4)]
    for row in shown:
        table.add_row(
            str(row.trial), row.way(), row.heads(), _number(row.loss), _number(row.held_out), str(row.attempt)
        )
    more = len(ordered) - len(shown)
    lines = [Text(f"and {more} more", style="dim")] if more else []
    return Group(*([table] if shown else []), *lines, Text(" · ".join(filter(None, summary)), style="bold"))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
