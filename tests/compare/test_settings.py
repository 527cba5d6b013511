"""One field of `Settings` is one option: of every comparison, and of the command line."""

from __future__ import annotations

import argparse
from dataclasses import fields
from inspect import get_annotations, signature

import pytest

from deqlm.cli import compare as command
from deqlm.cli.main import main
from deqlm.comparison import Settings, compare, compare_gradients, compare_literature, compare_starts
from deqlm.comparison.settings import SettingsOptions

NAMES = [each.name for each in fields(Settings)]
OTHERS = {
    "dtype": "float64", "batch": 3, "seed": 7, "repeats": 9, "threads": 2, "device": "cpu", "quick": True,
    "progress": True,
}  # fmt: skip
"""A value that every field may have; the test says when a new field has none here."""


def test_the_keywords_are_the_fields():
    assert list(get_annotations(SettingsOptions)) == NAMES
    assert SettingsOptions.__total__ is False
    assert list(OTHERS) == NAMES


@pytest.mark.parametrize("comparison", [compare, compare_gradients, compare_starts, compare_literature])
def test_every_comparison_takes_them_all_and_no_other(comparison):
    taken = {p.annotation for p in signature(comparison).parameters.values() if p.kind is p.VAR_KEYWORD}
    assert taken == {"Unpack[SettingsOptions]"}
    with pytest.raises(TypeError, match="unknown option 'repeat': did you mean 'repeats'"):
        comparison(repeat=3)


@pytest.fixture
def parser():
    """Return the parser of ``deqlm compare``."""
    whole = argparse.ArgumentParser()
    command.add(whole.add_subparsers())
    return whole


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_an_option_of_the_command_line(parser, name):
    value = OTHERS[name]
    said = [f"--{name}"] if value is True else [f"--{name}", str(value)]
    given = command._given(parser.parse_args(["compare", *said]))
    assert given == {name: value}
    assert Settings.of(**given) == Settings.of(**{name: value})


def test_what_is_not_said_is_the_default(parser):
    assert command._given(parser.parse_args(["compare"])) == {}
    assert Settings.of() == Settings()


@pytest.mark.parametrize("name", Settings.fixed(NAMES))
def test_published_problems_refuse_what_they_say_themselves(name, capsys):
    with pytest.raises(ValueError, match=f"^{name} has no meaning for problems of the literature"):
        compare_literature("dottie", "newton", **{name: OTHERS[name]})
    said = [f"--{name}"] if OTHERS[name] is True else [f"--{name}", str(OTHERS[name])]
    assert main(["compare", "--suite", "literature", *said]) == 2
    assert f"--{name} has no meaning with --suite literature" in capsys.readouterr().err


def test_the_rest_is_theirs():
    assert set(NAMES) - set(Settings.fixed(NAMES)) == {"threads", "progress"}
    result = compare_literature("dottie", "newton", threads=1, progress=False)
    assert (result.settings["dtype"], result.settings["repeats"]) == ("float64", 1)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("quick", "false", "quick must be True or False, got 'false'"),
        ("progress", 1, "progress must be True, False or None, got 1"),
        ("seed", True, "seed must be a whole number"),
        ("batch", 0, "batch must be a whole number >= 1, got 0"),
        ("threads", 0, "threads must be a whole number >= 1, got 0"),
        ("repeats", 1.5, "repeats must be a whole number >= 1, got 1.5"),
        ("dtype", "float63", "unknown dtype 'float63': did you mean 'float64'"),
        ("device", "gpu", "unknown device 'gpu'"),
    ],
)
def test_a_bad_value_is_refused_at_birth(name, value, rule):
    with pytest.raises(ValueError, match=f"^{rule}"):
        Settings.of(**{name: value})
