"""Fine-tuning on labelled sentences and pairs of them, with the metrics of GLUE over the predictions of all ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr
from sklearn import metrics
from support.finished import finished_sweep
from support.helpers import cpu, parts_of, recorded, rows_of, run_all, some_batch, tiny_model
from support.jobs import REPOSITORY, quick_plan

from raysweep.contracts import Facts
from raysweep.errors import DataError, ModelError
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.networks.fit import check_fit
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.objective import logits_of
from raysweep.reports.summary import sweep_state
from raysweep.reports.tables.sweep import print_sweep
from raysweep.trial.data.examples import Dataset, build_task, load_dataset
from raysweep.trial.exports.load import load_model
from raysweep.trial.exports.write import export
from raysweep.trial.measures.evaluation import evaluate
from raysweep.trial.measures.metrics import classification_metrics
from raysweep.trial.runtime import Runtime

PAIRED = ModelSpec.model_validate({"name": "pnn-nano", "task": "sequence_classification", "type_vocab_size": 2})
SEQ_LEN = 16


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))


def write_pairs(folder: Path, header: str = "sentence1\tsentence2\tlabel") -> Path:
    """Write pairs of which the second sentence's last word tells the class, and the first one's does not."""
    folder.mkdir()
    words = {"0": ["rust", "mould", "war"], "1": ["apple", "bread", "peace"]}
    generator = np.random.default_rng(0)
    for split, count in (("train", 240), ("dev", 61)):
        lines = [header]
        for _ in range(count):
            other, label = generator.choice(["0", "1"], size=2)
            first = " ".join(["there is", *["no"] * int(generator.integers(4)), generator.choice(words[other])])
            lines.append(f"{first}\tand {generator.choice(words[label])}\t{label}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def pairs(folder: Path, **data: Any) -> Dataset:
    return load_dataset(DataSpec(name=str(folder), seq_len=SEQ_LEN, eval_tokens=10**5, **data), PAIRED)


# Pairs.


@pytest.mark.parametrize("tokenizer", [None, "wordpiece"])
@pytest.mark.parametrize("columns", ["sentence1\tsentence2", "question1\tquestion2", "premise\thypothesis"])
def test_a_pair_is_class_first_separator_second_separator(columns: str, tokenizer: str | None, tmp_path: Path) -> None:
    found = pairs(write_pairs(tmp_path / "pairs", f"{columns}\tlabel"), tokenizer=tokenizer)
    assert found.facts.pairs and found.facts.num_classes == 2 and found.tokenizer is not None
    read, (label, length, before, *row) = found.tokenizer(), found.evaluation[0].tolist()
    first, second, written = (tmp_path / "pairs" / "dev.tsv").read_text().splitlines()[1].split("\t")
    names = ("<|class|>", "<|separator|>") if tokenizer is None else ("[CLS]", "[SEP]")
    start, separator = map(read.token_to_id, names)
    plain = [read.encode(text, add_special_tokens=False).ids for text in (first, second)]
    assert row[:length] == [start, *plain[0], separator, *plain[1], separator] and label == int(written)
    assert before == 2 + len(plain[0])
    batch = build_task(PAIRED, found.facts).batch(found.evaluation[:1], [0])
    assert batch.token_types is not None
    assert batch.token_types[0].tolist() == [0] * before + [1] * (length - before) + [0] * (SEQ_LEN - length)
    assert row[length:] == [found.facts.pad_token] * (SEQ_LEN - length)


def test_the_longer_sentence_of_a_pair_is_cut_first(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs")
    long = f"{'there ' * 40}\tand war\t0\nthere\t{'war ' * 40}\t1\n"
    (folder / "dev.tsv").write_text("sentence1\tsentence2\tlabel\n" + long)
    first, second = pairs(folder, tokenizer="wordpiece").evaluation.tolist()
    assert first[1] == second[1] == SEQ_LEN
    assert first[2] == SEQ_LEN - 3 and second[2] == 3  # `and war` and a separator; `there` between two special tokens


def test_segments_are_the_same_in_any_company(tmp_path: Path) -> None:
    found = pairs(write_pairs(tmp_path / "pairs"))
    task, rows = build_task(PAIRED, found.facts), found.evaluation[:5]
    whole = task.batch(rows, range(5))
    for order in ([3], [4, 0]):
        alone, part = task.batch(rows[order], order), rows_of(whole, order)
        assert alone.token_types is not None and part.token_types is not None
        assert torch.equal(alone.token_types, part.token_types)
        assert torch.equal(alone.inputs, part.inputs)


def test_single_sentences_have_no_segments(tmp_path: Path) -> None:
    (tmp_path / "all.tsv").write_text("sentence\tlabel\n" + "".join(f"word {n}\t{n % 2}\n" for n in range(100)))
    found = pairs(tmp_path / "all.tsv")
    assert not found.facts.pairs
    assert (found.train[:, 1] == found.train[:, 2]).all()
    assert build_task(PAIRED, found.facts).batch(found.train[:3], [0, 1, 2]).token_types is None


def test_the_segment_of_a_token_matters() -> None:
    facts = Facts(vocab_size=50, num_classes=2, pad_token=1, pairs=True)
    network, _ = build_network(PAIRED, facts, seq_len=SEQ_LEN, seed=0)
    task, rows = (
        build_task(PAIRED, facts),
        np.array([[0, 6, 3, 0, 9, 3, 8, 7, 3, 1, 1], [0, 6, 4, 0, 9, 3, 8, 7, 3, 1, 1]]),
    )
    batch = task.batch(rows, [0, 1])
    with torch.no_grad():
        one, other = network(batch.inputs, batch.attention_mask, batch.token_types).logits
        same, again = network(batch.inputs, batch.attention_mask).logits
    assert not torch.allclose(one, other) and torch.allclose(same, again)


def test_a_model_without_two_segments_refuses_pairs_and_says_what_to_do() -> None:
    facts = Facts(vocab_size=300, num_classes=2, pad_token=1, pairs=True)
    model = ModelSpec(name="pnn-nano", task="sequence_classification")
    check_fit(model, replace(facts, pairs=False), seq_len=SEQ_LEN)
    message = "'pnn-nano' has 0 segment embeddings, .* pair of sentences.*model.type_vocab_size: 2"
    with pytest.raises(ModelError, match=message):
        check_fit(model, facts, seq_len=SEQ_LEN)
    check_fit(PAIRED, facts, seq_len=SEQ_LEN)
    check_fit(ModelSpec(name="bert-nano", task="sequence_classification"), facts, seq_len=SEQ_LEN)


def test_tables_that_are_pairs_in_part_are_refused(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs")
    (folder / "dev.tsv").write_text("sentence\tlabel\nand war\t0\n")
    with pytest.raises(DataError, match="one split holds pairs of sentences, the other single ones"):
        pairs(folder)
    (folder / "dev.tsv").write_text("sentence1\tsentence2\tlabel\nand war\t \t0\n")
    with pytest.raises(DataError, match="row 2: no sentence with a label"):
        pairs(folder)
    (folder / "dev.tsv").write_text("first\tsecond\tlabel\nand\twar\t0\n")
    with pytest.raises(DataError, match="names no column of texts"):
        pairs(folder)


# The hub.


def test_tasks_of_glue_are_read_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []
    rows = {"idx": range(40), "sentence1": [f"one {n}" for n in range(40)], "label": [n % 2 for n in range(40)],
            "sentence2": [f"two {n} " for n in range(40)]}  # fmt: skip
    split = datasets.Dataset.from_dict(rows)
    hidden = datasets.Dataset.from_dict(rows | {"label": [-1] * 40})
    parts = datasets.DatasetDict(train=split, validation=split.select(range(6)), test=hidden)

    def hub(*given: str) -> datasets.DatasetDict:
        asked.append(given)
        return parts

    monkeypatch.setattr(datasets, "load_dataset", hub)
    found = load_dataset(DataSpec(name="mrpc", seq_len=SEQ_LEN, probe_windows=4), PAIRED)
    assert asked == [("nyu-mll/glue", "mrpc")] and found.facts.pairs
    assert (len(found.train), len(found.evaluation)) == (40, 6) and found.train[:, 0].tolist() == [0, 1] * 20
    with pytest.raises(DataError, match="the label '-1' of split 'test' of mrpc is none"):
        load_dataset(DataSpec(name="mrpc", seq_len=SEQ_LEN, evaluate="test"), PAIRED)


def test_without_a_network_the_way_out_is_a_table() -> None:
    with pytest.raises(DataError, match="'mrpc' is neither .* Without a network, give a .tsv file or a folder of them"):
        load_dataset(DataSpec(name="mrpc", seq_len=SEQ_LEN), PAIRED)
    with pytest.raises(DataError, match="Did you mean 'mrpc'"):
        load_dataset(DataSpec(name="mrcp", seq_len=SEQ_LEN), PAIRED)


# Metrics.


def counted(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (truth, predicted), 1)
    return confusion


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_metrics_are_those_of_the_predictions_one_by_one(classes: int) -> None:
    generator = np.random.default_rng(classes)
    truth = generator.choice(classes, size=500, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    predicted = np.where(generator.random(500) < 0.6, truth, generator.integers(classes, size=500))
    found = classification_metrics(counted(truth, predicted, classes))
    assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(truth, predicted))
    average = "binary" if classes == 2 else "macro"
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, predicted, average=average))
    if classes == 2:  # Matthews' correlation is Pearson's
        assert found["matthews"] == pytest.approx(pearsonr(truth, predicted).statistic)


def test_metrics_by_hand() -> None:
    found = classification_metrics(np.array([[50.0, 10.0], [5.0, 35.0]]))
    assert found["f1"] == pytest.approx(2 * 35 / (2 * 35 + 10 + 5))
    assert found["matthews"] == pytest.approx((50 * 35 - 10 * 5) / (60 * 40 * 55 * 45) ** 0.5)
    assert classification_metrics(np.array([[7.0, 0.0], [3.0, 0.0]])) == {"matthews": 0.0, "f1": 0.0}


@dataclass(frozen=True, kw_only=True)
class Rank(Runtime):
    """One of three ranks that are run one after the other; what the others send is known."""

    others: Any

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.others(tensor)


def test_metrics_count_the_predictions_of_uneven_ranks_together() -> None:
    model, batch = tiny_model("bert-classes", dtype=torch.float32), some_batch("bert-classes", 23)
    with torch.no_grad():
        predicted = logits_of(model, batch).argmax(-1)
    whole = evaluate(model, parts_of(batch, 4), cpu(), "fp32", 5)
    expected = metrics.matthews_corrcoef(batch.labels, predicted)
    assert whole.metrics["matthews"] == pytest.approx(expected)
    shards = [parts_of(batch, 23)[0:0], parts_of(batch, 4)[:1], parts_of(batch, 4)[1:]]  # 0, 4 and 19 examples
    sent: list[torch.Tensor] = []
    for shard in shards[1:]:
        evaluate(model, shard, Rank(device=torch.device("cpu"), others=recorded(sent)), "fp32", 5)
    for shard in shards:
        rank = Rank(device=torch.device("cpu"), others=lambda _: torch.stack(sent).sum(0))
        assert evaluate(model, shard, rank, "fp32", 5).metrics == whole.metrics
    parts = [evaluate(model, shard, cpu(), "fp32", 5).metrics["matthews"] for shard in shards[1:]]
    assert np.mean(parts) != pytest.approx(expected, abs=1e-3)  # not a mean over ranks


# From a trial's first phase to its table.


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a PNN that has learnt a little text."""
    folder = tmp_path_factory.mktemp("pretrained")
    sweep = finished_sweep(
        folder, "mlm", model__name="pnn-nano", model__type_vocab_size=2, model__final_norm=True, cycle__cycles=1,
        cycle__prune=None, cycle__grow=None, cycle__learn=None,
    )  # fmt: skip
    export(sweep, 1, folder / "out", "dense")
    return folder / "out"


@pytest.mark.slow
def test_pairs_are_learnt_and_their_metrics_stand_in_records_and_tables(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs")
    sweep = finished_sweep(
        tmp_path, "sweep", model__name="pnn-nano", model__task="sequence_classification", model__type_vocab_size=2,
        data__name=str(folder), data__seq_len=SEQ_LEN, data__eval_tokens=10**5, training__batch_size=16,
        cycle__cycles=1, cycle__baseline__steps=80, cycle__baseline__lr=2e-3, cycle__learn__lr=1e-3,
    )  # fmt: skip
    baseline, prune, *_, learn = sweep.phases()
    assert baseline.accuracy is not None and baseline.accuracy > 0.9 and baseline.metrics["matthews"] > 0.8
    assert prune.active_heads < learn.active_heads < baseline.active_heads
    trial = sweep_state(sweep)["trials"][0]
    assert trial["metrics"] == {"accuracy": learn.accuracy, **learn.metrics}
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    print_sweep(sweep_state(sweep), console)
    assert "matthews" in console.export_text()


def test_fine_tuning_begins_with_the_exported_trunk_and_a_new_head(pretrained: Path) -> None:
    facts = Facts(vocab_size=1024, num_classes=3, pad_token=1, pairs=True)
    model = ModelSpec(name=str(pretrained), task="sequence_classification")
    (first, _), (again, _), (other, _) = (build_network(model, facts, seq_len=SEQ_LEN, seed=seed) for seed in (1, 1, 2))
    exported = load_model(pretrained)
    for name, weights in first.state_dict().items():
        if name.startswith("classifier."):
            assert torch.equal(weights, again.state_dict()[name])
        else:
            assert torch.equal(weights, exported.state_dict()[name]), name
    assert first.classifier.weight.shape == (3, 128)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("pnn.refiner.gate.key.weight"), "lacks weights: pnn.refiner.gate.key.weight"),
        (lambda weights: weights.pop("final_norm.weight"), "lacks weights: final_norm.weight"),
        (lambda weights: weights.update({"pnn.refiner.gate.more": torch.zeros(3)}), "no place for: pnn.refiner.gate.m"),
        (lambda weights: weights.update({"exit_head.weight": torch.zeros(1, 128)}), "no place for: exit_head.weight"),
    ],
)  # fmt: skip
def test_only_the_new_head_may_be_missing_and_only_the_old_one_too_many(
    change: Any, said: str, pretrained: Path, tmp_path: Path
) -> None:
    for file in pretrained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    facts = Facts(vocab_size=1024, num_classes=2, pad_token=1)
    model = ModelSpec(name=str(tmp_path), task="sequence_classification")
    with pytest.raises(ModelError, match=said):
        build_network(model, facts, seq_len=SEQ_LEN, seed=0)


def test_a_compact_export_says_that_a_dense_one_is_wanted(tmp_path: Path) -> None:
    sweep = finished_sweep(
        tmp_path, "mlm", model__name="pnn-nano", cycle__cycles=1, cycle__grow=None, cycle__learn=None
    )
    export(sweep, 1, tmp_path / "out", "compact")
    model = ModelSpec(name=str(tmp_path / "out"), task="sequence_classification")
    with pytest.raises(ModelError, match="as in a compact export: export it as dense"):
        build_network(model, Facts(vocab_size=1024, num_classes=2, pad_token=1), seq_len=SEQ_LEN, seed=0)


def test_a_whole_trial_fine_tunes_an_exported_network_on_pairs(pretrained: Path, tmp_path: Path) -> None:
    plan = quick_plan(
        model__name=str(pretrained), model__task="sequence_classification", cycle__cycles=1,
        data__name=str(write_pairs(tmp_path / "pairs")), data__seq_len=SEQ_LEN, data__eval_tokens=10**5,
    )  # fmt: skip
    records = run_all(plan, tmp_path / "store")
    assert [record.phase for record in records] == ["baseline", "prune", "measure", "grow", "learn"]
    assert set(records[-1].metrics) == {"matthews", "f1"}


@pytest.mark.parametrize(("corpus", "splits"), [
    ("sst2", {}), ("cola", {"data__evaluate": "in_domain_dev", "data__test": "out_of_domain_dev"}),
])  # fmt: skip
def test_real_tasks_run_from_their_tables(
    corpus: str, splits: dict[str, Any], shared_data: Path, tmp_path: Path
) -> None:
    plan = quick_plan(
        model__name="pnn-nano", model__task="sequence_classification", data__name=str(shared_data / corpus),
        data__header=False, data__eval_tokens=32 * 50,
        cycle__cycles=1, cycle__prune=None, cycle__grow=None, cycle__learn=None, **splits,
    )  # fmt: skip
    (record,) = run_all(plan, tmp_path)
    assert record.accuracy is not None and 0 < record.accuracy < 1 and -1 <= record.metrics["matthews"] <= 1


@pytest.mark.parametrize("task", ["cola", "sst2"])
def test_the_jobs_run_five_seeds(task: str) -> None:
    from raysweep.job.jobfile import load_job

    spec = load_job(str(REPOSITORY / "jobs" / f"pnn_{task}.yaml")).spec
    assert spec.search is not None
    assert (spec.data.name, spec.search.seeds, spec.model.task) == (task, 5, "sequence_classification")
