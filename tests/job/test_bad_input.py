"""What is wrong is said once, on stderr, with the way out; exit 2; nothing is started, nothing is left behind."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.jobs import quick_job
from support.sweeps import finished_sweep, job_mapping

from raysweep.cli import main
from raysweep.job.yamlfile import dump_mapping

pytestmark = pytest.mark.torch  # a job is checked against its model

FAMILIES = "Known: bert, gpt2, gpt_neox, llama, mistral, opt, pnn, pnn_vision, qwen2, qwen3, roberta, vit"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one good job; nothing may be started from it."""

    def start(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a sweep was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYSWEEP_RESULTS", raising=False)
    monkeypatch.setattr("raysweep.cluster.driver.run_sweep", start)
    write_job("good.yaml", job_mapping())
    return tmp_path


def write_job(name: str, job: Mapping[str, Any]) -> str:
    Path(name).write_text(dump_mapping(job))
    return name


def changed(**sections: Any) -> str:
    """Write a job with sections replaced; None removes one."""
    job = {**copy.deepcopy(job_mapping()), **sections}
    del job["search"]
    return write_job("job.yaml", {key: value for key, value in job.items() if value is not None})


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def refused(*arguments: str) -> str:
    """Run a command that must be refused before anything is written; return its one message."""
    before = sorted(Path.cwd().rglob("*"))
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    messages = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    assert len(messages) == 1, result.stderr
    assert sorted(Path.cwd().rglob("*")) == before
    return messages[0].partition(": ")[2]


def prune(**changes: Any) -> dict[str, Any]:
    cycle = copy.deepcopy(job_mapping()["cycle"])
    cycle["prune"].update(changes)
    return cycle


# Job files.


def test_a_missing_job_file() -> None:
    assert refused("run", "jbos/x.yaml") == (
        "jbos/x.yaml: no such file. Give the path of a YAML file, or a job of 'raysweep list jobs'."
    )


def test_a_folder_is_no_job() -> None:
    assert refused("run", ".") == ".: cannot be read (Is a directory)."


def test_a_yaml_syntax_error_is_placed() -> None:
    Path("bad.yaml").write_text("name: x\nmodel: {name: gpt2-nano\ncycle: y\n")
    assert refused("run", "bad.yaml").startswith("bad.yaml: not valid YAML: line 3, column 6: ")


@pytest.mark.parametrize(("text", "held"), [("", "nothing"), ("- a\n", "list"), ("just text", "str")])
def test_a_file_that_holds_no_mapping(text: str, held: str) -> None:
    Path("bad.yaml").write_text(text)
    assert f"bad.yaml: holds {held}, not a mapping" in refused("run", "bad.yaml")


def test_a_job_that_is_not_utf8() -> None:
    Path("bad.yaml").write_bytes(b"name: \xff\n")
    assert refused("plan", "bad.yaml") == "bad.yaml: not UTF-8 text (byte 6)."


def test_an_unknown_key_names_the_nearest() -> None:
    message = refused("run", changed(cycle=prune(levle=0.3)))
    assert message.startswith(
        "job.yaml: cycle.prune.levle = 0.3: unknown key: no 'levle'. Did you mean 'level'? Known: "
    )


def test_a_misspelt_strategy_names_the_nearest() -> None:
    message = refused("run", changed(cycle=prune(strategy="tailor")))
    assert message.startswith("job.yaml: cycle.prune.strategy = 'tailor': no 'tailor'. Did you mean 'taylor'? Known: ")


def test_a_level_above_one() -> None:
    assert refused("run", changed(cycle=prune(level=1.5))).startswith("job.yaml: cycle.prune.level = 1.5: ")


def test_growth_without_pruning() -> None:
    cycle = prune()
    del cycle["prune"]
    message = refused("run", changed(cycle=cycle))
    assert message == (
        "job.yaml: cycle.grow: nothing to grow back without pruning; add cycle.prune or remove cycle.grow."
    )


def test_an_unknown_search_space() -> None:
    message = refused("run", "good.yaml", "--set", "search.space=spaces/x.yaml")
    assert message.startswith("--set: search.space = 'spaces/x.yaml': no such file; looked in ")


# Models.


def model_folder(**config: Any) -> str:
    Path("model").mkdir()
    if config:
        Path("model/config.json").write_text(json.dumps(config))
    return changed(model={"name": "model"})


def test_a_model_folder_without_weights() -> None:
    job = model_folder(model_type="gpt2", n_layer=1, n_head=2, n_embd=8, bos_token_id=None, eos_token_id=None)
    message = refused("run", job)
    assert message.startswith(
        f"model folder {str(Path('model').resolve())!r} holds no weights: none of model.safetensors"
    )
    assert "Save it with save_pretrained()." in message


def test_a_model_folder_without_a_configuration() -> None:
    message = refused("run", model_folder())
    assert "holds no config.json. Save it with save_pretrained()." in message


def test_an_unknown_architecture_names_the_families_and_how_to_add_one() -> None:
    message = refused("run", model_folder(model_type="bloom"))
    assert "'bloom'" in message
    assert FAMILIES in message
    assert "To add a family, write raysweep/networks/models/<model_type>.py" in message


def test_a_hub_model_without_a_network() -> None:
    message = refused("run", changed(model={"name": "gpt2-nanno"}))
    assert message.startswith("model.name = 'gpt2-nanno' is neither a folder here nor a model that can be loaded")
    assert "Did you mean 'gpt2-nano'?" in message


def test_a_model_that_only_the_space_names() -> None:
    job = job_mapping(space={"model.name": {"choice": ["gpt2-nano", "gpt9-nano"]}})
    assert "model.name = 'gpt9-nano'" in refused("run", write_job("job.yaml", job))


def test_a_configuration_that_is_no_json() -> None:
    job = model_folder()
    Path("model/config.json").write_text('{"model_type": ')
    message = refused("validate", job)
    assert f"{str(Path('model/config.json').resolve())!r} is not valid JSON (" in message
    assert "save_pretrained()" in message


@pytest.mark.parametrize("text", ["[]", "{}", '{"model_type": 3}'])
def test_a_configuration_that_names_no_architecture(text: str) -> None:
    job = model_folder()
    Path("model/config.json").write_text(text)
    assert "config.json' names no model_type." in refused("validate", job)


def test_an_architecture_that_nobody_knows_names_the_families() -> None:
    message = refused("validate", model_folder(model_type="gpt7"))
    assert "is a 'gpt7': no 'gpt7'. Did you mean 'gpt2'?" in message and FAMILIES in message


def test_a_configuration_with_a_value_that_its_architecture_does_not_take() -> None:
    message = refused("validate", model_folder(model_type="gpt2", n_head="many"))
    assert "config.json' is not a valid configuration of a 'gpt2': " in message and "n_head" in message


def test_a_configuration_whose_sizes_contradict_each_other() -> None:
    job = model_folder(model_type="gpt2", n_layer=1, n_head=3, n_embd=8)
    Path("model/model.safetensors").touch()
    assert "cannot be built as its configuration says: " in refused("validate", job)


# Numbers of heads.


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
@pytest.mark.parametrize(
    ("cycle", "said"),
    [
        ({"prune": {"level": 0.95}}, "cycle.prune.level = 0.95: asked to remove 30 heads, but only 28 may go"),
        (
            {"prune": {"min_heads_per_layer": 9}},
            "cycle.prune.min_heads_per_layer = 9: asked to remove 10 heads, but only 0 may go",
        ),
        (
            {"continuous": {"every": 4, "remove": 20}, "learn": {"steps": 20}},
            "cycle.continuous.remove = 20: in event 2, asked to remove 20 heads, but only ",
        ),
        (
            {"continuous": {"every": 4, "remove": 1, "grow": 5}},
            "cycle.continuous.grow = 5: asked to grow 5 heads, but only 1 are absent. Lower cycle.continuous.grow.",
        ),
        (
            {"cycles": 3, "level_escalation": 0.3, "grow": {"ratio": 0.0}},
            "cycle.prune.level = 0.3: in cycle 2, asked to remove 19 heads, but only 18 may go",
        ),
        (
            {"cycles": 2, "prune": {"level": 0.6}, "grow": {"ratio": 1.0}},
            "cycle.prune.level = 0.6: in cycle 2, asked to remove 19 heads, but only 13 may go (min_heads_per_layer = "
            "1, 19 freshly grown heads protected). Lower cycle.prune.level.",
        ),
    ],
)
def test_a_number_of_heads_that_there_cannot_be(command: str, cycle: dict[str, Any], said: str) -> None:
    base = quick_job(cycle__cycles=1)["cycle"]
    changes = {
        key: {**base[key], **value} if key in base and key != "cycles" else value for key, value in cycle.items()
    }
    job = write_job("job.yaml", quick_job(cycle={**base, **changes}, model__name="gpt2-nano"))
    assert refused(command, job).startswith(f"job.yaml: {said}")


def test_a_number_of_heads_that_a_setting_asks_for_is_named_as_a_setting() -> None:
    message = refused("validate", "good.yaml", "--set", "cycle.prune.min_heads_per_layer=9")
    assert message.startswith("--set: cycle.prune.min_heads_per_layer = 9: ")
    assert message.endswith("Lower cycle.prune.min_heads_per_layer or cycle.prune.level.")


def test_a_range_with_an_end_at_which_too_many_heads_would_go_is_a_note_and_one_without_another_a_fault() -> None:
    said = "job.yaml (search.space): cycle.prune.level = 0.95: asked to remove 30 heads, but only 28 may go"
    job = job_mapping(space={"cycle.prune.level": {"uniform": [0.1, 0.95], "step": 0.05}})
    result = invoke("validate", write_job("job.yaml", job))
    assert (
        result.exit_code == 0
        and f"note: {said}" in result.stderr
        and "Trials with such values will fail" in result.stderr
    )
    job = job_mapping(space={"cycle.prune.level": {"choice": [0.95, 0.97]}})
    assert refused("validate", write_job("job.yaml", job)).startswith(said)


# Corpora.


def corpus(content: bytes, name: str = "text.txt", **training: int) -> str:
    Path(name).write_bytes(content)
    return changed(data={"name": name}, training=training or None)


def test_an_empty_text_file() -> None:
    assert refused("run", corpus(b" \n")).startswith(f"data file {str(Path('text.txt').resolve())!r} is empty")


def test_a_text_file_that_is_not_utf8() -> None:
    message = refused("run", corpus(b"abc\xff"))
    assert message == f"data file {str(Path('text.txt').resolve())!r} is not UTF-8 text (byte 3). Convert it first."


def test_a_text_file_of_a_few_words() -> None:
    assert "Give a longer corpus." in refused("run", corpus(b"a few words\n"))


def test_a_text_file_too_short_for_one_batch() -> None:
    words = random.Random(0).choices(["head", "prunes", "grows", "learns", "attention", "again"], k=8_000)
    message = refused("run", corpus("\n".join(words).encode(), batch_size=4096))
    assert "training examples at data.seq_len = 128, but training.batch_size = 4096" in message
    assert "Give more data, or lower one of them." in message


def test_a_missing_text_file() -> None:
    assert refused("run", changed(data={"name": "nowhere.txt"})).startswith("data.name = 'nowhere.txt': no such file")


def test_a_hub_data_set_without_a_network() -> None:
    message = refused("run", changed(data={"name": "wikitext-2"}))
    assert message.startswith("data.name = 'wikitext-2' is neither a file or folder here nor a data set")
    assert "Without a network, give a text file, a folder of text files, or 'python-docs'." in message


def test_an_unknown_data_set_names_the_nearest() -> None:
    message = refused("plan", changed(data={"name": "wikitext2"}))
    assert "data.name = 'wikitext2'" in message
    assert "Did you mean 'wikitext-2'?" in message


# Results folders and sweeps.


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_results_folder_that_cannot_be_written() -> None:
    Path("shut").mkdir(mode=0o555)
    message = refused("run", "good.yaml", "--results", "shut")
    assert message.startswith("results folder 'shut' cannot be written (Permission denied).")


def test_a_results_folder_below_a_file() -> None:
    Path("file").touch()
    message = refused("run", "good.yaml", "--results", "file/results")
    assert message == (
        "results folder 'file/results' cannot be written (Not a directory). Choose another with --results or "
        "RAYSWEEP_RESULTS."
    )


def test_a_results_folder_that_is_a_file() -> None:
    Path("file").touch()
    assert refused("run", "good.yaml", "--results", "file").endswith("Directory 'file' is a file.")


def test_a_name_that_is_taken_points_to_resume() -> None:
    finished_sweep(Path("results"), "mine")
    message = refused("run", "good.yaml", "--name", "mine")
    assert message == "sweep 'mine' exists already. Continue it with 'raysweep resume mine', or choose another --name."


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "-x", "a b", "/tmp/x"])
def test_a_name_that_is_no_folder_name(name: str) -> None:
    assert refused("run", "good.yaml", f"--name={name}").startswith(f"--name {name!r}: use letters, digits")


def test_more_workers_than_the_machine_has() -> None:
    message = refused("run", changed(scale={"workers": 1000}, training={"batch_size": 1000}))
    assert message.startswith("job.yaml: scale.workers = 1000: ")
    assert "need 1000 CPUs, but there are " in message
    assert "Lower scale.lanes, scale.workers or scale.cpus_per_worker." in message


@pytest.mark.parametrize("command", ["status", "show", "resume", "tensorboard"])
def test_an_unknown_sweep_names_the_nearest(command: str) -> None:
    assert refused(command, "quickstart-1") == "sweep in 'results': no 'quickstart-1', nor any other sweep."
    finished_sweep(Path("results"), "quickstart-1")
    message = refused(command, "quickstat-1")
    assert message == ("sweep in 'results': no 'quickstat-1'. Did you mean 'quickstart-1'? Known: quickstart-1.")
    assert "no '../results/quickstart-1'" in refused(command, "../results/quickstart-1")


def test_tensorboard_on_nothing() -> None:
    assert refused("tensorboard") == "no sweep in 'results' yet. Start one with 'raysweep run'."


def test_an_unknown_trial_names_those_there_are() -> None:
    finished_sweep(Path("results"))
    assert refused("show", "heads-1", "7") == "sweep 'heads-1' has no trial 7. Its trials: 1, 2, 3."
    assert "'x' is not a valid integer" in refused("show", "heads-1", "x")


def test_a_sweep_that_another_process_runs() -> None:
    lock = finished_sweep(Path("results")).lock()
    said = refused("resume", "heads-1")
    assert said.startswith(f"sweep 'heads-1' is being run by another process: process {os.getpid()} on ")
    assert said.endswith("If that is gone, 'raysweep unlock heads-1' says so.")
    lock.release()


def test_a_sweep_whose_corpus_is_no_longer_what_it_was() -> None:
    folder = finished_sweep(Path("results"))
    about = {**folder.environment(), "fingerprints": {"model": "other", "data": "other"}}
    (folder.path / "env.json").write_text(json.dumps(about))
    message = refused("resume", "heads-1")
    assert message.startswith("sweep 'heads-1' cannot be continued: its model and data changed since it began. Start")


def test_records_of_another_raysweep_name_file_and_line() -> None:
    folder = finished_sweep(Path("results"))
    with (folder.path / "trials.jsonl").open("a") as stream:
        stream.write('{"schema": 99}\n')
    message = refused("status", "heads-1")
    assert message.startswith(f"{folder.path / 'trials.jsonl'}, line 4 cannot be read: ")


# Arguments.


def test_an_unknown_kind_names_the_nearest() -> None:
    assert refused("list", "strategys").startswith(
        "list: no 'strategys'. Known: analyses, data, exits, grow, init, jobs, models"
    )
    assert "Did you mean 'samplers'?" in refused("list", "sampler")


@pytest.mark.parametrize("command", ["run", "plan"])
def test_no_trials_at_all(command: str) -> None:
    assert "'--trials': 0 is not in the range x>=1" in refused(command, "good.yaml", "--trials", "0")


@pytest.mark.parametrize("command", ["run", "plan", "validate"])
def test_a_setting_without_a_value(command: str) -> None:
    assert refused(command, "good.yaml", "--set", "seed") == "--set: seed: write it as key=value."
    assert refused(command, "good.yaml", "--set", "=3") == "--set: =3: write it as key=value."


def test_a_setting_with_a_wrong_value_is_named_as_a_setting() -> None:
    assert refused("run", "good.yaml", "--set", "scale.workers=two").startswith("--set: scale.workers = 'two': ")


def test_a_misspelt_command_names_the_nearest() -> None:
    assert "Did you mean 'status'" in refused("stauts")


# Several faults at once.


def test_validate_reports_all_faults_of_all_jobs() -> None:
    first = changed(cycle=prune(strategy="tailor", level=1.5))
    Path("bad.yaml").write_text("a: b: c\n")
    result = invoke("validate", first, "good.yaml", "bad.yaml", "nowhere.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    starts = [
        "error: job.yaml: cycle.prune.level = 1.5: ", "error: job.yaml: cycle.prune.strategy = 'tailor': ",
        "error: bad.yaml: not valid YAML: line 1", "error: nowhere.yaml: no such file",
    ]  # fmt: skip
    lines = result.stderr.splitlines()
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


def test_run_reports_every_fault_on_a_line_of_its_own() -> None:
    result = invoke("run", changed(cycle=prune(strategy="tailor", level=1.5)))
    assert result.exit_code == 2
    assert [line[:16] for line in result.stderr.splitlines()] == ["error: job.yaml:"] * 2


def test_validate_writes_faults_as_json_to_stdout() -> None:
    result = invoke("validate", changed(cycle=prune(strategy="tailor")), "nowhere.yaml", "--json")
    assert (result.exit_code, result.stderr) == (2, "")
    faults = json.loads(result.stdout)
    assert [set(fault) for fault in faults] == [{"file", "key", "value", "message"}] * 2
    assert [(fault["file"], fault["key"], fault["value"]) for fault in faults] == [
        ("job.yaml", "cycle.prune.strategy", "tailor"), ("nowhere.yaml", "", None),
    ]  # fmt: skip


def test_validate_looks_at_what_a_job_names() -> None:
    """Every fault that needs no network, at once."""
    job = changed(model={"name": "gpt3-nano"}, data={"name": "nowhere.txt"})
    result = invoke("validate", job)
    assert (result.exit_code, result.stdout) == (2, "")
    data, model = result.stderr.splitlines()
    assert data == "error: job.yaml: data.name = 'nowhere.txt': no such file or folder."
    assert model.startswith("error: job.yaml: model.name = 'gpt3-nano' is neither a folder here nor a name of the hub.")
    assert "Did you mean 'gpt2-nano'?" in model


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ({"name": "vit-nano"}, "python-docs", "data.name = 'python-docs' holds no images. Give 'digits'"),
        ({"name": "gpt2-nano"}, "digits", "data.name = 'digits' holds images, but model.name = 'gpt2-nano' learns"),
        (
            {"name": "bert-nano", "task": "sequence_classification"}, "wikitext-2",
            "data.name = 'wikitext-2' holds no labelled sentences.",
        ),
    ],
)  # fmt: skip
def test_a_corpus_of_another_kind_than_the_model_learns_from(model: dict[str, Any], data: str, said: str) -> None:
    cycle = job_mapping()["cycle"]
    assert said in refused("validate", changed(model=model, data={"name": data}, cycle=cycle))


def test_validate_says_what_only_a_network_could_tell() -> None:
    result = invoke("validate", changed(model={"name": "gpt2"}, data={"name": "wikitext-2"}))
    assert result.exit_code == 0 and result.stdout.startswith("1 job valid.")
    model, data = result.stderr.splitlines()
    assert (
        model.startswith("note: job.yaml: model.name = 'gpt2' is a name of the hub: ")
        and "`raysweep plan` checks whether it exists" in model
    )
    assert data.startswith("note: job.yaml: data.name = 'wikitext-2' is a name of the hub: ")


def test_valid_jobs_are_counted_and_what_to_do_next_is_named() -> None:
    result = invoke("validate", "good.yaml", "good.yaml", "--set", "seed=3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "2 jobs valid.",
        "next:  raysweep plan good.yaml --set seed=3 · raysweep run good.yaml --set seed=3",
    ]
    result = invoke("validate", "good.yaml", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


# As it is in a shell.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["run", "nowhere.yaml"],
            "error: nowhere.yaml: no such file. Give the path of a YAML file, or a job of 'raysweep list jobs'.\n",
        ),
        (["status", "nothing"], "error: sweep in 'results': no 'nothing', nor any other sweep.\n"),
        pytest.param(  # the only one that imports torch
            ["run", "good.yaml", "--set", "model.name=gpt9"],
            "error: model.name = 'gpt9' is neither a folder here",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_in_a_real_process_stderr_and_exit_code_say_it(arguments: list[str], said: str, workplace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raysweep", *arguments], cwd=workplace, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in workplace.iterdir()] == ["good.yaml"]
