"""The conformance kit is proved by mutants: every check has a guilty analyzer that it alone catches."""

import importlib.util
import sys
from pathlib import Path

import pytest

from ckpt_tools.testing import CHECKS, Blocked, BoundCheck, NonConformance, NotApplicable, analyzer_checks


def load_mutants() -> object:
    # Under a real module name, since `pickles` imports the class by its module.
    spec = importlib.util.spec_from_file_location("kit_mutants", Path(__file__).with_name("mutants.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kit_mutants"] = module
    spec.loader.exec_module(module)
    return module


mutants = load_mutants()


def caught(cls: type) -> list[str]:
    found = []
    for check in analyzer_checks(cls):
        try:
            check.verdict()
        except NonConformance:
            found.append(check.name)
        except (Blocked, NotApplicable):
            continue
    return found


@pytest.mark.parametrize("cls", mutants.MUTANTS, ids=lambda cls: cls.name)
def test_each_mutant_is_caught_by_its_check_alone(cls: type) -> None:
    assert caught(cls) == [cls.name]


def test_every_check_has_a_mutant_and_the_innocent_passes() -> None:
    assert sorted(cls.name for cls in mutants.MUTANTS) == sorted(CHECKS)
    assert caught(mutants.Innocent) == []


def test_a_check_that_does_not_apply_says_so() -> None:
    check = BoundCheck("invariant_to_scale", mutants.Innocent)
    check()
    with pytest.raises(NotApplicable, match="not declared"):
        check.verdict()


def test_an_analyzer_that_does_not_run_is_explained_once() -> None:
    with pytest.raises(NonConformance, match="missing output 'rank'"):
        BoundCheck("outputs", mutants.Forgetful)()
    with pytest.raises(Blocked):
        BoundCheck("deterministic", mutants.Forgetful)()


def test_messages_say_what_to_do() -> None:
    with pytest.raises(NonConformance, match=r"norm at step 0.*take randomness from view\.rng"):
        BoundCheck("deterministic", mutants.Dice)()
    with pytest.raises(NonConformance, match="'weights' is enough: declare that"):
        BoundCheck("needs", mutants.Greedy)()
