"""An exported folder computes what the trial's masked model computed, and reads back bit for bit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.finished import finished_sweep
from transformers import AutoModelForCausalLM, AutoTokenizer

import raysweep
from raysweep.cli import main
from raysweep.errors import ArchiveError, ModelError, UsageError
from raysweep.networks.plasticity.compaction import compact
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import logits_of, losses_of, mean_loss
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Status
from raysweep.trial.exports.finished import FinishedTrial, restore
from raysweep.trial.exports.load import load_model, load_whole
from raysweep.trial.exports.write import export
from raysweep.trial.store.phase_store import PhaseStore


@pytest.fixture
def finished(sweep: SweepFolder) -> FinishedTrial:
    return restore(sweep, 1)


@torch.no_grad()
def masked_logits(finished: FinishedTrial) -> torch.Tensor:
    return logits_of(finished.state.model, finished.held_out_batch())


@torch.no_grad()
def logits(network: Any, finished: FinishedTrial) -> torch.Tensor:
    return network(finished.held_out_batch().inputs).logits


def test_a_restored_trial_is_the_one_that_was_measured(finished: FinishedTrial) -> None:
    assert finished.state.head_map.to_lists() == finished.last.head_map
    assert finished.last.phase == "learn" and finished.last.cycle == 2
    assert finished.state.head_map.active < finished.state.head_map.grown.size
    assert not finished.state.model.training


def test_a_compact_export_reads_back_bit_for_bit(finished: FinishedTrial, sweep: SweepFolder, tmp_path: Path) -> None:
    export(sweep, 1, tmp_path / "out", "compact")
    network = load_model(tmp_path / "out")
    smaller = compact(finished.state.model.network, finished.family, finished.state.head_map)
    assert_equal_states(network, smaller)
    assert torch.equal(logits(network, finished), logits(smaller, finished))
    expected = masked_logits(finished)
    assert (logits(network, finished) - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert sum(parameter.numel() for parameter in network.parameters()) == finished.last.params
    assert not network.training


def test_a_dense_export_is_a_plain_model(finished: FinishedTrial, sweep: SweepFolder, tmp_path: Path) -> None:
    export(sweep, 1, tmp_path / "out", "dense")
    plain, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(plain, finished), masked_logits(finished))
    assert_equal_states(plain, finished.state.model.network)
    assert_equal_states(load_model(tmp_path / "out"), plain)
    for layer, head in np.argwhere(~finished.state.head_map.present):
        for part in finished.state.model.sites[layer].head_slices(head):
            assert not plain.get_parameter(part.parameter).narrow(part.dim, part.start, part.length).any()


@pytest.mark.parametrize("form", ["compact", "dense"])
def test_both_formats_load_whole(form: Any, finished: FinishedTrial, sweep: SweepFolder, tmp_path: Path) -> None:
    export(sweep, 1, tmp_path / "out", form)
    network, family, head_map = load_whole(tmp_path / "out")
    assert head_map.to_lists() == finished.last.head_map and type(family) is type(finished.family)
    assert_equal_states(network, finished.state.model.network)
    assert torch.equal(logits(network, finished), masked_logits(finished))


def test_the_tokenizer_is_that_of_the_corpus(finished: FinishedTrial, sweep: SweepFolder, tmp_path: Path) -> None:
    export(sweep, 1, tmp_path / "out", "compact")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "The with statement, naïve 日本:\n    pass\n"
    assert finished.data.tokenizer is not None
    assert tokenizer.encode(text) == finished.data.tokenizer().encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_exported_model_generates(sweep: SweepFolder, tmp_path: Path) -> None:
    export(sweep, 1, tmp_path / "out", "compact")
    network, tokenizer = load_model(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer("The statement", return_tensors="pt").input_ids
    options = {"do_sample": False, "min_new_tokens": 8, "max_new_tokens": 8, "pad_token_id": 0}
    with_cache = network.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    assert torch.equal(with_cache, network.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=False,
                                                    **options))  # fmt: skip


def test_the_loaded_model_still_learns(finished: FinishedTrial, sweep: SweepFolder, tmp_path: Path) -> None:
    export(sweep, 1, tmp_path / "out", "compact")
    network, batch = load_model(tmp_path / "out"), finished.held_out_batch()
    model = PlasticModel(network, finished.family.sites(network))
    mean_loss(losses_of(model, batch), batch.labels).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_plain_transformers_refuses_a_compact_folder(gpt2_sweep: SweepFolder, tmp_path: Path) -> None:
    export(gpt2_sweep, 1, tmp_path / "out", "compact")
    with pytest.raises((RuntimeError, ValueError), match="(?i)mismatch|size"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_the_manifest_says_what_it_is(finished: FinishedTrial, sweep: SweepFolder, tmp_path: Path) -> None:
    export(sweep, 1, tmp_path / "out", "compact")
    content = json.loads((tmp_path / "out" / "raysweep.json").read_text())
    assert content["head_map"] == finished.last.head_map and content["plan_key"] == finished.last.key
    assert content["base_model"] == sweep.name and content["task"] == "causal_lm" and content["cycles"] == 2
    assert content["metrics"]["perplexity"] == finished.last.perplexity
    assert content["data"]["sha256"] == finished.last.data_sha256
    if sweep.name == "llama-nano":
        assert any(row is not None for row in content["kv_index"])
    else:
        assert content["kv_index"] == [None] * 4


def test_the_card_tells_the_whole_history(finished: FinishedTrial, sweep: SweepFolder, tmp_path: Path) -> None:
    export(sweep, 1, tmp_path / "out", "dense")
    text = (tmp_path / "out" / "README.md").read_text()
    for record in finished.records:
        assert f"| {record.phase} | {record.cycle} | {record.steps} | {record.loss:.4f} |" in text
        if record.decision is not None:
            heads = ", ".join(f"{layer}.{head}" for layer, head in sorted(map(tuple, record.decision["heads"])))
            assert heads in text and record.decision["strategy"] in text
    for said in (finished.last.key, finished.last.data_sha256, f"{finished.last.params:,}", "from_pretrained",
                 f"{finished.last.flops_per_token:,.0f}", f"Trial 1 of sweep `{sweep.name}`",
                 f"| seed | {finished.plan.seed} |"):  # fmt: skip
        assert said in text
    rows = re.findall(r"^ +\d+  ([.\d ]+)$", text, flags=re.MULTILINE)
    assert rows == [" ".join("." if head < 0 else str(head) for head in row) for row in finished.last.head_map]


def table_of_sentences(folder: Path, pairs: bool) -> str:
    texts = [(f"{word} day {number}", f"it was {word}") for number in range(120) for word in ("good", "bad")]
    columns = "sentence1\tsentence2" if pairs else "sentence"
    rows = ["\t".join([*(text if pairs else text[:1]), str(int("bad" in text[0]))]) for text in texts]
    (folder / "table.tsv").write_text("\n".join([f"{columns}\tlabel", *rows]) + "\n")
    return str(folder / "table.tsv")


CLASSIFIER = {"model": {"name": "bert-nano", "task": "sequence_classification"}}
TASKS: dict[str, dict[str, Any]] = {
    "causal": {"model": {"name": "llama-nano"}},
    "masked": {"model": {"name": "bert-nano"}, "data__tokenizer": "wordpiece"},
    "sentences": {**CLASSIFIER, "data__tokenizer": "wordpiece"},
    "pairs": {**CLASSIFIER, "data__tokenizer": "wordpiece"},
    "images": {"model": {"name": "vit-nano"}, "data__name": "digits"},
    "own": {"model": {"name": "pnn-vision-nano"}, "data__name": "digits"},
}


@pytest.mark.parametrize(
    ("what", "form"),
    [
        ("images", "dense"),
        *(
            pytest.param(what, "compact", marks=pytest.mark.slow)
            for what in ("causal", "masked", "sentences", "pairs", "images", "own")
        ),
        *(pytest.param(what, "dense", marks=pytest.mark.slow) for what in ("causal", "own")),
    ],
)
def test_the_code_of_the_card_runs_as_it_stands(
    what: str, form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = dict(TASKS[what])
    if changes["model"].get("task"):
        changes["data__name"] = table_of_sentences(tmp_path, pairs=what == "pairs")
    sweep = finished_sweep(tmp_path / "results", "s", cycle__cycles=1, **changes)
    export(sweep, 1, tmp_path / "out", form)
    text = (tmp_path / "out" / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert ("tokenizer" in code) == (tmp_path / "out" / "tokenizer.json").is_file()
    if what == "causal":  # one in a process of its own, where nothing else is imported
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path / "out", capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(raysweep.__file__).parents[1]), "HF_HUB_OFFLINE": "1"},
            timeout=120,
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
    else:
        monkeypatch.chdir(tmp_path / "out")
        exec(code, {})
        assert capsys.readouterr().out.strip()
    classifier = what not in ("causal", "masked")
    assert ("| loss | perplexity | heads |" in text) != classifier
    assert ("| loss | accuracy | matthews | f1 | heads |" in text) == classifier
    assert ("windows of 16" in text) != classifier


@pytest.mark.slow
def test_the_card_scales_pixels_as_the_task_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's code gives the logits of the trial's own batch."""
    sweep = finished_sweep(tmp_path / "results", "s", cycle__cycles=1, **TASKS["images"])
    export(sweep, 1, tmp_path / "out", "compact")
    [code] = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), flags=re.DOTALL)
    finished = restore(sweep, 1)
    raw = torch.from_numpy(finished.data.evaluation[:2, 1:].astype(np.int64)).view(2, 1, 8, 8)
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setattr(torch, "randint", lambda *_: raw)
    found: dict[str, Any] = {}
    exec(code, found)
    torch.testing.assert_close(found["logits"], masked_logits(finished), rtol=1e-5, atol=1e-5)


def test_the_card_reads_pairs_as_the_task_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's call of the tokenizer gives tokens, mask and segments of the trial's own batch."""
    table = table_of_sentences(tmp_path, pairs=True)
    sweep = finished_sweep(tmp_path / "results", "s", cycle__cycles=1, **TASKS["pairs"], data__name=table)
    export(sweep, 1, tmp_path / "out", "compact")
    batch = restore(sweep, 1).held_out_batch()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert batch.attention_mask is not None and batch.token_types is not None
    for row, mask, types in zip(batch.inputs, batch.attention_mask, batch.token_types, strict=True):
        tokens = row[: mask.sum()].tolist()
        first, second = tokenizer.decode(tokens).removeprefix("[CLS] ").removesuffix(" [SEP]").split(" [SEP] ")
        again = tokenizer([first], [second], return_token_type_ids=True, return_tensors="pt")
        assert again.input_ids[0].tolist() == tokens
        assert again.token_type_ids[0].tolist() == types[: len(tokens)].tolist()


def test_a_model_that_was_only_measured_is_exported_as_it_was(results: Path, tmp_path: Path) -> None:
    """Pretrained weights, no training phase: everything follows from the folder, its own tokenizer included."""
    first = finished_sweep(results, "source", cycle__cycles=1)
    export(first, 1, tmp_path / "source", "dense")
    sweep = finished_sweep(
        results, "measured", model__name=str(tmp_path / "source"), cycle__baseline=None, cycle__grow=None,
        cycle__learn=None, cycle__cycles=1,
    )  # fmt: skip
    export(sweep, 1, tmp_path / "out", "compact")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (tmp_path / "source" / "tokenizer.json").read_text()
    again = load_model(tmp_path / "out")
    assert type(again) is type(load_model(tmp_path / "source"))
    weights = (tmp_path / "source" / "model.safetensors").read_bytes()
    (tmp_path / "source" / "model.safetensors").write_bytes(weights[:-4] + b"abcd")
    with pytest.raises(ArchiveError, match="its model changed since it began"):
        export(sweep, 1, tmp_path / "again", "compact")


def test_a_stopped_trial_is_exported_after_its_last_good_phase(results: Path, tmp_path: Path) -> None:
    sweep = finished_sweep(results, "stopped", status="STOPPED", phases=4)
    assert export(sweep, 1, tmp_path / "out", "compact").plan_key == sweep.phases()[-1].key
    assert sweep.phases()[-1].phase == "grow"
    load_model(tmp_path / "out")


def test_a_trial_that_halted_is_exported_as_it_was_before_the_cycle_that_did_harm(results: Path) -> None:
    sweep = finished_sweep(results, "halted", cycle__cycles=2)
    (record,) = sweep.trials().values()
    kept = record.phases[4]  # the end of the first cycle
    sweep.add_trial(replace(record, halted={"rule": "regression", "cycle": 2, "kept": kept, "reason": "it did harm"}))
    found = restore(sweep, 1)
    assert (found.last.key, found.last.cycle, len(found.records)) == (kept, 1, 5)
    assert found.state.head_map.to_lists() == found.last.head_map


# What is refused.


@pytest.mark.parametrize("status", ["FAILED", "DIVERGED", "CANCELLED"])
def test_a_trial_without_a_good_end_is_refused(status: Status, results: Path, tmp_path: Path) -> None:
    sweep = finished_sweep(results, f"bad-{status}", status=status, phases=1)
    with pytest.raises(ArchiveError, match=f"trial 1 of sweep 'bad-{status}' is {status}, not COMPLETE"):
        export(sweep, 1, tmp_path / "out", "compact")
    assert not (tmp_path / "out").exists()


def test_a_complete_trial_with_phases_lost_is_refused(results: Path, tmp_path: Path) -> None:
    sweep = finished_sweep(results, "short", phases=2)
    with pytest.raises(ArchiveError, match="its phases have no record"):
        export(sweep, 1, tmp_path / "out", "compact")


def test_an_unknown_trial_is_refused_with_those_there_are(gpt2_sweep: SweepFolder, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"trial 7 of sweep 'only-gpt2' does not exist. Trials to export: 1\."):
        export(gpt2_sweep, 7, tmp_path / "out", "compact")


def test_lost_checkpoints_are_named(results: Path, tmp_path: Path) -> None:
    sweep = finished_sweep(results, "lost", cycle__cycles=1)
    store, key = PhaseStore(sweep.store), sweep.phases()[0].key
    (store.folder / key / "outcome.json").unlink()
    with pytest.raises(ArchiveError, match=f"weights of phase baseline .{key}. are no longer in"):
        export(sweep, 1, tmp_path / "out", "compact")


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_nothing_is_overwritten(taken: str, gpt2_sweep: SweepFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if taken == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        export(gpt2_sweep, 1, out, "compact")
    assert (out if taken == "file" else out / "mine").read_text() == "mine"


def test_an_empty_folder_is_filled(gpt2_sweep: SweepFolder, tmp_path: Path) -> None:
    export(gpt2_sweep, 1, tmp_path, "compact")
    load_model(tmp_path)


def test_a_failed_export_leaves_nothing(
    gpt2_sweep: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("raysweep.trial.exports.write._save_tokenizer", fail)
    with pytest.raises(RuntimeError):
        export(gpt2_sweep, 1, tmp_path / "deep" / "out", "compact")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_wrong_export_does_not_appear(
    gpt2_sweep: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(*arguments: Any) -> Any:
        network = compact(*arguments)
        network.lm_head.weight.data[0] += 1
        return network

    monkeypatch.setattr("raysweep.trial.exports.write.compact", spoilt)
    with pytest.raises(raysweep.errors.TrialError, match="logits differ from the trial's"):
        export(gpt2_sweep, 1, tmp_path / "out", "compact")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def out(gpt2_sweep: SweepFolder, tmp_path: Path) -> Path:
    export(gpt2_sweep, 1, tmp_path / "out", "compact")
    return tmp_path / "out"


def change(out: Path, **fields: Any) -> None:
    path = out / "raysweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def damage_weights(out: Path) -> None:
    path = out / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def other_heads(out: Path) -> None:
    rows = json.loads((out / "raysweep.json").read_text())["head_map"]
    change(out, head_map=[[-1 if head >= 0 else 0 for head in row] for row in rows])


DAMAGES = [
    (lambda out: (out / "raysweep.json").unlink(), "holds no raysweep.json: it is no export"),
    (lambda out: (out / "raysweep.json").write_text("{"), "is damaged"),
    (lambda out: change(out, extra=1), "extra"),
    (lambda out: change(out, raysweep_schema=2), "raysweep_schema"),
    (lambda out: change(out, head_map=[[0] * 8] * 3), "head map of raysweep.json does not fit"),
    (lambda out: change(out, head_map=[[0] * 8] * 3 + [[-1] * 8]), "head map of raysweep.json does not fit"),
    (lambda out: change(out, kv_index=[[0, 0]] * 4), "kv_index and head_map of raysweep.json contradict"),
    (lambda out: change(out, family="llama"), "config.json 'gpt2'"),
    (lambda out: change(out, family="nothing"), "config.json 'gpt2'"),
    (lambda out: change(out, model_class="LlamaForCausalLM"), "is no model of"),
    (lambda out: change(out, model_class="nothing"), "is no model of"),
    (lambda out: (out / "config.json").unlink(), "config.json' cannot be read"),
    (lambda out: (out / "config.json").write_text("[]"), "config.json' cannot be read"),
    (lambda out: (out / "model.safetensors").unlink(), "weights .* cannot be loaded"),
    (damage_weights, "weights .* cannot be loaded"),
    (lambda out: change(out, format="dense"), "weights .* cannot be loaded"),
    (other_heads, "weights .* cannot be loaded|does not fit"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_a_damaged_folder_is_told(damage: Any, said: str, out: Path) -> None:
    damage(out)
    with pytest.raises(ModelError, match=said):
        load_model(out)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no raysweep.json"):
        raysweep.load_model(tmp_path / "nowhere")


# The command.


def call(*words: str) -> Any:
    return CliRunner().invoke(main, ["export", *words])


def test_the_command_exports(gpt2_sweep: SweepFolder, results: Path, tmp_path: Path) -> None:
    done = call("only-gpt2", "1", str(tmp_path / "out"), "--results", str(results), "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["folder"] == str(tmp_path / "out") and content["format"] == "compact"
    load_model(tmp_path / "out")


def test_the_command_says_how_to_load(gpt2_sweep: SweepFolder, results: Path, tmp_path: Path) -> None:
    done = call("only-gpt2", "1", str(tmp_path / "out"), "--format", "dense", "--results", str(results))
    assert done.exit_code == 0 and "GPT2LMHeadModel.from_pretrained" in done.stdout and "of 16 heads" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing", "1", "out"), "no 'nothing'"),
        (("only-gpt2", "2", "out"), "trial 2 of sweep 'only-gpt2' does not exist"),
        (("only-gpt2", "1", "out", "--format", "gguf"), "'gguf' is not one of"),
        (("only-gpt2", "one", "out"), "'one' is not a valid integer"),
        (("only-gpt2", "1", "/proc/out"), "cannot be written"),
    ],
)
def test_the_command_refuses(words: tuple[str, ...], said: str, gpt2_sweep: SweepFolder, results: Path) -> None:
    done = call(*words, "--results", str(results))
    assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr


def assert_equal_states(first: Any, second: Any) -> None:
    one, other = first.state_dict(), second.state_dict()
    assert set(one) == set(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name
