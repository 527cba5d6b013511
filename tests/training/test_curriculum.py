"""Stages are data; a course goes on by accuracy or by steps, and from where it was saved."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqlm.training import Course, Curriculum, Stage, free, warm_up

SHORT = Stage(length=2, rows=8, until=0.9, window=3)
PLAN = Curriculum((SHORT, Stage(length=4, rows=4, p=0.5, steps=5), Stage(length=8, rows=2, until=0.99, window=2)))


def follow(course, accuracies):
    """Return the stage after each step."""
    stages = []
    for accuracy in accuracies:
        course.record(accuracy)
        course.advance()
        stages.append(course.index)
    return stages


def test_a_full_window_above_the_threshold_ends_a_stage():
    assert follow(Course(PLAN), [1.0, 1.0, 0.6, 1.0, 1.0, 1.0]) == [0] * 5 + [1]


def test_steps_end_a_stage_and_the_count_begins_anew():
    course = Course(PLAN)
    assert follow(course, [1.0] * 8) == [0, 0, 1, 1, 1, 1, 1, 2]
    assert course.running != course.running  # nothing was measured in this stage
    assert follow(course, [0.9, 1.0]) == [2, 2]
    assert course.ended is None
    follow(course, [1.0])
    assert course.ended == "target"


def test_the_last_stage_can_end_by_steps():
    course = Course(Curriculum((SHORT.replace(steps=2, until=None),)))
    follow(course, [1.0, 1.0])
    assert course.ended == "steps"


@given(st.lists(st.floats(0.8, 1), max_size=30), st.integers(0, 30))
def test_a_saved_course_goes_on_as_if_nothing_had_happened(accuracies, cut):
    whole, first, second = Course(PLAN), Course(PLAN), Course(PLAN)
    stages = follow(whole, accuracies)
    before = follow(first, accuracies[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + follow(second, accuracies[cut:]) == stages
    assert second.state_dict() == whole.state_dict()


def test_a_curriculum_is_plain_data():
    plan = Curriculum((SHORT.replace(phase=warm_up(iterations=2)), Stage(length=16, rows=1, phase=free())))
    assert Curriculum.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.has_phases
    assert not plan.without_phases().has_phases


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "length must be a whole number >= 1"),
        ({"rows": 0}, "rows must be a whole number >= 1"),
        ({"p": 1.5}, r"p must be in \[0, 1\], got 1.5"),
        ({"p": float("nan")}, r"p must be in \[0, 1\]"),
        ({"until": 1}, r"until must be in \[0, 1\)"),
        ({"steps": 0}, "steps must be a whole number >= 1"),
        ({"window": 0}, "window must be a whole number >= 1"),
        ({"phase": warm_up(5)}, "phase must be a Phase without steps"),
    ],
)
def test_bad_stages_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SHORT.replace(**change)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "at least one Stage"),
        ((3,), "objects of Stage"),
        ((Stage(length=2, rows=2), SHORT), r"stages without until and steps must be none but the last, got \[0\]"),
        ((SHORT.replace(phase=warm_up()), SHORT), r"stages with a phase must be all or none, got \[0\]"),
    ],
)
def test_bad_curricula_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(stages)


def test_a_course_of_another_curriculum_is_refused():
    state = Course(PLAN).state_dict()
    with pytest.raises(ValueError, match="index of the stage must be below 1, got 2"):
        Course(Curriculum((SHORT,))).load_state_dict({**state, "index": 2})
