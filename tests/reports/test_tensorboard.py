"""Event files as TensorBoard itself reads them: points, phases, pictures, text, the HParams table, and the server."""

from __future__ import annotations

import io
import json
import math
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.util.tensor_util import make_ndarray

from raysweep.errors import ArchiveError
from raysweep.job.space import Values, parse_space
from raysweep.records.schema import PhaseRecord, perplexity
from raysweep.reports.plots.head_map import ABSENT, CELL
from raysweep.reports.plots.score import TITLE, VIRIDIS
from raysweep.reports.tensorboard.hparams import METRICS, write_experiment
from raysweep.reports.tensorboard.server import serve, serve_folder
from raysweep.reports.tensorboard.writer import TrialWriter

SPACE = parse_space(
    {
        "cycle.prune.strategy": {"choice": ["taylor", "entropy"]},
        "cycle.prune.direction": {"choice": ["high", "low"], "when": {"cycle.prune.strategy": "entropy"}},
        "cycle.prune.level": {"uniform": [0.1, 0.6], "step": 0.05},
        "cycle.grow.ratio": {"uniform": [0.0, 1.0]},
        "cycle.learn.new_head_lr_multiplier": {"log_uniform": [1.0, 10.0], "when": {"cycle.grow.ratio": {"above": 0}}},
        "cycle.learn.seed_second_moments": {"choice": [True, False]},
        "cycle.learn.multiplier_decay_steps": {"choice": [None, 100]},
        "training.batch_size": {"integer": [8, 32], "step": 8},
    },
    "space.yaml",
)
VALUES: Values = {
    "cycle.prune.strategy": "taylor",
    "cycle.prune.level": 0.3,
    "cycle.grow.ratio": 0.5,
    "cycle.learn.new_head_lr_multiplier": 4.123456789,
    "cycle.learn.seed_second_moments": True,
    "cycle.learn.multiplier_decay_steps": None,
    "training.batch_size": 16,
}
EVERY_STATUS = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]


def curve(steps: int, **extra: float) -> list[dict[str, float]]:
    return [
        {"step": float(step), "loss": 4 - step / 100, "lr": 1e-3, "gradient_norm": 0.5, **extra}
        for step in range(10, steps + 1, 10)
    ]


def record(phase: str, cycle: int = 0, *, steps: int = 0, loss: float = 3.0, **content: Any) -> PhaseRecord:
    fields: dict[str, Any] = dict(
        trial=0, phase=phase, cycle=cycle, key=f"{phase}-{cycle}", reused=False, loss=loss, perplexity=perplexity(loss),
        active_heads=4, head_map=[[0, 0, 0], [0, -1, -1]], params=1000, flops_per_token=2000.0, steps=steps, tokens=0,
        seconds=1.0, curve=curve(steps),
    )  # fmt: skip
    return PhaseRecord(**(fields | content))


def event(step: int, phase: str, loss: float, active_heads: int, **content: Any) -> dict[str, Any]:
    measured = {"loss": loss, "perplexity": perplexity(loss), "active_heads": active_heads}
    return {"step": step, "phase": phase, "cycle": 1, **measured, "params": 900, "flops_per_token": 1800.0, **content}


def decision(strategy: str, heads: list[list[int]]) -> dict[str, Any]:
    return {"strategy": strategy, "options": {}, "heads": heads, "scores": []}


def whole_trial() -> list[PhaseRecord]:
    return [
        record("baseline", steps=30, loss=3.0),
        record("prune", 1, loss=3.5, decision=decision("taylor", [[1, 1], [1, 2]])),
        record("measure", 1, loss=3.5),
        record("grow", 1, loss=3.4, decision=decision("random", [[1, 2]])),
        record("learn", 1, steps=20, loss=2.9, curve=curve(20, new_head_gate=0.5, new_head_multiplier=2.0)),
    ]


def write_trial(folder: Path, trial: int = 0, status: Any = "COMPLETE", objective: float | None = 2.9) -> None:
    writer = TrialWriter(folder, trial, VALUES, SPACE)
    for phase in whole_trial():
        writer.phase(phase)
    writer.finish(status, {} if objective is None else {"loss": objective})


def read(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE).Reload()


def event_files(run: Path) -> list[Path]:
    return [path for path in run.iterdir() if path.stat().st_size]


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 5)) for event in read(run).Scalars(tag)]


def texts(run: Path, tag: str) -> list[tuple[int, str]]:
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in read(run).Tensors(tag)]


class Table:
    """The HParams page of a log folder, from the plugin's own back end."""

    def __init__(self, logdir: Path) -> None:
        multiplexer = EventMultiplexer()
        multiplexer.AddRunsFromDirectory(str(logdir))
        multiplexer.Reload()
        context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(logdir))))
        where = (RequestContext(), context, "")
        self.runs = set(multiplexer.Runs())
        self.experiment = get_experiment.Handler(*where, api_pb2.GetExperimentRequest()).run()
        request = api_pb2.ListSessionGroupsRequest(allowed_statuses=EVERY_STATUS, slice_size=1000)
        groups = list_session_groups.Handler(*where, request).run().session_groups
        self.groups = {group.name: group for group in groups}
        self.columns = {info.name: info for info in self.experiment.hparam_infos}

    def values(self, run: str) -> dict[str, Any]:
        values = self.groups[run].hparams.items()
        return {name: getattr(value, value.WhichOneof("kind")) for name, value in values}

    def metrics(self, run: str) -> dict[str, float]:
        return {metric.name.tag: round(metric.value, 5) for metric in self.groups[run].metric_values}

    def status(self, run: str) -> str:
        return api_pb2.Status.Name(self.groups[run].sessions[0].status)

    def domain(self, name: str) -> Any:
        column = self.columns[name]
        kind = column.WhichOneof("domain")
        if kind == "domain_interval":
            return (column.domain_interval.min_value, column.domain_interval.max_value)
        return [getattr(value, value.WhichOneof("kind")) for value in column.domain_discrete.values] if kind else None


# Points and phases


def test_training_points_stand_at_the_step_of_the_whole_trial(tmp_path: Path) -> None:
    write_trial(tmp_path)
    run = tmp_path / "0"
    assert scalars(run, "train/loss") == [(10, 3.9), (20, 3.8), (30, 3.7), (43, 3.9), (53, 3.8)]
    assert [step for step, _ in scalars(run, "train/lr")] == [10, 20, 30, 43, 53]
    assert scalars(run, "train/gradient_norm")[0] == (10, 0.5)
    assert scalars(run, "heads/new_gate") == [(43, 0.5), (53, 0.5)]
    assert scalars(run, "heads/new_lr_multiplier") == [(43, 2.0), (53, 2.0)]


def test_phases_that_train_nothing_do_not_hide_each_other(tmp_path: Path) -> None:
    write_trial(tmp_path)
    run = tmp_path / "0"
    assert scalars(run, "eval/loss") == [(30, 3.0), (31, 3.5), (32, 3.5), (33, 3.4), (53, 2.9)]
    assert scalars(run, "phase/index") == [(30, 0), (31, 1), (32, 2), (33, 3), (53, 4)]
    for tag in ("eval/perplexity", "heads/active", "model/params", "model/flops_per_token"):
        steps = [step for step, _ in scalars(run, tag)]
        assert steps == sorted(set(steps)) and len(steps) == 5, tag


def test_a_phase_mark_says_what_happened(tmp_path: Path) -> None:
    write_trial(tmp_path)
    assert texts(tmp_path / "0", "phase") == [
        (30, "baseline: trained 30 steps"),
        (31, "prune cycle 1: taylor removed 2 heads"),
        (32, "measure cycle 1: measured 4 heads"),
        (33, "grow cycle 1: random grew 1 head"),
        (53, "learn cycle 1: trained 20 steps"),
    ]


def test_points_written_live_are_not_repeated_at_the_end_of_the_phase(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path, 0, VALUES, SPACE)
    for point in curve(20):
        writer.progress("baseline", 0, point)
    assert [step for step, _ in scalars(tmp_path / "0", "train/loss")] == [10, 20]  # readable at once
    writer.phase(record("baseline", steps=30))
    assert [step for step, _ in scalars(tmp_path / "0", "train/loss")] == [10, 20, 30]


def test_a_rebuilt_lane_repeats_nothing(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path, 0, VALUES, SPACE)
    baseline, prune, *_ = whole_trial()
    for _ in range(2):  # the second lane takes the first phases from the store and goes back to a checkpoint
        writer.phase(baseline)
        writer.phase(prune)
        for point in curve(20):
            writer.progress("learn", 1, point)
    writer.progress("baseline", 0, {"step": 40.0, "loss": 9.0})  # late word of a phase that is over
    writer.phase(record("learn", 1, steps=30))
    assert [step for step, _ in scalars(tmp_path / "0", "train/loss")] == [10, 20, 30, 41, 51, 61]
    assert [step for step, _ in scalars(tmp_path / "0", "eval/loss")] == [30, 31, 61]


def test_a_reused_phase_is_whole_and_says_that_it_was_shared(tmp_path: Path) -> None:
    TrialWriter(tmp_path, 0, VALUES, SPACE).phase(record("baseline", steps=20, reused=True))
    assert [step for step, _ in scalars(tmp_path / "0", "train/loss")] == [10, 20]
    assert texts(tmp_path / "0", "phase") == [(20, "baseline: trained 20 steps (outcome shared with another trial)")]


def test_an_untrained_baseline_is_measured(tmp_path: Path) -> None:
    TrialWriter(tmp_path, 0, {}, None).phase(record("baseline"))
    assert texts(tmp_path / "0", "phase") == [(1, "baseline: measured 4 heads")]


def test_new_heads_have_curves_of_their_own_on_the_axis_of_the_phase(tmp_path: Path) -> None:
    def look(step: int, gate: float) -> dict[str, Any]:
        numbers = {"gate": gate, "weight_norm": 2.0, "update": 0.5, "entropy": 0.75, "output_norm": 0.25}
        return {"step": step, "heads": [{"slot": [3, 1], **numbers}, {"slot": [0, 12], **numbers, "gate": 1.0}]}

    writer = TrialWriter(tmp_path, 0, {}, None)
    writer.phase(record("baseline", steps=30))
    writer.phase(record("learn", 1, steps=20, trajectory=[look(0, 0.25), look(20, 1.0)]))
    writer.finish("COMPLETE", {"loss": 1.0})
    assert scalars(tmp_path / "0", "heads/new/3.1/gate") == [(30, 0.25), (50, 1.0)]
    assert scalars(tmp_path / "0", "heads/new/0.12/gate") == [(30, 1.0), (50, 1.0)]
    for name, value in (("weight_norm", 2.0), ("update", 0.5), ("entropy", 0.75), ("output_norm", 0.25)):
        assert scalars(tmp_path / "0", f"heads/new/3.1/{name}") == [(30, value), (50, value)]


def test_a_value_that_is_not_known_yet_is_left_out(tmp_path: Path) -> None:
    looks = [{"step": step, "heads": [{"slot": [0, 1], "gate": 1.0, "update": u}]} for step, u in ((0, None), (5, 0.5))]
    TrialWriter(tmp_path, 0, {}, None).phase(record("learn", 1, steps=20, trajectory=looks))
    assert scalars(tmp_path / "0", "heads/new/0.1/update") == [(5, 0.5)]
    assert scalars(tmp_path / "0", "heads/new/0.1/gate") == [(0, 1.0), (5, 1.0)]


def test_events_inside_a_phase_stand_at_their_own_steps_as_they_left_the_model(tmp_path: Path) -> None:
    """In place of an evaluation there; before the first step, not in place of the end of the phase before."""
    happened = [
        event(0, "prune", 3.9, 28), event(0, "measure", 3.9, 28), event(0, "grow", 3.8, 30),
        event(10, "prune", 3.7, 27), event(10, "measure", 3.7, 27), event(10, "grow", 3.6, 29),
    ]  # fmt: skip
    asked = [{"step": step, "loss": 3.0 + step / 100, "training_flops": 1.0} for step in (5, 10, 15)]
    writer = TrialWriter(tmp_path, 0, {}, None)
    writer.phase(record("baseline", steps=30, active_heads=32))
    writer.phase(record("learn", 1, steps=20, loss=2.9, active_heads=29, events=happened, evaluations=asked))
    writer.finish("COMPLETE", {"loss": 2.9})
    found = dict(scalars(tmp_path / "0", "eval/loss"))
    assert found == {30: 3.0, 31: 3.8, 35: 3.05, 40: 3.6, 45: 3.15, 50: 2.9}
    assert scalars(tmp_path / "0", "heads/active") == [(30, 32), (31, 30), (40, 29), (50, 29)]
    assert [step for step, _ in scalars(tmp_path / "0", "eval/perplexity")] == [30, 31, 40, 50]
    assert [round(value, 3) for _, value in scalars(tmp_path / "0", "eval/perplexity")][1] == round(perplexity(3.8), 3)


def test_the_phases_of_a_control_arm_stand_where_the_trials_own_do(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path, 0, {}, None)
    for phase in whole_trial():
        writer.phase(phase)
    for kind, loss in (("prune", 3.8), ("measure", 3.8), ("grow", 3.7)):
        writer.phase(record(kind, 1, loss=loss, arm="random_random"))
    writer.phase(record("learn", 1, steps=20, loss=3.1, arm="random_random"))
    writer.phase(record("learn", 1, steps=20, loss=2.8, arm="dense"))
    writer.phase(record("baseline", 1, steps=50, loss=3.3, arm="from_scratch_small"))  # as long as the whole cycle
    writer.finish("COMPLETE", {"loss": 2.9})
    run = tmp_path / "0"
    assert scalars(run, "controls/random_random/loss") == [(31, 3.8), (32, 3.8), (33, 3.7), (53, 3.1)]
    assert scalars(run, "controls/dense/loss") == [(53, 2.8)]
    assert scalars(run, "controls/from_scratch_small/loss") == [(53, 3.3)]
    assert [step for step, _ in scalars(run, "eval/loss")] == [30, 31, 32, 33, 53]


# Pictures and text


def test_the_head_map_is_a_picture_of_layers_by_heads(tmp_path: Path) -> None:
    head_map = [[0, -1, 1, 2], [0, 0, 3, 4], [-1, 0, 0, 5]]
    TrialWriter(tmp_path, 0, {}, None).phase(record("baseline", head_map=head_map))
    [event] = read(tmp_path / "0").Images("heads/map")
    picture = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
    assert picture.size == (event.width, event.height) == (4 * CELL, 3 * CELL)

    def colour(layer: int, head: int) -> Any:
        return picture.getpixel((head * CELL + CELL // 2, layer * CELL + CELL // 2))

    original, absent, *grown = [colour(*at) for at in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]]
    assert len({original, absent, *grown}) == 6
    assert colour(2, 0) == absent and colour(1, 1) == original
    assert colour(2, 3) == grown[0]  # the colours of grown heads come round again
    assert picture.getpixel((CELL, 5)) == (255, 255, 255)  # heads stand apart


def test_the_head_map_has_a_legend(tmp_path: Path) -> None:
    TrialWriter(tmp_path, 0, {}, None).phase(record("baseline"))
    description = read(tmp_path / "0").SummaryMetadata("heads/map").summary_description
    assert "Rows are layers" in description and "absent" in description and "grown" in description


def picture_of(run: Path, tag: str) -> Image.Image:
    [event] = read(run).Images(tag)
    picture = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
    assert picture.size == (event.width, event.height)
    return picture


def scored(statistics: dict[str, Any], **content: Any) -> PhaseRecord:
    return record("measure", 1, statistics=statistics, **content)


TAYLOR = [[0.0, 0.25, 1.0, 0.5], [None, 0.75, 0.5, 0.25], [0.5, 0.5, 0.5, None]]
ENTROPY = [[3.0, 3.0, 3.0, 3.0], [None, 3.0, 3.0, 3.0], [3.0, 3.0, 3.0, None]]


def test_each_score_is_a_heat_map_from_its_lowest_to_its_highest_head(tmp_path: Path) -> None:
    TrialWriter(tmp_path, 0, {}, None).phase(scored({"taylor": TAYLOR, "entropy": ENTROPY}))
    lowest, *_, middle, _, _, _, highest = map(tuple, VIRIDIS.tolist())

    def colours(tag: str) -> list[list[Any]]:
        picture, half = picture_of(tmp_path / "0", tag), CELL // 2
        return [
            [picture.getpixel((head * CELL + half, TITLE + layer * CELL + half)) for head in range(4)]
            for layer in range(3)
        ]

    quarter, three_quarters = (tuple(VIRIDIS[at].tolist()) for at in (2, 6))
    assert colours("scores/taylor") == [
        [lowest, quarter, highest, middle],
        [ABSENT, three_quarters, middle, quarter],
        [middle, middle, middle, ABSENT],
    ]
    assert {colour for row in colours("scores/entropy") for colour in row} == {middle, ABSENT}  # all equal


def test_a_heat_map_of_scores_has_room_for_its_title_and_says_what_its_colours_mean(tmp_path: Path) -> None:
    small = {"sink_free_entropy": [[0.5, 0.25]], "taylor": [[123456.0, -0.000123456]]}
    TrialWriter(tmp_path, 0, {}, None).phase(scored(small, head_map=[[0, 0]]))
    for tag in ("scores/sink_free_entropy", "scores/taylor"):
        picture = picture_of(tmp_path / "0", tag)
        title = picture.crop((0, 0, picture.width, TITLE)).convert("L").point(lambda light: 255 * (light < 128))
        left, _, right, _ = title.getbbox() or (0, 0, 0, 0)
        assert picture.height == TITLE + CELL and 0 < left < 8 and 100 < right < picture.width
    description = read(tmp_path / "0").SummaryMetadata("scores/taylor").summary_description
    assert all(word in description for word in ("layers", "lowest", "highest", "title", "Grey: absent"))


def test_the_title_of_a_heat_map_is_its_name_and_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, title, **how: titles.append(title))
    TrialWriter(tmp_path, 0, {}, None).phase(scored({"taylor": TAYLOR, "fisher": [[2e-7, None], [None, 0.012345]]}))
    assert titles == ["taylor  0 .. 1", "fisher  2e-07 .. 0.0123"]


def test_the_distribution_of_a_score_counts_every_present_head_once(tmp_path: Path) -> None:
    TrialWriter(tmp_path, 0, {}, None).phase(scored({"taylor": TAYLOR, "entropy": ENTROPY}))
    events = read(tmp_path / "0")
    assert events.SummaryMetadata("scores/taylor/distribution").plugin_data.plugin_name == "histograms"
    [event] = events.Tensors("scores/taylor/distribution")
    left, right, counts = make_ndarray(event.tensor_proto).T
    assert (event.step, left[0], right[-1]) == (1, 0.0, 1.0) and (left[1:] == right[:-1]).all()
    assert [(round(edge, 3), count) for edge, count in zip(left, counts, strict=True) if count] == [
        (0.0, 1.0), (0.233, 2.0), (0.5, 5.0), (0.733, 1.0), (0.967, 1.0),
    ]  # fmt: skip
    [event] = events.Tensors("scores/entropy/distribution")
    assert make_ndarray(event.tensor_proto)[:, 2].sum() == 10


def test_scores_and_agreement_stand_at_the_step_of_their_cycle(tmp_path: Path) -> None:
    agreement = {"taylor": {"global": 0.5, "layer_centred": -0.25}, "entropy": {"global": None, "layer_centred": None}}
    plain: dict[str, Any] = {"statistics": {"taylor": TAYLOR}}
    asked: dict[str, Any] = {**plain, "agreement": agreement}
    writer = TrialWriter(tmp_path, 0, {}, None)
    writer.phase(record("baseline", steps=30))
    writer.phase(record("prune", 1))
    writer.phase(record("measure", 1, **plain))
    events = [event(10, "prune", 4.0, 2), event(10, "measure", 4.0, 2, **asked)]
    writer.phase(record("learn", 1, steps=20, events=events))
    writer.phase(record("measure", 2, **asked))
    writer.phase(record("measure", 2, arm="no_regrow", **asked))
    writer.finish("COMPLETE", {"loss": 1.0})
    found = read(tmp_path / "0")
    assert [event.step for event in found.Images("scores/taylor")] == [32, 42, 53]
    assert [event.step for event in found.Tensors("scores/taylor/distribution")] == [32, 42, 53]
    assert scalars(tmp_path / "0", "agreement/taylor/global") == [(42, 0.5), (53, 0.5)]
    assert scalars(tmp_path / "0", "agreement/taylor/layer_centred") == [(42, -0.25), (53, -0.25)]
    assert not [tag for tag in found.Tags()["scalars"] if tag.startswith("agreement/entropy")]


def test_where_no_head_is_left_there_is_no_score_to_show(tmp_path: Path) -> None:
    TrialWriter(tmp_path, 0, {}, None).phase(scored({"taylor": [[None, None]]}, head_map=[[-1, -1]]))
    assert read(tmp_path / "0").Tags()["images"] == ["heads/map"]


def test_samples_show_prompt_text_and_repetition_as_written(tmp_path: Path) -> None:
    samples = [
        {"prompt": "= Robert =", "text": "# no heading\n\n<b>no markup</b> ``` é 😀", "repetition": 0.25},
        {"prompt": "", "text": "a\rb\u2028c", "repetition": 0.75},
    ]
    TrialWriter(tmp_path, 0, {}, None).phase(record("baseline", samples=samples))
    [(step, text)] = texts(tmp_path / "0", "samples")
    shown = markdown_to_safe_html(text)
    assert step == 1
    assert "<h1>" not in shown and "<b>" not in shown
    assert "<pre><code># no heading\n\n&lt;b&gt;no markup&lt;/b&gt; ``` é 😀" in shown
    assert "<pre><code>= Robert =" in shown and "<pre><code>a\nb\nc" in shown
    assert "repetition 0.25" in shown and "repetition 0.75" in shown
    assert scalars(tmp_path / "0", "eval/repetition") == [(1, 0.5)]


# The HParams table


def test_every_column_exists_before_the_first_trial(tmp_path: Path) -> None:
    write_experiment(tmp_path, SPACE)
    table = Table(tmp_path)
    assert set(table.columns) == set(SPACE.paths)
    assert {metric.name.tag for metric in table.experiment.metric_infos} == set(METRICS)
    assert {"hparam/objective", "eval/loss", "eval/perplexity", "heads/active"} <= set(METRICS)


def test_columns_have_the_domains_of_the_space(tmp_path: Path) -> None:
    write_experiment(tmp_path, SPACE)
    table = Table(tmp_path)
    assert table.domain("cycle.prune.strategy") == ["taylor", "entropy"]
    assert table.domain("cycle.prune.direction") == ["high", "low", "n/a"]
    assert table.domain("cycle.prune.level") == (0.1, 0.6)
    assert table.domain("training.batch_size") == (8, 32)
    assert table.domain("cycle.learn.seed_second_moments") == [True, False]
    assert table.domain("cycle.learn.multiplier_decay_steps") == ["null", "100"]
    assert table.columns["cycle.prune.level"].type == api_pb2.DATA_TYPE_FLOAT64
    assert table.columns["cycle.learn.seed_second_moments"].type == api_pb2.DATA_TYPE_BOOL
    assert table.columns["cycle.learn.new_head_lr_multiplier"].type == api_pb2.DATA_TYPE_STRING


def test_an_extended_sweep_has_one_experiment_summary(tmp_path: Path) -> None:
    write_experiment(tmp_path, None)
    write_experiment(tmp_path, SPACE)
    assert len(event_files(tmp_path)) == 1
    assert set(Table(tmp_path).columns) == set(SPACE.paths)


def test_a_trial_shows_every_parameter(tmp_path: Path) -> None:
    write_experiment(tmp_path, SPACE)
    TrialWriter(tmp_path, 0, VALUES, SPACE)
    table = Table(tmp_path)
    assert table.values("0") == {
        **VALUES,
        "cycle.prune.direction": "n/a",
        "cycle.learn.new_head_lr_multiplier": "4.12346",  # conditional: text
        "cycle.learn.multiplier_decay_steps": "null",
    }
    assert table.status("0") == "STATUS_UNKNOWN"  # it runs


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("COMPLETE", "STATUS_SUCCESS"),
        ("STOPPED", "STATUS_SUCCESS"),
        ("DIVERGED", "STATUS_FAILURE"),
        ("FAILED", "STATUS_FAILURE"),
        ("CANCELLED", "STATUS_FAILURE"),
    ],
)
def test_a_trial_has_metrics_however_it_ended(tmp_path: Path, status: Any, shown: str) -> None:
    write_experiment(tmp_path, SPACE)
    write_trial(tmp_path, status=status, objective=2.9 if status in ("COMPLETE", "STOPPED") else None)
    table = Table(tmp_path)
    assert table.status("0") == shown
    assert texts(tmp_path / "0", "trial/status") == [(53, status)]
    metrics = table.metrics("0")
    assert metrics["eval/loss"] == 2.9 and metrics["heads/active"] == 4
    assert metrics["eval/perplexity"] == pytest.approx(math.exp(2.9), rel=1e-6)
    assert metrics.get("hparam/objective") == (2.9 if status in ("COMPLETE", "STOPPED") else None)


def test_a_trial_that_failed_before_its_first_phase_is_listed(tmp_path: Path) -> None:
    write_experiment(tmp_path, SPACE)
    TrialWriter(tmp_path, 7, VALUES, SPACE).finish("FAILED", {})
    table = Table(tmp_path)
    assert table.status("7") == "STATUS_FAILURE" and table.metrics("7") == {}


def test_an_infinite_perplexity_is_readable(tmp_path: Path) -> None:
    TrialWriter(tmp_path, 0, {}, None).phase(record("baseline", loss=900.0))
    assert scalars(tmp_path / "0", "eval/perplexity") == [(1, math.inf)]


# Restarts


def test_a_restarted_trial_leaves_no_trace_of_its_first_attempt(tmp_path: Path) -> None:
    write_trial(tmp_path, trial=0)
    write_trial(tmp_path, trial=1)
    writer = TrialWriter(tmp_path, 0, VALUES, SPACE)
    writer.phase(record("baseline", steps=20))
    assert [step for step, _ in scalars(tmp_path / "0", "eval/loss")] == [20]
    assert len(event_files(tmp_path / "0")) == 1
    assert len(scalars(tmp_path / "1", "eval/loss")) == 5


def test_an_open_tensorboard_forgets_the_first_attempt(tmp_path: Path) -> None:
    write_trial(tmp_path)
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    assert len(multiplexer.Tensors("0", "eval/loss")) == 5
    for steps in (20, 10, 40):
        writer = TrialWriter(tmp_path, 0, VALUES, SPACE)
        writer.phase(record("baseline", steps=steps))
        multiplexer.Reload()
        assert [event.step for event in multiplexer.Tensors("0", "eval/loss")] == [steps]
    assert len(list((tmp_path / "0").iterdir())) == 2


# The server


def test_tensorboard_sees_exactly_the_sweeps_named(tmp_path: Path) -> None:
    folders = {name: tmp_path / name / "tensorboard" for name in ("a", "b", "c")}
    for folder in folders.values():
        write_experiment(folder, SPACE)
        write_trial(folder)
    with serve_folder({name: folders[name] for name in ("a", "c")}) as logdir:
        table = Table(logdir)
        assert table.runs == {"a", "a/0", "c", "c/0"}
        assert set(table.groups) == {"a/0", "c/0"}
        assert table.metrics("c/0")["eval/loss"] == 2.9
        write_trial(folders["a"], trial=1)
        assert "a/1" in Table(logdir).runs  # a sweep that is still running goes on growing
    assert not logdir.exists()
    assert len(scalars(folders["a"] / "0", "eval/loss")) == 5  # only the links are gone


def test_sweeps_of_different_spaces_show_the_columns_of_all(tmp_path: Path) -> None:
    other = parse_space(
        {
            "cycle.learn.lr": {"log_uniform": [1e-5, 1e-3]},
            "cycle.prune.level": {"uniform": [0.3, 0.9]},
            "cycle.prune.strategy": {"choice": ["entropy", "magnitude"]},
            "training.batch_size": {"choice": [8, 64]},
            "cycle.learn.seed_second_moments": {"choice": ["yes"]},
        },
        "other.yaml",
    )
    for name, space in (("z", SPACE), ("a", other)):
        write_experiment(tmp_path / name, space)
    write_trial(tmp_path / "z")
    with serve_folder({"z": tmp_path / "z", "a": tmp_path / "a"}) as logdir:
        table = Table(logdir)
    assert set(table.columns) == {*SPACE.paths, *other.paths}
    assert {metric.name.tag for metric in table.experiment.metric_infos} == set(METRICS)
    assert table.domain("cycle.prune.level") == (0.1, 0.9)
    assert table.domain("cycle.prune.strategy") == ["taylor", "entropy", "magnitude"]
    assert table.domain("training.batch_size") is None  # a range here, choices there
    assert table.columns["cycle.learn.seed_second_moments"].type == api_pb2.DATA_TYPE_STRING
    assert table.values("z/0")["cycle.prune.strategy"] == "taylor"


def test_a_sweep_without_event_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="'x' has nothing for TensorBoard"), serve_folder({"x": tmp_path / "x"}):
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(port: int, path: str, **content: Any) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/data/{path}",
        data=json.dumps(content).encode() if content else None,
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def wait_for(port: int, num_phases: int, process: subprocess.Popen[bytes], run: str) -> list[Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            points = fetch(port, f"plugin/scalars/scalars?run={run}&tag=eval/loss")
            if len(points) == num_phases:
                return points
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    pytest.fail(f"TensorBoard did not show {num_phases} phases (exit status {process.poll()})")


@pytest.mark.parametrize(("paths", "fast"), [(["x", "x"], True), (["x", "y"], False)])
def test_the_server_reads_one_experiment_for_certain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], fast: bool
) -> None:
    """Of several summaries the fast data server takes a random one."""
    sweeps = {str(number): tmp_path / str(number) for number in range(len(paths))}
    for folder, path in zip(sweeps.values(), paths, strict=True):
        write_experiment(folder, parse_space({path: {"uniform": [0, 1]}}, "space.yaml"))
    monkeypatch.setattr(subprocess, "Popen", lambda command: command)
    with serve_folder(sweeps) as logdir:
        command: Any = serve(logdir, 6007)
    assert command[0] == sys.executable
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "6007"
    assert ("--load_fast" not in command) == fast


@pytest.mark.slow
def test_the_server_shows_every_phase_of_a_sweep(tmp_path: Path) -> None:
    cycles = 5
    write_experiment(tmp_path, SPACE)
    writer = TrialWriter(tmp_path, 0, VALUES, SPACE)
    writer.phase(record("baseline", steps=30))
    for cycle in range(1, cycles + 1):
        writer.phase(record("prune", cycle))
        writer.phase(record("measure", cycle, statistics={"taylor": TAYLOR}))
        writer.phase(record("grow", cycle))
        writer.phase(record("learn", cycle, steps=20))
    writer.finish("COMPLETE", {"loss": 2.9})
    phases, port = 1 + 4 * cycles, free_port()
    with serve_folder({"sweep": tmp_path}) as logdir:
        process = serve(logdir, port)
        try:
            wait_for(port, phases, process, "sweep/0")
            query = "?run=sweep/0&tag="
            assert len(fetch(port, f"plugin/images/images{query}heads/map&sample=0")) == phases  # not a sample of 10
            assert len(fetch(port, f"plugin/text/text{query}phase")) == phases
            assert len(fetch(port, f"plugin/images/images{query}scores/taylor&sample=0")) == cycles
            distributions = fetch(port, f"plugin/histograms/histograms{query}scores/taylor/distribution")
            assert [sum(count for _, _, count in buckets) for _, _, buckets in distributions] == [10] * cycles
            columns = fetch(port, "plugin/hparams/experiment", experimentName="")["hparamInfos"]
            assert {column["name"] for column in columns} == set(SPACE.paths)
            write_trial(tmp_path)  # the trial starts again
            points = wait_for(port, 5, process, "sweep/0")
            assert [step for _, step, _ in points] == [30, 31, 32, 33, 53]
        finally:
            process.terminate()
            process.wait(20)


def test_writing_event_files_needs_neither_torch_nor_ray() -> None:
    code = "import sys, raysweep.reports.tensorboard.writer; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "tensorflow", "tensorboardX"} & set(done.stdout.split())
