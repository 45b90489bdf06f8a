"""Fill TensorBoard's HParams table: a column for each parameter, a row for each trial.

The page shows the columns of a single experiment summary. So that one must name every parameter of the space, before
the first trial starts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from raysweep.job.parameter import Parameter, Scalar
from raysweep.job.space import Space
from raysweep.records.schema import Status
from raysweep.reports.tensorboard.event_files import EVENT_FILES, EventFile, hparams

NOT_APPLICABLE = "n/a"
METRICS = (
    "hparam/objective", "eval/loss", "eval/perplexity", "eval/repetition",
    "heads/active", "model/params", "model/flops_per_token",
)  # fmt: skip


def write_experiment(folder: Path, space: Space | None) -> None:
    """Declare every column of the HParams table: before the first trial, and again when a sweep is extended."""
    write_columns(
        folder,
        api_pb2.Experiment(
            hparam_infos=[_column(parameter) for parameter in (space.parameters if space else ())],
            metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in METRICS],
        ),
    )


def _column(parameter: Parameter) -> Any:
    """Declare the column of a parameter. One with conditions holds text, because a number cannot be "n/a"."""
    column = api_pb2.HParamInfo(name=parameter.path, type=_column_type(parameter))
    if parameter.form == "choice":
        shown: list[Scalar] = [_shown(parameter, choice) for choice in parameter.choices]
        for value in [*shown, NOT_APPLICABLE] if parameter.conditions else shown:
            _set(column.domain_discrete.values.add(), value)
    # A column of text takes no interval.
    elif not parameter.conditions:
        column.domain_interval.min_value = parameter.low
        column.domain_interval.max_value = parameter.high
    return column


def _column_type(parameter: Parameter) -> Any:
    """Return the type of a column: TensorBoard knows numbers, booleans and text, and one type for each column."""
    if parameter.conditions:
        return api_pb2.DATA_TYPE_STRING
    if parameter.form != "choice":
        return api_pb2.DATA_TYPE_FLOAT64
    if all(isinstance(choice, bool) for choice in parameter.choices):
        return api_pb2.DATA_TYPE_BOOL
    # A bool is an int to Python: choices that mix both are shown as text.
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in parameter.choices):
        return api_pb2.DATA_TYPE_FLOAT64
    return api_pb2.DATA_TYPE_STRING


def _shown(parameter: Parameter, value: Scalar) -> Scalar:
    """Return a value in the type of its column."""
    if _column_type(parameter) != api_pb2.DATA_TYPE_STRING or isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]  # as in the search space's YAML
    return f"{value:.6g}"


def _set(field: Any, value: Scalar) -> None:
    if isinstance(value, bool):
        field.bool_value = value
    elif isinstance(value, int | float):
        field.number_value = value
    else:
        field.string_value = str(value)


def session_start(values: Mapping[str, Scalar], space: Space | None) -> Any:
    """Return the start of a trial's row; parameters that the trial lacks are shown as "n/a"."""
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    # Every parameter of the space: where a trial has no value for one, the cell says so and does not stay blank.
    for parameter in space.parameters if space else ():
        known = parameter.path in values
        _set(start.hparams[parameter.path], _shown(parameter, values[parameter.path]) if known else NOT_APPLICABLE)
    return hparams(metadata.SESSION_START_INFO_TAG, session_start_info=start)


def session_end(status: Status) -> Any:
    """Return the end of a trial's row. TensorBoard knows success and failure; the tag trial/status says more."""
    ended_well = status in ("COMPLETE", "STOPPED")
    end = plugin_data_pb2.SessionEndInfo(
        status=api_pb2.STATUS_SUCCESS if ended_well else api_pb2.STATUS_FAILURE, end_time_secs=time.time()
    )
    return hparams(metadata.SESSION_END_INFO_TAG, session_end_info=end)


def write_columns(folder: Path, experiment: Any) -> None:
    """Write an experiment summary."""
    events = EventFile(folder)
    events.add(0, hparams(metadata.EXPERIMENT_TAG, experiment=experiment))
    events.close()


def read_experiments(folder: Path) -> Iterator[Any]:
    """Yield the experiment summaries of a folder."""
    for path in sorted(folder.glob(EVENT_FILES)):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                yield metadata.parse_experiment_plugin_data(value.metadata.plugin_data.content)


def merged(experiments: Sequence[Any]) -> Any:
    """Return an experiment with the columns of all of them."""
    columns: dict[str, Any] = {}
    for column in (column for experiment in experiments for column in experiment.hparam_infos):
        _widen(columns.setdefault(column.name, column), column)
    # The metrics are METRICS in all of them.
    return api_pb2.Experiment(hparam_infos=columns.values(), metric_infos=experiments[0].metric_infos)


def _widen(column: Any, other: Any) -> None:
    """Make a column hold the values of another sweep, too."""
    domain = column.WhichOneof("domain")
    if column.type != other.type or domain != other.WhichOneof("domain"):
        # A parameter that is a number here and a choice there: the column has no domain, which fits any value.
        column.type = column.type if column.type == other.type else api_pb2.DATA_TYPE_STRING
        column.ClearField("domain_discrete")
        column.ClearField("domain_interval")
    elif domain == "domain_interval":
        column.domain_interval.min_value = min(column.domain_interval.min_value, other.domain_interval.min_value)
        column.domain_interval.max_value = max(column.domain_interval.max_value, other.domain_interval.max_value)
    elif domain == "domain_discrete":
        known = list(column.domain_discrete.values)
        column.domain_discrete.values.extend(
            value for value in list(other.domain_discrete.values) if value not in known
        )
