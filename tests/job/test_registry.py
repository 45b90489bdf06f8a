"""The folder is the registry: a file is a name, a name that no file has is refused with the nearest one."""

from __future__ import annotations

import dataclasses
import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raysweep
import raysweep.strategies.prune
from raysweep import contracts
from raysweep.errors import UsageError
from raysweep.job import registry
from raysweep.job.jobfile import check_job

PACKAGE = Path(raysweep.__file__).parent
STRATEGY = """
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Pruner:
    power: float = 2.0
    rounds: int = 1

    def __post_init__(self):
        if self.rounds > 9:
            raise ValueError("too many rounds")

    def __call__(self, statistics, generator):
        return statistics.magnitude
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RAYSWEEP_MODULES", "elsewhere, outside,package")
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("kind", registry.KINDS)
def test_the_names_of_a_kind_are_its_files(kind: str) -> None:
    files = sorted(
        path.stem
        for path in (PACKAGE / registry.KINDS[kind][0].replace(".", "/")).glob("*.py")
        if path.stem != "__init__"
    )
    assert registry.available(kind) == files != []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[pytest.mark.torch] if kind in ("tasks", "analyses") else [])
        for kind in registry.KINDS for name in registry.available(kind)
    ],
)  # fmt: skip
def test_a_name_leads_to_the_class_in_its_own_file(kind: str, name: str) -> None:
    found = registry.load(kind, name)
    assert (found.__module__, found.__name__) == (f"raysweep.{registry.KINDS[kind][0]}.{name}", registry.KINDS[kind][1])
    assert found.__dataclass_params__.frozen and dataclasses.is_dataclass(found)


def test_a_new_file_is_a_new_name_and_nothing_else_has_to_change(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (modules / "mine.py").write_text(STRATEGY)
    monkeypatch.setattr(raysweep.strategies.prune, "__path__", [*raysweep.strategies.prune.__path__, str(modules)])
    assert "mine" in registry.available("prune")
    job = {"name": "j", "model": {"name": "m"}, "cycle": {"prune": {"strategy": "mine", "level": 0.5, "power": 3}}}
    section = check_job(job, "j.yaml").spec.cycle.prune
    assert section is not None
    assert registry.build("prune", section.strategy, section.options).power == 3


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known_names() -> None:
    with pytest.raises(registry.UnknownNameError) as refused:
        registry.load("prune", "tailor")
    assert "no 'tailor'. Did you mean 'taylor'?" in str(refused.value)
    assert all(name in str(refused.value) for name in registry.available("prune"))
    assert isinstance(refused.value, UsageError) and refused.value.exit_code == 2


def test_a_name_unlike_any_other_gets_no_guess() -> None:
    with pytest.raises(registry.UnknownNameError) as refused:
        registry.load("prune", "qqq")
    assert "Did you mean" not in str(refused.value) and "Known: " in str(refused.value)


@pytest.mark.parametrize("name", ["", ".", ".taylor", "..prune.taylor", "__init__", "prune/taylor"])
def test_a_name_that_is_neither_a_file_nor_a_module_is_refused(name: str) -> None:
    with pytest.raises(registry.UnknownNameError, match="no '"):
        registry.load("prune", name)


def test_a_dotted_name_reaches_code_outside_the_package(modules: Path) -> None:
    (modules / "elsewhere").mkdir()
    (modules / "elsewhere" / "mine.py").write_text(STRATEGY)
    assert registry.build("prune", "elsewhere.mine", {"power": 1.5}).power == 1.5


@pytest.mark.parametrize("base", ["", "(contracts.Pruner)"])
def test_a_strategy_outside_the_package_works_with_and_without_its_contract_as_a_base(modules: Path, base: str) -> None:
    (modules / "outside").mkdir()
    code = "from raysweep import contracts\n" + STRATEGY.replace("class Pruner:", f"class Pruner{base}:")
    (modules / "outside" / "mine.py").write_text(code)
    found = registry.load("prune", "outside.mine")
    assert (found.__module__, found.__qualname__) == ("outside.mine", "Pruner")
    assert found is sys.modules["outside.mine"].Pruner is registry.load("prune", "outside.mine")
    built = registry.build("prune", "outside.mine", {"power": 3})
    assert built.requires == () and dataclasses.asdict(built) == {"power": 3.0, "rounds": 1}
    assert pickle.loads(pickle.dumps(built)) == built
    [(option, _, message)] = registry.option_faults("prune", "outside.mine", {"requires": ["contribution"]})
    assert option == "requires" and "takes power, rounds" in message


def test_what_a_strategy_outside_the_package_does_say_is_left_alone(modules: Path) -> None:
    (modules / "outside").mkdir()
    code = STRATEGY.replace("Pruner:", "Sampler:") + "\n    @property\n    def whole(self):\n        return True\n"
    (modules / "outside" / "mine.py").write_text(code)
    built = registry.build("samplers", "outside.mine")
    assert built.whole is True and built.cannot == ()


@pytest.mark.parametrize("kind", [kind for kind in registry.KINDS if registry.KINDS[kind][0].startswith("strategies.")])
def test_what_a_strategy_may_leave_out_is_what_its_contract_says(kind: str) -> None:
    contract = getattr(contracts, registry.KINDS[kind][1])
    optional = {name for name in vars(contract) if not name.startswith("_")} - contract.__abstractmethods__
    bare = type("Bare", (contract,), dict.fromkeys(contract.__abstractmethods__))()
    # What a method answers is asked of our own strategies alone.
    defaults = {name: getattr(bare, name) for name in optional if not callable(getattr(bare, name))}
    assert registry.DEFAULTS.get(kind, {}) == defaults


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "can be imported"),
        ("import no_such_module_anywhere", "can be imported (No module named 'no_such_module_anywhere')"),
        ("from json import no_such_thing", "can be imported (cannot import name 'no_such_thing'"),
        ("class Grower: pass", "has no dataclass 'Pruner'"),
        ("class Pruner: pass", "has no dataclass 'Pruner'"),
        ("Pruner = 3", "has no dataclass 'Pruner'"),
    ],
)
def test_a_dotted_name_without_a_usable_strategy_is_refused(modules: Path, code: str | None, said: str) -> None:
    (modules / "outside").mkdir()
    if code is not None:
        (modules / "outside" / "mine.py").write_text(code)
    with pytest.raises(registry.UnknownNameError) as refused:
        registry.load("prune", "outside.mine")
    assert "'outside.mine'" in str(refused.value) and said in str(refused.value)


def test_good_options_have_no_fault() -> None:
    assert registry.option_faults("prune", "entropy", {"direction": "high"}) == []
    assert registry.option_faults("samplers", "tpe", {"startup_trials": 3}) == []
    assert registry.option_faults("prune", "taylor", {}) == []


def test_a_required_option_says_what_to_write() -> None:
    [(option, value, message)] = registry.option_faults("prune", "entropy", {})
    assert (option, value) == ("direction", None)
    assert "required by 'entropy'" in message and "'high' or 'low'" in message


def test_every_faulty_option_is_reported() -> None:
    faults = registry.option_faults("samplers", "tpe", {"startup_trials": "many", "startup": 3, "seed": 4})
    assert [(option, value) for option, value, _ in faults] == [("startup", 3), ("seed", 4), ("startup_trials", "many")]
    assert "'tpe' takes startup_trials." in faults[0][2] and "whole number" in faults[2][2]


def test_options_of_a_strategy_without_any_are_refused() -> None:
    [(option, _, message)] = registry.option_faults("prune", "taylor", {"direction": "high"})
    assert option == "direction" and "'taylor' takes no options" in message


def test_a_strategys_own_check_of_its_options_is_a_fault(modules: Path) -> None:
    (modules / "package").mkdir()
    (modules / "package" / "mine.py").write_text(STRATEGY)
    assert registry.option_faults("prune", "package.mine", {"rounds": 10}) == [], "its source shows names alone"
    registry.load("prune", "package.mine")
    [(_, _, message)] = registry.option_faults("prune", "package.mine", {"rounds": 10})
    assert "too many rounds" in message


def test_what_is_built_holds_the_options_as_they_were_checked() -> None:
    assert registry.build("prune", "entropy", {"direction": "low"}).direction == "low"
    built = registry.build("models", "pnn", {"block_widths": [8, 16]})
    assert built.block_widths == (8, 16), "a list of a job is a tuple of a strategy"


@pytest.mark.parametrize("value", ["5", 5.0, True, 0, 10**9])
def test_an_option_of_another_type_is_refused_and_never_converted(value: object) -> None:
    assert [option for option, _, _ in registry.option_faults("samplers", "tpe", {"startup_trials": value})] == [
        "startup_trials"
    ]


@pytest.mark.parametrize(("name", "options"), [("taylor", {"direction": "high"}), ("entropy", {})])
def test_nothing_is_built_from_options_that_do_not_fit(name: str, options: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="direction"):
        registry.build("prune", name, options)


def test_listing_names_imports_none_of_them(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (modules / "broken.py").write_text("raise RuntimeError('imported')")
    folder = importlib.import_module("raysweep.strategies.grow")
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(modules)])
    assert "broken" in registry.available("grow")
