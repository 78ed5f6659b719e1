"""Learned policies: against the published logs, against replay and lineage written out by hand, and what is refused."""

import json
import os
import random
import re
from pathlib import Path

import pytest

from compress_aug import policies
from compress_aug.errors import RecipeError
from compress_aug.policies import (
    ENTRIES,
    OPERATIONS,
    Policy,
    PolicySchedule,
    Segment,
    curves,
    read_pba_log,
    read_schedule,
    write_pba_log,
    write_schedule,
)
from compress_aug.reading import read_yaml
from compress_aug.schedule import Halving, Points, Ramp

LOGS = Path(os.environ.get("COMPRESS_AUG_DATA", "")) / "pba_schedules"
needs_logs = pytest.mark.skipif(
    "COMPRESS_AUG_DATA" not in os.environ or not LOGS.is_dir(),
    reason="COMPRESS_AUG_DATA names no folder with pba_schedules/",
)

# Durations and valid lines of the published logs, worked out by hand from the rule of lineage.
PUBLISHED = {
    "rcifar10_16_wrn": (200, 16, 16, (12, 22, 20, 20, 1, 6, 3, 27, 6, 21, 6, 9, 7, 17, 6, 12, 5)),
    "rsvhn_16_wrn": (160, 13, 13, (9, 15, 6, 8, 7, 24, 6, 25, 4, 4, 39, 6, 6, 1)),
    "rolekd_c100_resnet18_2bit_policy0": (200, 4, 10, (57, 3, 72, 39, 29)),
}


def drawn(seed):
    """A policy of random numbers, some of them with a magnitude but no probability."""
    dice = random.Random(seed)
    return Policy.from_vector(
        [number for _ in ENTRIES for number in (dice.randint(0, 10), dice.randint(0, 9))]
    )


def sparse(*entries):
    """A policy of all zeros but for (entry, probability, magnitude)."""
    vector = [0] * 60
    for place, probability, magnitude in entries:
        vector[2 * place : 2 * place + 2] = probability, magnitude
    return Policy.from_vector(vector)


def schedule_of(durations, seed=0):
    segments = tuple(Segment(epochs, drawn(seed + n)) for n, epochs in enumerate(durations))
    return PolicySchedule(sum(durations), segments)


def by_hand(schedule, epochs, replay):
    """The replay rules as loops over epochs, the reference."""
    by_epoch = [policy for duration, policy in schedule.segments for _ in range(duration)]
    if replay == "proportional":
        return [by_epoch[epoch * schedule.epochs // epochs] for epoch in range(epochs)]
    factor, found = epochs / schedule.epochs, []
    for duration, policy in schedule.segments:
        found += [policy] * int(duration * factor)
    return found + [schedule.segments[-1].policy] * (epochs - len(found))


# ---------------------------------------------------------------- the space and a policy


def test_the_order_of_the_space():
    expected = (
        "Rotate TranslateX TranslateY Brightness Color Invert Sharpness Posterize ShearX Solarize ShearY "
    )
    assert list(OPERATIONS) == (expected + "Equalize AutoContrast Cutout Contrast").split()
    assert ENTRIES == OPERATIONS + OPERATIONS


def test_where_each_number_of_the_vector_belongs():
    # Probability and magnitude of the entry tell its place: 0..9 and 0..9 for the tens and the ones.
    vector = [0] * 60
    vector[2 * 5], vector[2 * 5 + 1] = 10, 4
    vector[30 + 2 * 13], vector[30 + 2 * 13 + 1] = 7, 9
    policy = Policy.from_vector(vector)
    at = {
        (ENTRIES[n], n // 15): (policy.probabilities[n], policy.magnitudes[n])
        for n in range(30)
        if policy.probabilities[n]
    }
    assert at == {("Invert", 0): (10, 4), ("Cutout", 1): (7, 9)}


def test_a_vector_comes_back():
    for seed in range(20):
        policy = drawn(seed)
        assert Policy.from_vector(policy.vector()) == policy
        assert hash(Policy.from_vector(policy.vector())) == hash(policy)
        assert len(policy.vector()) == 60 and {type(n) for n in policy.vector()} == {int}
    assert drawn(0) != drawn(1)


def test_none_changes_nothing():
    assert Policy.none().vector() == [0] * 60
    assert Policy.none().is_none
    assert sparse((3, 0, 9)).is_none, "a magnitude without probability never shows"
    assert not sparse((3, 1, 0)).is_none


def test_a_policy_cannot_be_changed():
    with pytest.raises(AttributeError):
        Policy.none().magnitudes = (1,) * 30


@pytest.mark.parametrize(
    ("vector", "sentence"),
    [
        ([0] * 59, "a policy is 60 whole numbers, found 59"),
        ([], "a policy is 60 whole numbers, found 0"),
        ("0" * 60, "a policy is 60 whole numbers, found '0000"),
        (None, "a policy is 60 whole numbers, found None"),
        (
            [11] + [0] * 59,
            "number 0 of the policy, the probability of the first Rotate, must be a whole number",
        ),
        (
            [0, 10] + [0] * 58,
            "number 1 of the policy, the magnitude of the first Rotate, must be a whole number",
        ),
        ([0] * 58 + [-1, 0], "number 58 of the policy, the probability of the second Contrast"),
        ([0] * 59 + [-1], "number 59 of the policy, the magnitude of the second Contrast"),
        ([0] * 30 + [0.5] + [0] * 29, "number 30 of the policy, the probability of the second Rotate"),
        ([0] * 30 + [0.5] + [0] * 29, "must be a whole number in 0..10 (in tenths), found 0.5"),
        ([0, 10] + [0] * 58, "in 0..9, found 10"),
        ([True] + [0] * 59, "found True"),
        ([0, "3"] + [0] * 58, "found '3'"),
    ],
)
def test_what_is_no_policy(vector, sentence):
    with pytest.raises(RecipeError) as caught:
        Policy.from_vector(vector)
    assert sentence in str(caught.value)


def test_a_policy_has_thirty_of_each():
    with pytest.raises(RecipeError, match="a policy has 30 probabilities, found 15"):
        Policy((0,) * 15, (0,) * 30)
    with pytest.raises(RecipeError, match="a policy has 30 magnitudes, found 60"):
        Policy((0,) * 30, (0,) * 60)


# ---------------------------------------------------------------- a schedule and its replay


def test_replay_of_five_epochs_by_hand():
    a, b, c = drawn(0), drawn(1), drawn(2)
    schedule = PolicySchedule(10, (Segment(3, a), Segment(4, b), Segment(3, c)))
    assert schedule.expanded(5) == (a, a, b, b, c), "at epochs 0, 2, 4, 6 and 8 of the ten"
    assert schedule.expanded(5, "legacy") == (a, b, b, c, c), "1 + 2 + 1, and the last policy once more"
    assert schedule.expanded(1) == (a,)
    assert schedule.expanded(1, "legacy") == (c,)


@pytest.mark.parametrize("replay", ["proportional", "legacy"])
@pytest.mark.parametrize("durations", [(200,), *(row[3] for row in PUBLISHED.values()), (0, 5, 0, 0, 3, 0)])
def test_replay_over_any_number_of_epochs(durations, replay):
    schedule = schedule_of(durations)
    for epochs in (*range(1, 60), 100, 160, 199, 200, 201, 320, 400, 1000):
        found = schedule.expanded(epochs, replay)
        assert len(found) == epochs
        assert list(found) == by_hand(schedule, epochs, replay)
        assert found == tuple(schedule.at(epoch, epochs, replay) for epoch in range(epochs))


@pytest.mark.parametrize("durations", [row[3] for row in PUBLISHED.values()])
def test_both_replays_agree_on_multiples(durations):
    schedule = schedule_of(durations)
    for times in (1, 2, 3, 5, 7):
        epochs = times * schedule.epochs
        assert schedule.expanded(epochs) == schedule.expanded(epochs, "legacy")
    assert schedule.expanded(30) != schedule.expanded(30, "legacy"), "they differ elsewhere"


def test_legacy_replay_distorts_short_trainings():
    """The published schedule over 30 of its 200 epochs: why the code's own rule is not the default."""
    schedule = schedule_of(PUBLISHED["rcifar10_16_wrn"][3])
    legacy, ours = schedule.expanded(30, "legacy"), schedule.expanded(30)
    assert legacy.count(schedule.segments[-1].policy) == 8, "whose share of 30 epochs is 0.75"
    assert len(set(legacy)) == 17 - 6, "six policies vanish"
    for duration, policy in schedule.segments:
        assert abs(ours.count(policy) - duration * 30 / 200) < 1


def test_legacy_replay_rounds_as_the_code_does():
    schedule = schedule_of((22, 22))
    found = schedule.expanded(30, "legacy")
    assert 22 * (30 / 44) < 15, "in floating point"
    assert [found.count(policy) for _, policy in schedule.segments] == [14, 16]


def test_flatten_draws_from_the_schedules_own_epochs():
    schedule = schedule_of((3, 1, 0, 6))
    by_epoch = schedule.policies_by_epoch()
    assert [by_epoch.count(policy) for _, policy in schedule.segments] == [3, 1, 0, 6]
    for ask in (lambda: schedule.at(0, 10, "flatten"), lambda: schedule.expanded(10, "flatten")):
        with pytest.raises(RecipeError, match=re.escape("draw one for each image from policies_by_epoch()")):
            ask()


def test_an_all_zero_schedule_never_augments():
    schedule = PolicySchedule(10, (Segment(10, Policy.none()),))
    assert all(policy.is_none for policy in schedule.expanded(7))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda s: s.at(30, 30), "expected an epoch in 0..29, found 30"),
        (lambda s: s.at(-1, 30), "expected an epoch in 0..29, found -1"),
        (lambda s: s.at(0.5, 30), "expected an epoch in 0..29, found 0.5"),
        (lambda s: s.at(0, 0), "epochs: expected a whole number in 1..1000000, found 0"),
        (lambda s: s.expanded(2.0), "epochs: expected a whole number in 1..1000000, found 2.0"),
        (lambda s: s.expanded(10**9), "epochs: expected a whole number in 1..1000000, found 1000000000"),
        (lambda s: s.at(0, 3, "legcy"), 'there is no replay "legcy": did you mean "legacy"?'),
        (lambda s: s.expanded(3, "x"), 'there is no replay "x": known are: proportional, legacy, flatten'),
        (lambda s: PolicySchedule(9, s.segments), "the segments add up to 10, but epochs is 9"),
        (lambda s: PolicySchedule(0, ()), "epochs: expected a whole number in 1..1000000, found 0"),
        (lambda s: PolicySchedule(3, ()), "a schedule needs at least one segment"),
        (
            lambda s: PolicySchedule(3, ((-1, drawn(0)), (4, drawn(1)))),
            "segment 1: expected a whole number of",
        ),
        (lambda s: PolicySchedule(3, ((3, [0] * 60),)), "segment 1: expected a Policy, found list"),
        (lambda s: PolicySchedule(10, s.segments, [1]), "provenance: expected keys and values, found list"),
        (
            lambda s: PolicySchedule(10, s.segments, {"a": {"b": {1}}}),
            "provenance.a.b: expected text, a number",
        ),
        (lambda s: PolicySchedule(10, s.segments, {1: 2}), "provenance: expected words as keys, found 1"),
        (
            lambda s: PolicySchedule(10, s.segments, {"a": [float("nan")]}),
            "provenance.a.0: expected a finite",
        ),
    ],
)
def test_what_a_schedule_refuses(wrong, sentence):
    with pytest.raises(RecipeError) as caught:
        wrong(schedule_of((4, 6)))
    assert sentence in str(caught.value)


def test_provenance_that_holds_itself_is_refused():
    endless = {}
    endless["me"] = endless
    with pytest.raises(RecipeError, match="too deeply nested"):
        PolicySchedule(1, (Segment(1, Policy.none()),), endless)


def test_provenance_does_not_count_in_comparisons_and_is_a_copy():
    given = {"seeds": [0]}
    segments = (Segment(2, drawn(0)),)
    schedule = PolicySchedule(2, segments, given)
    given["seeds"].append(1)
    assert schedule.provenance == {"seeds": [0]}
    assert schedule == PolicySchedule(2, segments) and hash(schedule) == hash(PolicySchedule(2, segments))
    assert schedule != PolicySchedule(3, (Segment(3, drawn(0)),))


def test_describe():
    assert schedule_of((4, 6)).describe() == "2 policies over 10 epochs"
    assert schedule_of((1,)).describe() == "1 policy over 1 epoch"


# ---------------------------------------------------------------- logs of Population Based Augmentation

# Trial 4 took over from trial 9, whose own file did not exist then: its first two lines are of an older life,
# of which the second even continues the first.
STALE = [("4", "2", 3, 3, 20, 21), ("4", "4", 6, 6, 21, 22)]
LIVING = [
    ("9", "7", 11, 12, 0, 1),
    ("5", "9", 20, 15, 1, 2),
    ("4", "5", 15, 15, 2, 3),
    ("6", "4", 27, 21, 3, 4),
]
SETTINGS = {"lr": 0.001, "no_aug": False, "train_dir": None, "num_epochs": 200, "model_name": "it's"}


def written_log(path, events, literal, config):
    """events: (target, source, target's epoch, source's epoch, seed of the policy before, and after)"""
    lines = []
    for *head, before, after in events:
        vectors = [drawn(seed).vector() for seed in (before, after)]
        if config == "dict":
            vectors = [{**SETTINGS, "hp_policy": vector} for vector in vectors]
        lines.append(literal([*head, *vectors]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("config", ["list", "dict"])
@pytest.mark.parametrize("literal", [json.dumps, repr, lambda record: repr(tuple(record))])
def test_a_log_with_a_broken_lineage(tmp_path, literal, config):
    path = written_log(tmp_path / "policy.txt", STALE + LIVING, literal, config)
    schedule = read_pba_log(path, epochs=30)
    # Only the source's epochs (12, 15, 15, 21) count.
    assert schedule.durations == (12, 3, 0, 6, 9)
    assert [segment.policy for segment in schedule.segments] == [drawn(seed) for seed in range(5)]
    assert schedule.provenance == {
        "source": "PBA log",
        "file": "policy.txt",
        "trial": "6",
        "lines": 6,
        "valid_lines": 4,
    }


def test_lines_of_both_kinds_may_be_mixed(tmp_path):
    path = tmp_path / "policy.txt"
    first = written_log(path, LIVING[:2], json.dumps, "dict").read_text()
    second = written_log(path, LIVING[2:], repr, "list").read_text()
    path.write_text(first + "\n" + second.rstrip("\n"))
    assert read_pba_log(str(path), epochs=21).durations == (12, 3, 0, 6, 0)


def test_a_log_of_one_line(tmp_path):
    path = written_log(tmp_path / "policy.txt", LIVING[:1], json.dumps, "list")
    assert read_pba_log(path, epochs=20).segments == (Segment(12, drawn(0)), Segment(8, drawn(1)))


def record(**changed):
    fields = {"target": "1", "source": "0", "there": 4, "here": 5, "before": [0] * 60, "after": [1] * 60}
    return json.dumps(list({**fields, **changed}.values()))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "policy.txt: the file is empty; a trial that never changed its policy has no log."),
        ([" "], "policy.txt: the file is empty"),
        (
            [record(), record(target="2", source="1")[:-9]],
            "line 2: this is neither JSON nor a Python literal; is the file damaged?",
        ),
        (["__import__('os').getcwd()"], "line 1: this is neither JSON nor a Python literal"),
        (["[" * 10_000], "line 1: this is neither JSON"),
        (["-" * 10_000 + "1"], "line 1: this is neither JSON"),
        (["{[]: 1}"], "line 1: this is neither JSON"),
        (["'\\d'"], "line 1: this is neither JSON"),
        (
            ["[1, 2, 3]"],
            "line 1: expected [target, source, target's epoch, source's epoch, policy before, policy",
        ),
        (["[1, 2, 3]"], "found 3 fields."),
        (['"abcdef"'], "found str."),
        (["12"], "found int."),
        ([record(target=None)], "line 1, target: expected the number of a trial, found NoneType."),
        ([record(source=[1])], "line 1, source: expected the number of a trial, found list."),
        ([record(there="x")], "line 1, target's epoch: expected a whole number of at least 0, found x."),
        ([record(here=-1)], "line 1, source's epoch: expected a whole number of at least 0, found -1."),
        ([record(here=2.5)], "line 1, source's epoch: expected a whole number of at least 0, found 2.5."),
        ([record(before=[0] * 59)], "line 1, policy before: a policy is 60 whole numbers, found 59."),
        ([record(after={"lr": 1})], 'line 1, policy after: these settings hold no "hp_policy".'),
        (
            [record(after={"hp_policy": "cifar10"})],
            "line 1, policy after: a policy is 60 whole numbers, found",
        ),
        (
            ["", record(after=[0, 10] + [0] * 58)],
            "line 2, policy after: number 1 of the policy, the magnitude of the first Rotate, must be",
        ),
        (
            [record(here=9), record(target="2", source="1", here=7)],
            "line 2: the source's epoch is 7, before the 9 of the line before it.",
        ),
        (
            [record(here=21)],
            "line 1: the policy changes at epoch 21, after the given end of the search, epochs=20.",
        ),
        ([record(before=[99] * 60), record(target="3", source="2")], "line 1, policy before: number 0 of"),
    ],
)
def test_a_damaged_log_is_told_with_its_line(tmp_path, lines, sentence):
    path = tmp_path / "policy.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(RecipeError) as caught:
        read_pba_log(path, epochs=20)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_log_that_is_not_there_and_epochs_that_are_none(tmp_path):
    with pytest.raises(RecipeError, match=r"There is no file .*none\.txt"):
        read_pba_log(tmp_path / "none.txt", epochs=20)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read as text"):
        read_pba_log(tmp_path / "binary.txt", epochs=20)
    with pytest.raises(RecipeError, match="epochs: expected a whole number"):
        read_pba_log(written_log(tmp_path / "policy.txt", LIVING, repr, "list"), epochs=0)


@pytest.mark.parametrize("durations", [(4, 6), (0, 5, 0, 0, 3, 0), PUBLISHED["rsvhn_16_wrn"][3]])
def test_a_schedule_comes_back_from_a_log(tmp_path, durations):
    schedule = schedule_of(durations)
    write_pba_log(schedule, tmp_path / "policy.txt")
    again = read_pba_log(tmp_path / "policy.txt", epochs=schedule.epochs)
    assert again == schedule
    assert again.provenance["valid_lines"] == len(durations) - 1
    lines = (tmp_path / "policy.txt").read_text().splitlines()
    assert all(len(json.loads(line)) == 6 for line in lines)


def test_a_single_policy_has_no_log(tmp_path):
    with pytest.raises(RecipeError, match="this schedule has a single policy: keep it with write_schedule"):
        write_pba_log(schedule_of((5,)), tmp_path / "policy.txt")
    assert list(tmp_path.iterdir()) == []


@needs_logs
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_logs(tmp_path, name):
    epochs, valid, lines, durations = PUBLISHED[name]
    schedule = read_pba_log(LOGS / f"{name}.txt", epochs=epochs)
    assert schedule.durations == durations
    assert (schedule.provenance["valid_lines"], schedule.provenance["lines"]) == (valid, lines)
    assert schedule.segments[0].policy == Policy.none(), "every search starts without augmentation"
    assert not any(policy.is_none for _, policy in schedule.segments[1:])
    assert schedule.expanded(2 * epochs) == schedule.expanded(2 * epochs, "legacy")
    write_pba_log(schedule, tmp_path / "again.txt")
    assert read_pba_log(tmp_path / "again.txt", epochs=epochs) == schedule
    write_schedule(schedule, tmp_path / "again.yaml")
    again = read_schedule(tmp_path / "again.yaml")
    assert again == schedule and again.provenance == schedule.provenance


# ---------------------------------------------------------------- our own file


def test_a_schedule_comes_back_from_its_file(tmp_path):
    path = tmp_path / "schedule.yaml"
    for seed in range(5):
        schedule = schedule_of((3, 0, 2), seed=10 * seed)
        write_schedule(schedule, path)
        again = read_schedule(path)
        assert again == schedule
        vectors = [[policy.vector() for _, policy in one.segments] for one in (again, schedule)]
        assert vectors[0] == vectors[1], "all 60 numbers, also magnitudes without probability"


@pytest.mark.parametrize(
    ("policy", "lines"),
    [
        (Policy.none(), []),
        (sparse((0, 3, 7)), ["Rotate 0.3 7"]),
        (sparse((0, 0, 7)), ["Rotate 0.0 7"]),
        (sparse((14, 10, 9), (15, 1, 2)), ["Rotate 0.0 0", "Contrast 1.0 9", "Rotate 0.1 2"]),
        (sparse((2, 7, 0), (17, 6, 1)), ["TranslateY 0.7 0", "TranslateY 0.6 1"]),
    ],
)
def test_what_a_file_leaves_out_comes_back(tmp_path, policy, lines):
    path = tmp_path / "schedule.yaml"
    schedule = PolicySchedule(2, (Segment(2, policy),))
    write_schedule(schedule, path)
    entry = re.compile(r"      - \{op: (\w+), probability: (\S+), magnitude: (\d)\}")
    assert [" ".join(found.groups()) for found in entry.finditer(path.read_text())] == lines
    assert read_schedule(path) == schedule


def test_the_order_of_different_operations_is_the_writers_own(tmp_path):
    path = tmp_path / "schedule.yaml"
    path.write_text(
        "format: 1\nspace: pba15x2\nepochs: 4\nsegments:\n"
        "- {epochs: 1, ops: []}\n"
        "- epochs: 3\n"
        "  ops:\n"
        "  - {op: Cutout, probability: 1, magnitude: 5}\n"
        "  - {op: Rotate, probability: 0.7, magnitude: 1}\n"
        "  - {op: Rotate, probability: 0.6, magnitude: 2}\n"
    )
    expected = sparse((13, 10, 5), (0, 7, 1), (15, 6, 2))
    assert read_schedule(path) == PolicySchedule(4, (Segment(1, Policy.none()), Segment(3, expected)))


def test_provenance_comes_back(tmp_path):
    path = tmp_path / "schedule.yaml"
    nasty = [
        "2020-01-01",
        "null",
        "1e3",
        "a: b",
        "# x",
        "two\n\nlines\n",
        "\ta\n\tb",
        "ü→",
        "",
        " x ",
        "yes",
        "0x1",
    ]
    schedule = PolicySchedule(1, (Segment(1, Policy.none()),), {"seed": 1, "texts": nasty, "on": True})
    write_schedule(schedule, path, provenance={"seed": 2, "search": {"lr": 1e-5, "out": None}})
    expected = {"seed": 2, "texts": nasty, "on": True, "search": {"lr": 1e-5, "out": None}}
    assert read_schedule(path).provenance == expected
    write_schedule(14.0, path, provenance={"seed": 3})
    assert read_yaml(path).data["provenance"] == {"seed": 3}
    with pytest.raises(RecipeError, match="a control character"):
        write_schedule(14.0, path, provenance={"text": "\x85"})
    with pytest.raises(RecipeError, match=r"provenance\.when: expected text, a number"):
        write_schedule(14.0, path, provenance={"when": object()})


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        (14.0, "magnitude: 14"),
        (0.0, "magnitude: 0"),
        (Ramp(start=14, end=4), "magnitude: {start: 14, end: 4}"),
        (
            Ramp(start=14, end=0.5, shape="step", steps=3),
            "magnitude: {start: 14, end: 0.5, shape: step, steps: 3}",
        ),
        (Halving(start=30, halve_every=1e-7), "magnitude: {start: 30, halve_every: 1e-07}"),
        (
            Points(by="sparsity", points={0.0: 14, 0.4: 8.25}),
            "magnitude: {by: sparsity, points: {0: 14, 0.4: 8.25}}",
        ),
    ],
)
def test_a_magnitude_schedule_comes_back(tmp_path, schedule, line):
    path = tmp_path / "schedule.yaml"
    write_schedule(schedule, path)
    assert path.read_text() == f"format: 1\nspace: randaugment30\n{line}\n"
    assert read_schedule(path) == schedule
    assert type(read_schedule(path)) is type(schedule)


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (31.0, "magnitude: expected a magnitude in 0..30, found 31."),
        (Ramp(start=4, end=-1), "magnitude: expected a magnitude in 0..30, found -1."),
        (3.5, "magnitude: expected a whole number for a constant magnitude, found 3.5."),
        (True, "magnitude: expected a number, found True."),
        ("none", "magnitude: expected a number, or a schedule such as {start: 14, end: 4}, found"),
        (None, "magnitude: expected a number, found None."),
    ],
)
def test_what_is_no_magnitude_schedule_is_not_written(tmp_path, schedule, sentence):
    with pytest.raises(RecipeError) as caught:
        write_schedule(schedule, tmp_path / "schedule.yaml")
    assert sentence in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    for write in (write_schedule, write_pba_log):
        with pytest.raises(RecipeError, match="cannot be written: No such file or directory"):
            write(schedule_of((1, 2)), tmp_path / "missing" / "schedule")
        assert list(tmp_path.iterdir()) == []


def test_a_schedule_too_long_to_be_read_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "schedule.yaml"
    monkeypatch.setattr("compress_aug.reading._MOST_VALUES", 500)
    with pytest.raises(RecipeError, match=r"not written.*too many"):
        write_schedule(schedule_of([1] * 9), path)
    assert not path.exists()


FILE = """\
format: 1
space: pba15x2
epochs: 5
segments:
  - epochs: 2
    ops: []
  - epochs: 3
    ops:
      - {op: Rotate, probability: 0.3, magnitude: 7}
      - {op: Color, probability: 1, magnitude: 0}
provenance: {seed: 0}
"""
MAGNITUDES = "format: 1\nspace: randaugment30\nmagnitude: {start: 14, end: 4}\n"


def test_the_files_that_the_mistakes_are_made_in_are_right(tmp_path):
    path = tmp_path / "schedule.yaml"
    path.write_text(FILE)
    assert read_schedule(path).durations == (2, 3)
    path.write_text(MAGNITUDES)
    assert read_schedule(str(path)) == Ramp(start=14, end=4)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (FILE, "", ": expected keys and values, beginning with format: 1."),
        (FILE, "- 1\n", ": expected keys and values, beginning with format: 1."),
        ("format: 1\n", "", 'line 1: the key "format" is missing.'),
        ("format: 1", "format: 2", "line 1, format: expected 1, found 2."),
        ("format: 1", "format: true", "line 1, format: expected 1, found True."),
        ("space: pba15x2\n", "", 'line 1: the key "space" is missing.'),
        ("pba15x2", "pba15", 'line 2, space: there is no space "pba15": did you mean "pba15x2"?'),
        ("pba15x2", "[1]", 'line 2, space: there is no space "[1]": known are: pba15x2, randaugment30.'),
        ("epochs: 5", "epoch: 5", 'line 3, epoch: unknown key "epoch": did you mean "epochs"?'),
        ("epochs: 5", "epochs: 6", "line 4, segments: their epochs add up to 5, but epochs is 6."),
        ("epochs: 5", "epochs: 0", "line 3, epochs: expected a number of at least 1, found 0."),
        ("epochs: 5", "epochs: 1000000000000", "line 3, epochs: expected a number of at most 1000000, found"),
        ("epochs: 5", "epochs: five", 'line 3, epochs: expected a whole number, found "five".'),
        ("epochs: 2", "epochs: -2", "line 5, segments.0.epochs: expected a number of at least 0, found -2."),
        ("ops: []", "ops: 3", "line 6, segments.0.ops: expected a list, found 3."),
        ("    ops: []\n", "", 'line 5, segments.0.ops: the key "ops" is missing.'),
        (FILE[FILE.index("segments") :], "segments: []\n", "line 4, segments: "),
        (
            "op: Rotate",
            "op: Rotat",
            'line 9, segments.1.ops.0.op: there is no operation "Rotat": did you mean "Rotate"?',
        ),
        ("op: Rotate", "op: 3", "line 9, segments.1.ops.0.op: expected a word, found 3."),
        (
            "0.3",
            "0.35",
            "line 9, segments.1.ops.0.probability: expected a multiple of 0.1 in 0..1, found 0.35.",
        ),
        ("0.3", "3", "line 9, segments.1.ops.0.probability: expected a multiple of 0.1 in 0..1, found 3."),
        (
            "0.3",
            "-0.1",
            "line 9, segments.1.ops.0.probability: expected a multiple of 0.1 in 0..1, found -0.1.",
        ),
        ("0.3", "true", "line 9, segments.1.ops.0.probability: expected a number, found True."),
        ("0.3", ".nan", "line 9, segments.1.ops.0.probability: expected a finite number, found nan."),
        (
            "magnitude: 7",
            "magnitude: 10",
            "line 9, segments.1.ops.0.magnitude: expected a number of at most 9",
        ),
        ("magnitude: 7", "magnitude: 7.0", "line 9, segments.1.ops.0.magnitude: expected a whole number"),
        (", magnitude: 7", "", 'line 9, segments.1.ops.0.magnitude: the key "magnitude" is missing.'),
        (
            "op: Color, probability: 1, magnitude: 0",
            "op: Color, probability: 1, magnitude: 0}\n"
            "      - {op: Color, probability: 1, magnitude: 0}\n"
            "      - {op: Color, probability: 1, magnitude: 0",
            "line 12, segments.1.ops.3: Color stands here a third time; an operation has 2 copies.",
        ),
        (
            "{seed: 0}",
            "{seed: .inf}",
            "line 11, provenance: provenance.seed: expected a finite number, found inf.",
        ),
        ("{seed: 0}", "today", 'line 11, provenance: expected keys and values, found "today".'),
        ("{seed: 0}", "!!python/name:os.system x", "the tag !!python/name:os.system is not allowed"),
        ("ops: []", "ops: [", "this is not YAML"),
    ],
)
def test_a_mistake_in_a_policy_file_is_told_with_line_and_key(tmp_path, old, new, sentence):
    told = problems_of(tmp_path / "schedule.yaml", FILE, old, new)
    assert any(sentence in problem for problem in told)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("end: 4", "end: 31", "line 3, magnitude: expected a magnitude in 0..30, found 31."),
        ("end: 4", "ende: 4", 'unknown key "ende": did you mean "end"?'),
        ("{start: 14, end: 4}", "true", "line 3, magnitude: expected a number, found True."),
        ("{start: 14, end: 4}", "2.5", "line 3, magnitude: expected a whole number for a constant magnitude"),
        ("{start: 14, end: 4}", "none", "line 3, magnitude: expected a number, or a schedule such as"),
        ("magnitude:", "magnitud:", 'line 3, magnitud: unknown key "magnitud": did you mean "magnitude"?'),
        ("randaugment30", "randaugment", 'there is no space "randaugment": did you mean "randaugment30"?'),
    ],
)
def test_a_mistake_in_a_magnitude_file_is_told_with_line_and_key(tmp_path, old, new, sentence):
    told = problems_of(tmp_path / "schedule.yaml", MAGNITUDES, old, new)
    assert any(sentence in problem for problem in told)


def problems_of(path, text, old, new):
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        read_schedule(path)
    assert all(problem.startswith(str(path)) and "\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path):
    path = tmp_path / "schedule.yaml"
    path.write_text(FILE.replace("0.3", "0.35").replace("magnitude: 0", "magnitude: 12"))
    with pytest.raises(RecipeError) as caught:
        read_schedule(path)
    assert [problem.split(",")[1] for problem in caught.value.problems] == [" line 9", " line 10"]


# ---------------------------------------------------------------- what is drawn


def test_curves_by_hand():
    weak = sparse((0, 2, 4), (15, 4, 8), (14, 10, 0))
    strong = sparse((0, 10, 9), (15, 10, 9), (5, 10, 0), (20, 0, 3))
    found = curves(PolicySchedule(4, (Segment(1, Policy.none()), Segment(2, weak), Segment(1, strong))))
    assert found.operations == OPERATIONS
    assert len(found.probability) == len(found.magnitude) == 4
    assert {len(row) for row in (*found.probability, *found.magnitude)} == {15}
    rotate, invert, contrast = 0, 5, 14
    assert [row[rotate] for row in found.probability] == pytest.approx([0, 0.3, 0.3, 1])
    assert [row[contrast] for row in found.probability] == pytest.approx([0, 0.5, 0.5, 0])
    assert [row[invert] for row in found.probability] == pytest.approx([0, 0, 0, 0.5])
    assert [row[rotate] for row in found.magnitude] == pytest.approx([0, 6, 6, 9])
    assert [row[invert] for row in found.magnitude] == pytest.approx([0, 0, 0, 1.5])
    # The sums over the operations are 0, 0.8, 0.8 and 1.5.
    normalised = found.normalised_probability()
    assert [sum(row) for row in normalised] == pytest.approx([0, 0.8 / 1.5, 0.8 / 1.5, 1])
    assert normalised[1][rotate] == pytest.approx(0.3 / 1.5)


def test_curves_of_a_replay():
    schedule = schedule_of(PUBLISHED["rcifar10_16_wrn"][3])
    for replay in ("proportional", "legacy"):
        found = curves(schedule, 30, replay)
        for epoch in range(30):
            policy = schedule.at(epoch, 30, replay)
            shares = [
                (a + b) / 20
                for a, b in zip(policy.probabilities[:15], policy.probabilities[15:], strict=True)
            ]
            assert found.probability[epoch] == pytest.approx(shares)
    with pytest.raises(RecipeError, match="flatten"):
        curves(schedule, 30, "flatten")


def test_curves_without_any_augmentation_stay_zero():
    found = curves(PolicySchedule(2, (Segment(2, Policy.none()),)))
    assert found.normalised_probability() == ((0.0,) * 15,) * 2


def test_the_public_names_are_there():
    # Constants, classes, functions: each sorted, which ruff checks.
    assert len(policies.__all__) == len(set(policies.__all__))
    assert all(hasattr(policies, name) for name in policies.__all__)
