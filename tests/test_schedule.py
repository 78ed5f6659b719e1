"""Schedules against values worked out by hand."""

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from compress_aug import schedule
from compress_aug.schedule import Halving, Points, Ramp, Schedule, describe, magnitude, over_rounds, value


@pytest.mark.parametrize(
    ("shape", "progress", "expected"),
    [
        ("linear", 0.0, 14.0),
        ("linear", 0.5, 9.0),
        ("linear", 1.0, 4.0),
        ("cosine", 0.5, 9.0),
        ("cosine", 0.25, 14 - 10 * (1 - math.cos(math.pi / 4)) / 2),
        ("cubic", 0.5, 14 - 10 * (1 - 0.5**3)),
        ("step", 0.24, 14.0),
        ("step", 0.25, 14 - 10 / 3),
        ("step", 1.0, 4.0),
    ],
)
def test_ramps(shape, progress, expected):
    assert value(Ramp(start=14, end=4, shape=shape), progress) == pytest.approx(expected)


def test_halving_steps_where_it_says():
    halving = Halving(start=0.4, halve_every=0.3)
    assert [value(halving, p) for p in (0.0, 0.29, 0.3, 0.6, 0.9)] == [0.4, 0.4, 0.2, 0.1, 0.05]


def test_points_are_joined_by_lines_and_held_beyond_the_ends():
    points = Points(by="sparsity", points={0.4: 8, 0.0: 14, 0.2: 12})
    asked = []

    def at(sparsity):
        def facts(name):
            asked.append(name)
            return sparsity

        return value(points, 0.5, facts)

    assert [at(s) for s in (-1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.9)] == [14, 14, 13, 12, 10, 8, 8]
    assert set(asked) == {"sparsity"}


def test_points_without_a_model_say_so():
    with pytest.raises(ValueError, match="needs the model"):
        value(Points(by="bits", points={4: 6}), 0.0)


@pytest.mark.parametrize(
    ("given", "progress", "expected"),
    [
        (None, 0.0, None),
        (14.0, 0.3, 14),
        (0.0, 0.3, 0),  # a plain 0 is M=0, not "none"
        (Ramp(start=8, end=0), 0.0, 8),
        (Ramp(start=8, end=0), 0.93, 1),  # 0.56 rounds to 1
        (Ramp(start=8, end=0), 0.95, None),  # 0.4 rounds to 0, which is none
        (Ramp(start=2, end=3), 0.5, 3),  # halves go up
    ],
)
def test_magnitude(given, progress, expected):
    assert magnitude(given, progress) == expected


def test_the_forms_are_told_apart_by_their_keys():
    read = TypeAdapter(Schedule).validate_python
    assert read(3) == 3.0
    assert isinstance(read({"start": 1, "end": 2}), Ramp)
    assert isinstance(read({"start": 1, "halve_every": 0.5}), Halving)
    assert isinstance(read({"by": "bits", "points": {4: 1}}), Points)
    with pytest.raises(ValidationError):
        read({"start": 1})


def test_over_rounds_ends_at_the_end():
    assert over_rounds(Ramp(start=0, end=0.6), 3) == [0.2, 0.4, 0.6]
    cubic = over_rounds(Ramp(start=0, end=0.6, shape="cubic"), 3)
    assert cubic == pytest.approx([0.6 * (1 - (2 / 3) ** 3), 0.6 * (1 - (1 / 3) ** 3), 0.6])


def test_extremes_hold_every_value():
    for given in (
        Ramp(start=3, end=9),
        Halving(start=0.4, halve_every=0.1),
        Points(by="bits", points={2: 5, 4: 1}),
    ):
        low, high = schedule.extremes(given)
        for step in range(11):
            assert low <= value(given, step / 10, lambda fact: 3.0) <= high


def test_describe():
    assert describe(Ramp(start=8, end=2, shape="cosine")) == "8 → 2 cosine"
    assert describe(Halving(start=0.4, halve_every=0.3)) == "0.4, halved every 30%"
    assert describe(Points(by="bits", points={4: 6})) == "by bits"
    assert describe("student_schedule") == "student_schedule"
