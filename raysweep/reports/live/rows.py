"""Running trials as rows of a table: where each stands, drawn anew as news comes in."""

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
    """One running trial, as far as it has come."""

    trial: int
    planned: tuple[PhasePlan, ...] = ()
    """Its own phases."""
    done: list[PhaseRecord] = field(default_factory=list)
    now: tuple[str, str] | None = None
    """The phase that it is in, and how far; None: between two phases."""
    attempt: int = 1
    loss: float | None = None
    """Of the last training steps that it logged."""
    held_out: float | None = None
    seconds: float = 0.0
    """What it took so far, without what trials reuse of it."""

    @staticmethod
    def of(plan: TrialPlan) -> Row:
        return Row(trial=plan.trial, planned=plan.phases)

    def log(self, phase: str, step: int, steps: int, loss: float) -> None:
        self.now, self.loss = (self._name_of(phase), f"{RUNNING} {step}/{steps}"), loss

    def wait(self, phase: str, cycle: int) -> None:
        """Stand still until another trial has run a phase that this one needs too."""
        self.now = (self._name(phase, cycle), f"{WAITING} another trial runs it")

    def pause(self) -> None:
        self.now = ((self.now or ("", ""))[0], f"{PAUSED} paused by its stopping rule")

    def go_on(self) -> None:
        self.now = None

    def lose_workers(self, attempt: int) -> None:
        """Begin again: the attempt tells once more of the phases that are done."""
        self.attempt, self.done, self.now = attempt, [], None

    def report(self, report: Report) -> None:
        self.held_out = report.loss

    def finish(self, record: PhaseRecord) -> None:
        self.done.append(record)
        self.now, self.held_out = None, record.loss

    def ticks(self) -> str:
        """Write the finished phases, each with its mark; of control arms, with the arm's name."""
        return " ".join(self._tick(record) for record in self.done)

    def way(self) -> Text:
        """Write the whole way: earlier cycles in short, what is done, where it is, and what is still to come."""
        cycle = max((record.cycle for record in self.done), default=0)
        first = [self._tick(record) for record in self.done if record.cycle == 0]
        earlier = [self._cycle_tick(number) for number in range(1, cycle)]
        done = [self._tick(record) for record in self.done if record.cycle == cycle > 0]
        known = {(record.phase, record.cycle) for record in self.done if record.arm == "main"}
        to_come = [self._name(p.kind, p.cycle) for p in self.planned if (p.kind, p.cycle) not in known]
        text = Text(" ".join([*first, *earlier, *done]))
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
        """Name the phase of a kind that comes next."""
        known = {(record.phase, record.cycle) for record in self.done if record.arm == "main"}
        cycles = [p.cycle for p in self.planned if p.kind == kind and (p.kind, p.cycle) not in known]
        return self._name(kind, cycles[0] if cycles else 1)

    def _name(self, kind: str, cycle: int) -> str:
        phase = next((p for p in self.planned if (p.kind, p.cycle) == (kind, cycle)), None)
        level = f" {100 * phase.params['level']:.3g}%" if phase and "level" in phase.params else ""
        return (kind if cycle <= 1 else f"{kind}@{cycle}") + level


def live_table(rows: Iterable[Row], summary: Sequence[str], height: int) -> Group:
    """Draw the rows that fit into so many lines, and a line of what the sweep has come to."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("#", "phases", "heads", "loss", "held-out", "attempt"):
        table.add_column(heading, justify="left" if heading == "phases" else "right", no_wrap=heading != "phases")
    ordered = sorted(rows, key=lambda row: (row.now is not None and WAITING in row.now[1], row.trial))
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
