"""Task alternation, targeted damage and conflict pruning, with planted results or results counted by hand."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support.finished import finished_sweep
from support.helpers import CONFIGS, MASK_TOKEN, POSITIONS, VOCABULARY, auto_class, cpu, family_of, task_of

from raysweep.cli import main
from raysweep.contracts import Array
from raysweep.errors import ModelError, UsageError
from raysweep.job.spec import DataSpec
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.records.schema import recovery
from raysweep.science.statistics.finding import Interval
from raysweep.science.stress import run as running
from raysweep.science.stress.alternation import alternation, share_relearned
from raysweep.science.stress.conflict import conflict, summed_ranks
from raysweep.science.stress.damage import choices, damage
from raysweep.science.stress.load import check_question, load_subject
from raysweep.science.stress.protocols import PROTOCOLS
from raysweep.science.stress.run import run, stress_of, work_of
from raysweep.science.stress.subject import Corpus, Losses, StressOptions, StressSubject, corpus_of
from raysweep.trial.exports.write import export

LENGTH = 12
ASKED = StressOptions(steps=6, rounds=4, lr=2e-2, batch_size=8, level=2 / 9)


def counting(by: int, windows: int, seed: int) -> np.ndarray:
    """Return windows in which each token is `by` above the one before it: another text for each `by`."""
    starts = np.random.default_rng(seed).integers(VOCABULARY - 1, size=(windows, 1))
    return (starts + by * np.arange(LENGTH)) % (VOCABULARY - 1)


def corpus(by: int, question: StressOptions = ASKED, kind: str = "gpt2") -> Corpus:
    task = task_of(kind)
    return corpus_of(f"by {by}", counting(by, 64, by), counting(by, 16, 100 + by), 8, question, task, cpu())


def network_of(kind: str = "gpt2", seed: int = 0) -> Any:
    config = CONFIGS[kind]()
    config.vocab_size, config.max_position_embeddings = VOCABULARY, POSITIONS
    torch.manual_seed(seed)
    network = auto_class(kind).from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def subject_of(
    network: Any = None, *, a: int = 1, b: int = 3, kind: str = "gpt2", maker: Any = StressSubject, **changes: Any
) -> StressSubject:
    question = replace(ASKED, **changes)
    network = network_of(kind) if network is None else network
    sites = family_of(kind).sites(network)
    return maker(
        network=network, family=family_of(kind), head_map=HeadMap.full(len(sites), sites[0].num_heads),
        task=task_of(kind), a=corpus(a, question, kind), b=corpus(b, question, kind), question=question, runtime=cpu(),
    )  # fmt: skip


def loss_without(network: Any, heads: Any, by: int) -> float:
    """Measure a plain GPT-2 whose output rows of some heads are zero."""
    plain, width = copy.deepcopy(network), 5
    for layer, head in heads:
        plain.transformer.h[layer].attn.c_proj.weight.data[head * width : (head + 1) * width] = 0
    tokens = torch.from_numpy(counting(by, 16, 100 + by))
    with torch.no_grad():
        logits = plain(tokens).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


# Task alternation.


def test_a_task_that_equals_the_other_forgets_nothing() -> None:
    turns = list(alternation(subject_of(a=1, b=1)))
    assert [turn.trained for turn in turns] == [None, "a", "b", "a", "b"]
    for before, turn in zip(turns, turns[1:], strict=False):
        assert turn.loss_a == turn.loss_b and turn.forgotten is not None
        assert turn.loss_a is not None and before.loss_a is not None
        assert turn.forgotten.mean == pytest.approx(turn.loss_a - before.loss_a)
        assert turn.forgotten.high < 0 and turn.relearned is None


@pytest.mark.slow
def test_another_task_is_forgotten_and_learned_again() -> None:
    turns = list(alternation(subject_of(steps=20)))
    assert turns[0].forgotten is None and turns[0].relearned is None and turns[1].relearned is None
    # Any: a loss is None after training that diverged, and the arithmetic below would then fail.
    losses: list[dict[str, Any]] = [{"a": turn.loss_a, "b": turn.loss_b} for turn in turns]
    for at in (1, 2, 3, 4):
        own, other = ("a", "b") if at % 2 else ("b", "a")
        risen = losses[at][other] - losses[at - 1][other]
        found = turns[at].forgotten
        assert found is not None and found.mean == pytest.approx(risen, abs=1e-9)
        if at > 1:
            assert found.low > 0.05, "counting by another number contradicts what was learned"
        if at > 2:
            lost = turns[at - 1].forgotten
            assert lost is not None
            back = (losses[at - 1][own] - losses[at][own]) / lost.mean
            assert turns[at].relearned == pytest.approx(back) and back > 0.1


def losses(mean: float) -> Losses:
    return Losses(values=np.array([mean - 0.5, mean + 0.5]), windows=np.array([0, 1]))


@pytest.mark.parametrize(
    ("forgotten", "before", "after", "share"),
    [
        (Interval(mean=0.5, low=0.4, high=0.6), 3.0, 2.75, 0.5),
        (Interval(mean=0.5, low=0.4, high=0.6), 3.0, 2.0, 2.0),
        (Interval(mean=0.5, low=0.4, high=0.6), 3.0, 3.5, -1.0),
        (Interval(mean=0.5, low=0.0, high=1.0), 3.0, 2.75, None),
        (Interval(mean=0.5, low=-0.1, high=1.1), 3.0, 2.75, None),
        (Interval(mean=-0.5, low=-0.6, high=-0.4), 3.0, 2.75, None),
    ],
)
def test_learning_again_is_not_clamped_and_null_within_the_noise(
    forgotten: Interval, before: float, after: float, share: float | None
) -> None:
    assert share_relearned(forgotten, losses(before), losses(after)) == share


def test_a_turn_that_diverges_is_recorded_and_is_the_last() -> None:
    turns = list(alternation(subject_of(lr=1e30)))
    assert len(turns) == 2 and turns[1].trained == "a" and turns[1].loss_a is None
    assert turns[1].error is not None and "nan" in turns[1].error


# Targeted damage.


def planted_network() -> Any:
    """Return a network whose head 1.1 has the largest weights and whose head 2.0 has none."""
    network, width = network_of(), 5
    for layer, head, scale in ((1, 1, 6.0), (2, 0, 0.0)):
        attention = network.transformer.h[layer].attn
        rows = slice(head * width, (head + 1) * width)
        attention.c_proj.weight.data[rows] *= scale
        for part in range(3):
            columns = slice(part * 15 + head * width, part * 15 + (head + 1) * width)
            attention.c_attn.weight.data[:, columns] *= scale
            attention.c_attn.bias.data[columns] *= scale
    return network


def test_the_planted_head_goes_first_and_hurts_exactly() -> None:
    network = planted_network()
    subject = subject_of(network, strategy="magnitude", level=1 / 9)
    arms = {arm.arm: arm for arm in damage(subject)}
    assert list(arms) == ["dense", "highest", "random 1", "random 2", "random 3", "lowest"]
    assert (arms["highest"].heads, arms["lowest"].heads) == ([(1, 1)], [(2, 0)])
    whole = loss_without(network, [], 1)
    for arm in arms.values():
        assert arm.damaged == pytest.approx(loss_without(network, arm.heads, 1), abs=1e-6)
        assert arm.damaged is not None and arm.harm is not None
        assert arm.harm.mean == pytest.approx(arm.damaged - whole, abs=1e-6)
    assert arms["lowest"].harm == Interval(mean=0.0, low=0.0, high=0.0)
    harm = arms["highest"].harm
    assert harm is not None and abs(harm.mean) > 1e-3
    assert arms["lowest"].learned == pytest.approx(arms["dense"].learned, abs=0.2)
    dense = arms["dense"].learned
    assert dense is not None and dense < whole and arms["dense"].heads == []
    for arm in arms.values():
        assert arm.damaged is not None and arm.learned is not None
        expected = recovery(pruned=arm.damaged, learned=arm.learned, dense=dense)
        assert arm.recovery == (None if arm.arm == "dense" else expected)


def test_every_draw_has_as_many_heads_in_each_layer_and_is_another_one() -> None:
    subject = subject_of(level=4 / 9, draws=5)
    scores = np.array([[9.0, 8.0, 0.0], [7.0, 1.0, 2.0], [6.0, 3.0, 4.0]])
    found = choices(subject, scores)
    assert found["highest"] == [(0, 0), (0, 1), (1, 0), (2, 0)] and found["lowest"][:3] == [(0, 2), (1, 1), (1, 2)]
    drawn = [found[f"random {number}"] for number in range(1, 6)]
    for heads in drawn:
        assert Counter(layer for layer, _ in heads) == {0: 2, 1: 1, 2: 1} and len(set(heads)) == 4
    assert len({tuple(heads) for heads in drawn}) > 2
    assert choices(subject, scores) == found
    assert choices(replace(subject, question=replace(subject.question, seed=1)), scores) != found


@pytest.mark.parametrize(
    ("pruned", "learned", "dense", "share"),
    [(3.0, 2.0, 1.0, 0.5), (3.0, 0.5, 1.0, 1.25), (3.0, 3.5, 1.0, -0.25), (1.0, 0.5, 1.0, None), (0.9, 0.5, 1.0, None)],
)
def test_recovery_below_0_and_above_1_both_survive(
    pruned: float, learned: float, dense: float, share: float | None
) -> None:
    assert recovery(pruned=pruned, learned=learned, dense=dense) == share


def test_an_arm_that_diverges_says_so_and_the_others_go_on() -> None:
    arms = list(damage(subject_of(lr=1e30)))
    assert len(arms) == 6
    assert all(arm.error and arm.learned is None and arm.recovery is None for arm in arms)
    assert all(arm.damaged is not None and arm.harm is not None for arm in arms)  # that was measured before


def test_one_broken_arm_breaks_no_other() -> None:
    class Breaking(StressSubject):
        def state(self, without: Any = ()) -> Any:
            state = super().state(without)
            if list(without) == [(2, 0)]:
                next(state.model.parameters()).data.fill_(math.nan)
            return state

    asked: dict[str, Any] = {"strategy": "magnitude", "level": 1 / 9, "steps": 2, "draws": 3}
    arms, whole = (
        {arm.arm: arm for arm in damage(subject_of(planted_network(), maker=maker, **asked))}
        for maker in (Breaking, StressSubject)
    )
    assert arms["lowest"].damaged is None and "is nan" in str(arms["lowest"].error)
    assert {name: arm for name, arm in arms.items() if name != "lowest"} == {
        name: arm for name, arm in whole.items() if name != "lowest"
    }


# Conflict.

A_SCORES = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]])
B_SCORES = np.array([[0.0, 8.0, 7.0], [1.0, 6.0, 5.0], [2.0, 3.0, 4.0]])


class Planted(StressSubject):
    """A subject whose heads score A_SCORES on one text and B_SCORES on the other."""

    def scores(self, corpus: Corpus) -> Array:
        return A_SCORES if corpus is self.a else B_SCORES


def test_the_conflict_set_of_planted_scores() -> None:
    subject = subject_of(maker=Planted, level=3 / 9)
    found = conflict(subject)
    rows = {row.ranked_for: row for row in found.pruned}
    assert rows["a"].heads == [(0, 0), (0, 1), (1, 0)]  # a layer keeps one: 0.2 stays
    assert rows["b"].heads == [(0, 0), (1, 0), (2, 0)]
    assert rows["both"].heads == [(0, 0), (1, 0), (2, 0)]  # sums 0, 4 and 8, before 0.1 and 0.2 with 9
    assert found.conflicting == [(0, 1)] and found.count == 3
    from scipy.stats import spearmanr

    assert found.agreement["global"] == pytest.approx(spearmanr(A_SCORES.ravel(), B_SCORES.ravel()).statistic)
    centred = [scores - scores.mean(1, keepdims=True) for scores in (A_SCORES, B_SCORES)]  # scores are their own ranks
    expected = np.corrcoef(*(array.ravel() for array in centred))[0, 1]
    assert found.agreement["layer_centred"] == pytest.approx(expected)
    network = subject.network
    for row in rows.values():
        assert row.loss_a == pytest.approx(loss_without(network, row.heads, 1), abs=1e-6)
        assert row.loss_b == pytest.approx(loss_without(network, row.heads, 3), abs=1e-6)
        assert row.harm_b is not None and row.loss_b is not None
        assert row.harm_b.mean == pytest.approx(row.loss_b - loss_without(network, [], 3), abs=1e-6)
    assert rows["none"].heads == [] and rows["none"].harm_a == Interval(mean=0.0, low=0.0, high=0.0)


def test_equal_scores_share_their_rank_and_absent_heads_have_none() -> None:
    present = np.array([[True, True], [True, False]])
    one, other = np.array([[5.0, 5.0], [9.0, -1.0]]), np.array([[1.0, 3.0], [2.0, -1.0]])
    assert summed_ranks(one, other, present).tolist() == [[0.5, 2.5], [3.0, 0.0]]


def test_one_task_has_no_conflict_with_itself() -> None:
    found = conflict(subject_of(a=1, b=1))
    assert found.conflicting == [] and found.agreement["global"] == pytest.approx(1.0)
    for row in found.pruned:
        assert row.loss_a == row.loss_b
    assert {tuple(row.heads) for row in found.pruned[1:]} == {tuple(found.pruned[1].heads)}


# All of them.


def everything(subject: StressSubject) -> dict[str, Any]:
    found = stress_of(subject, PROTOCOLS)
    run(subject, found, lambda line: None)
    return found.to_dict()


@pytest.mark.slow
def test_every_arm_starts_from_the_same_network_and_answers_are_repeated() -> None:
    network = network_of()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    subject = subject_of(network, baseline=3, steps=2, rounds=2)
    first, second = everything(subject), everything(subject)
    assert first == second and first["unfinished"] == []
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    start = first["alternation"][0]
    assert start["loss_a"] == first["damage"][0]["damaged"] == first["conflict"]["pruned"][0]["loss_a"]
    assert start["loss_b"] == first["conflict"]["pruned"][0]["loss_b"]
    alone = stress_of(subject, ["damage"])
    run(subject, alone, lambda line: None)
    assert alone.to_dict()["damage"] == first["damage"] and alone.alternation == [] and alone.conflict is None
    assert everything(subject_of(network, baseline=3, steps=2, rounds=2, seed=1))["alternation"] != first["alternation"]


def test_the_estimate_counts_what_is_done() -> None:
    done = Counter[str]()

    class Counting(StressSubject):
        def train(self, state: Any, examples: Any, purpose: object, steps: int | None = None) -> None:
            done["steps"] += steps or self.question.steps

        def losses(self, state: Any, corpus: Corpus) -> Losses:
            done["evaluations"] += 1
            return super().losses(state, corpus)

    subject = subject_of(maker=Counting, baseline=5, draws=4, rounds=3)
    for protocols in (PROTOCOLS, ("damage",), ("alternation", "conflict")):
        work = work_of(subject, protocols)
        done.clear()
        run(subject, stress_of(subject, protocols), lambda line: None)
        assert (work.steps, work.evaluations) == (done["steps"], done["evaluations"]) and work.seconds > 0


def test_absent_heads_stay_absent_and_are_never_removed_again() -> None:
    subject = subject_of(level=0.25)
    subject = replace(subject, head_map=subject.head_map.without([(0, 0)]))
    assert subject.count == 2
    arms = list(damage(subject))
    assert all((0, 0) not in arm.heads and len(arm.heads) == 2 for arm in arms[1:])
    state = subject.state()
    subject.train(state, subject.a.train, "test")
    assert not state.model.network.transformer.h[0].attn.c_proj.weight.data[:5].any()


def test_hidden_tokens_can_be_learned_by_turns_too() -> None:
    assert MASK_TOKEN == VOCABULARY - 1
    content = everything(subject_of(kind="bert", steps=2, rounds=2))
    assert len(content["alternation"]) == 3 and len(content["damage"]) == 6
    assert all(turn["error"] is None for turn in content["alternation"])


# Loading and the command.

SMALL = ("--baseline", "2", "--steps", "2", "--rounds", "2", "--seq-len", "16", "--eval-tokens", "64",
         "--batch-size", "2", "--probe-windows", "2")  # fmt: skip
WORDS = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. \n"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stress") / "other.txt"
    lines = [" ".join(np.random.default_rng(number).permutation(WORDS.split())) for number in range(600)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def asked(model: str, other: Path | str, *options: str) -> Result:
    return CliRunner().invoke(main, ["analyze", "stress", model, "--data", "python-docs", "--other", str(other), *SMALL,
                                     *options])  # fmt: skip


def test_both_texts_are_read_with_the_tokenizer_of_a(text: Path) -> None:
    a, b = (DataSpec(name=name, seq_len=16, eval_tokens=64, probe_windows=2) for name in ("python-docs", str(text)))
    subject = load_subject("gpt2-nano", a, b, StressOptions(baseline=1, batch_size=2), cpu())
    back = load_subject("gpt2-nano", b, a, StressOptions(baseline=1, batch_size=2), cpu())
    assert subject.network.config.vocab_size != back.network.config.vocab_size
    assert int(subject.b.train.max()) < subject.network.config.vocab_size
    assert not np.array_equal(subject.b.train[:4], back.a.train[:4])


def test_the_command_prints_and_draws(text: Path, tmp_path: Path) -> None:
    done = asked("gpt2-nano", text, "--out", str(tmp_path / "s.png"))
    assert done.exit_code == 0, done.output
    assert "training steps and" in done.stderr and "damage: random 3" in done.stderr
    for said in ("forgotten of the other", "recovery", "by the sum of ranks", "ranks for A and for B agree"):
        assert said in done.stdout
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_an_export_is_stressed_with_the_heads_it_has(text: Path, tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path, "small", model__name="llama-nano")
    contents = []
    for form in ("compact", "dense"):
        export(sweep, 1, tmp_path / form, form)
        done = asked(str(tmp_path / form), text, "--json", "--protocol", "conflict", "--set", "form=ov",
                     "--strategy", "magnitude", "--baseline", "0")  # fmt: skip
        assert done.exit_code == 0, done.output
        contents.append(json.loads(done.stdout))
    one, other = contents
    assert one["conflict"] == other["conflict"] and one["heads"] < 32
    assert one["alternation"] == one["damage"] == [] and one["question"]["options"] == {"form": "ov"}
    absent = json.loads((tmp_path / "dense" / "raysweep.json").read_text())["head_map"]
    assert all(absent[layer][head] >= 0 for row in one["conflict"]["pruned"] for layer, head in row["heads"])


@pytest.mark.parametrize("form", ["table", "json"])
def test_an_interruption_shows_what_was_measured_and_how_to_go_on(
    form: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupted(subject: StressSubject) -> Any:
        yield next(damage(subject))
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "damage", interrupted)
    done = asked("gpt2-nano", text, *(["--json"] if form == "json" else []))
    assert done.exit_code == 130
    assert "give the same command with --protocol damage --protocol conflict" in done.stderr
    if form == "json":
        content = json.loads(done.stdout)
        assert content["unfinished"] == ["damage", "conflict"]
        assert len(content["alternation"]) == 3 and len(content["damage"]) == 1
    else:
        assert "dense" in done.stdout and "forgotten of the other" in done.stdout and "lowest" not in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--baseline", "0"),
            "'gpt2-nano' is a size to train from scratch: it knows nothing yet. Give --baseline STEPS",
        ),
        (("--strategy", "tailor"), "--strategy: no 'tailor'. Did you mean 'taylor'?"),
        (("--strategy", "entropy"), "--set direction: required by 'entropy'"),
        (("--set", "depth=2"), "--set depth = 2: unknown option"),
        (("--set", "depth"), "write it as key=value"),
        (("--level", "0.001"), "--level 0.001 of 32 heads is 0; between 1 and 28 may go"),
        (("--level", "0.95"), "--level 0.95 of 32 heads is 30; between 1 and 28 may go"),
        (("--eval-tokens", "16"), "has 1 held-out windows of 16 tokens; an interval takes 2"),
        (("--other", "/nowhere.txt"), "no such file or folder"),
        (("--batch-size", "100000"), "is too short"),
    ],
)
def test_what_cannot_be_asked_is_refused(text: Path, options: tuple[str, ...], said: str) -> None:
    done = asked("gpt2-nano", text, *options)
    assert done.exit_code == 2 and said in done.stderr, done.output
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.output


def test_a_model_of_images_is_refused(text: Path) -> None:
    spec = DataSpec(name=str(text), seq_len=16)
    with pytest.raises(ModelError, match="'vit-nano' learns image_classification: it does not predict tokens"):
        load_subject("vit-nano", spec, spec, StressOptions(baseline=1), cpu())
    with pytest.raises(UsageError, match="--strategy: no 'nothing'"):
        check_question(StressOptions(strategy="nothing"))
