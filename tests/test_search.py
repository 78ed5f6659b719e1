"""Searches without recipes: exploit and explore, the population in this process, the sweep over magnitudes."""

import json
import math
from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional
from toys import tiny_data, tiny_net

from compress_aug import search
from compress_aug.augment import LearnedAugment
from compress_aug.data import Data
from compress_aug.errors import DataError, Interrupted, RecipeError, RunFolderError, TrainingError
from compress_aug.pictures.sweep_drawing import draw_sweep
from compress_aug.policies import (
    MAX_MAGNITUDE,
    MAX_PROBABILITY,
    Policy,
    PolicySchedule,
    Segment,
    read_pba_log,
)
from compress_aug.search import (
    GRIDS,
    Outcome,
    PolicySlot,
    exploit,
    explore,
    is_unimodal,
    judged,
    kept_schedule,
    maximal_magnitude,
    optimal_magnitude,
    ray_driver,
    reduced,
    search_population,
    sweep,
    table_rows,
)
from compress_aug.training import CrossEntropy, Settings, Training

# ---------------------------------------------------------------- exploit and explore


@pytest.mark.parametrize(
    ("members", "gone"), [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (8, 2), (16, 4), (17, 5)]
)
def test_the_worst_quarter_takes_over_from_the_best(members: int, gone: int) -> None:
    scores = [((place * 7) % members) / members for place in range(members)]
    taken = exploit(scores, Random(0))
    order = sorted(range(members), key=lambda place: scores[place])
    assert set(taken) == set(order[:gone])
    assert set(taken.values()) <= set(order[members - gone :])


def test_every_one_of_the_best_is_copied_as_often() -> None:
    rng = Random(0)
    drawn = Counter(exploit([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], rng)[0] for _ in range(4000))
    assert set(drawn) == {6, 7}
    assert stats.chisquare([drawn[6], drawn[7]]).pvalue > 1e-3


def test_one_that_broke_down_gives_up_first() -> None:
    assert set(exploit([0.2, float("-inf"), 0.9, 0.1], Random(0))) == {1}


def test_as_ray_counts_quarters() -> None:
    """The rule of Ray's scheduler, written down again: rounded up, never more than half, nobody alone."""
    for members in range(1, 40):
        for quantile in (0.1, 0.25, 0.34, 0.5):
            count = -(-members * quantile // 1)
            expected = members // 2 if count > members / 2 else int(count)
            assert len(exploit(list(range(members)), Random(0), quantile)) == expected


def test_explore_follows_its_distribution() -> None:
    """From the middle of a range: drawn anew with 0.2, else 0 to 3 up or down; against the formula by chi-square."""
    rng, start = Random(1), Policy((5,) * 30, (5,) * 30)
    found = [explore(start, rng) for _ in range(2000)]
    for numbers, most in (
        ([number for policy in found for number in policy.probabilities], MAX_PROBABILITY),
        ([number for policy in found for number in policy.magnitudes], MAX_MAGNITUDE),
    ):
        expected = [0.2 / (most + 1)] * (most + 1)
        for step in range(4):
            for sign in (-1, 1):
                expected[min(max(5 + sign * step, 0), most)] += 0.8 / 8
        drawn = Counter(numbers)
        assert set(drawn) <= set(range(most + 1))
        counts = [drawn[value] for value in range(most + 1)]
        assert stats.chisquare(counts, [len(numbers) * share for share in expected]).pvalue > 1e-3


def test_explore_stays_in_range_and_depends_on_the_generator_alone() -> None:
    for start in (Policy.none(), Policy((10,) * 30, (9,) * 30)):
        rng = Random(3)
        for _ in range(200):
            explore(start, rng)  # Policy refuses numbers out of range
        assert explore(start, Random(7)) == explore(start, Random(7))
    assert explore(Policy.none(), Random(0), resample=0.0).magnitudes != (0,) * 30


@pytest.mark.parametrize("quantile", [0.0, 0.6, -1.0])
def test_a_quantile_out_of_range_is_refused(quantile: float) -> None:
    with pytest.raises(RecipeError, match=r"quantile must be in \(0, 0.5\]"):
        exploit([0.1, 0.2], Random(0), quantile)


def test_a_probability_out_of_range_is_refused() -> None:
    with pytest.raises(RecipeError, match="resample must be a probability"):
        explore(Policy.none(), Random(0), 1.5)


# ---------------------------------------------------------------- data


def test_images_to_judge_by_are_none_that_are_trained_on() -> None:
    data = tiny_data(train=60, validation=10)
    few = reduced(data, 20, 8)
    assert len(few.train) == 20 and torch.equal(few.validation.index, data.validation.index[:8])
    more = reduced(data, 20, 30)
    assert len(more.validation) == 30
    assert not set(more.validation.index.tolist()) & set(more.train.index.tolist())
    assert len(reduced(data, 55, 30).validation) == 10  # the split is larger than the 5 that are left
    assert torch.equal(more.test.index, data.test.index)
    assert len(reduced(data, None, None).train) == 60


def test_nothing_to_judge_by_is_refused() -> None:
    with pytest.raises(DataError, match="a search judges by images that it does not train on"):
        reduced(tiny_data(validation=0), None, 5)


def test_judging_is_accuracy_and_mean_cross_entropy() -> None:
    data, model = tiny_data(validation=30), tiny_net()
    (batch,) = data.validation.batches(30)
    logits = model.eval()(data.normalise(batch.images)).detach()
    accuracy, loss = judged(model.train(), data.validation.batches(7), data.normalise)
    assert accuracy == pytest.approx(float((logits.argmax(1) == batch.targets).float().mean()))
    assert loss == pytest.approx(float(functional.cross_entropy(logits, batch.targets)), rel=1e-5)
    assert model.training
    dark = judged(
        model, data.validation.batches(7), data.normalise, lambda b: replace(b, images=b.images * 0)
    )
    assert dark != (accuracy, loss)


# ---------------------------------------------------------------- the population


def slot_for(data: Data, epochs: int) -> PolicySlot:
    def make(policy: Policy) -> LearnedAugment:
        schedule = PolicySchedule(epochs, (Segment(epochs, policy),))
        return LearnedAugment(schedule, epochs, crop_padding=0, flip=False)

    return PolicySlot(make)


def training_for(
    slot: PolicySlot, epochs: int, data: Data, model: nn.Module | None = None, **keys
) -> Training:
    settings = Settings(epochs=epochs, batch_size=16, lr=0.05, precision="float32")
    return Training(model or tiny_net(), data, settings=settings, augment=slot, **keys)


def found_by(folder=None, *, epochs=6, told=lambda progress: None, data=None, **keys):
    data = data or tiny_data(train=48, validation=32)
    slot = slot_for(data, epochs)
    keys = {"population": 4, "every": 2, "seed": 3, **keys}
    return search_population(training_for(slot, epochs, data), slot, folder=folder, told=told, **keys)


def test_one_seed_gives_one_schedule_and_another_another(tmp_path) -> None:
    one, again, other = found_by(), found_by(tmp_path / "there"), found_by(seed=4)
    assert (one.schedule, one.curves, one.best) == (again.schedule, again.curves, again.best)
    assert one.curves != other.curves
    assert sum(one.schedule.durations) == 6 and one.schedule.epochs == 6
    assert one.taken == 2  # after epochs 2 and 4, one of four each time


def test_members_begin_alike_and_see_their_own_order() -> None:
    slot_policies, starts = [], []

    class Watched(PolicySlot):
        def __call__(self, batch, magnitude, epoch, seed):
            slot_policies.append((epoch, seed, self.policy, tuple(batch.index.tolist())))
            return super().__call__(batch, magnitude, epoch, seed)

    data = tiny_data(train=32, validation=16)
    slot = Watched(lambda policy: lambda batch, magnitude, epoch, seed: batch)
    training = training_for(slot, 2, data)
    begin = training.load_state_dict
    training.load_state_dict = lambda state: (
        starts.append(state["model"]["0.weight"].clone()),
        begin(state),
    )[1]
    search_population(training, slot, population=2, every=1)
    first = [row for row in slot_policies if row[0] == 0]
    assert all(policy.is_none for _, _, policy, _ in first)
    seeds = {seed for _, seed, _, _ in first}
    assert len(seeds) == 2 and len({order for _, _, _, order in first}) > 2
    assert torch.equal(starts[0], starts[1])
    assert any(not policy.is_none for epoch, _, policy, _ in slot_policies if epoch == 1)


def test_the_logs_tell_the_schedule_that_was_found(tmp_path) -> None:
    found = found_by(tmp_path, population=6, epochs=8)
    logs = {path.name for path in tmp_path.glob("pbt_*.txt")}
    assert "pbt_global.txt" in logs
    path = tmp_path / f"pbt_policy_{found.best}.txt"
    if path.exists():
        assert read_pba_log(path, epochs=8) == found.schedule
    else:
        assert found.schedule.segments == (Segment(8, Policy.none()),)
    lines = (tmp_path / "pbt_global.txt").read_text().splitlines()
    assert len(lines) == found.taken
    for line in lines:
        target, source, target_epoch, source_epoch, before, after = json.loads(line)
        assert target != source and target_epoch == source_epoch and len(before) == len(after) == 60
    assert not list(tmp_path.glob("*.pt"))


def test_scripted_scores_give_the_known_line_of_ancestors(monkeypatch) -> None:
    """Member 0 is copied by 3 at epoch 1, 3 by 0 at epoch 2: the winner has two changes behind it."""
    table = {1: [0.9, 0.5, 0.4, 0.1], 2: [0.1, 0.5, 0.4, 0.9], 3: [0.9, 0.2, 0.3, 0.4]}
    turns = Counter()

    def validate(training):
        epoch = training.epochs_done + 1
        place = turns[epoch]
        turns[epoch] += 1
        return table[epoch][place]

    monkeypatch.setattr(Training, "validate", validate)
    found = found_by(epochs=3, every=1)
    assert found.best == 0 and found.score == 0.9
    assert found.schedule.durations == (1, 1, 1)
    assert found.schedule.segments[0].policy.is_none
    assert found.curves == tuple(zip(table[1], table[2], table[3], strict=True))
    assert found.schedule.provenance["valid_lines"] == 2


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 5, 8, 9, 11, 17])
def test_a_search_that_was_killed_goes_on_to_the_same_end(tmp_path, after: int) -> None:
    """`after` calls of `told` it dies as if by kill -9, in the middle of a member and between all of them."""
    whole = found_by(tmp_path / "whole")
    calls = Counter()

    def told(progress) -> None:
        calls["told"] += 1
        if calls["told"] == after:
            raise Stop

    with pytest.raises(Stop):
        found_by(tmp_path / "part", told=told)
    rest = Counter()
    found = found_by(tmp_path / "part", told=lambda progress: rest.update(["told"]))
    assert (found.schedule, found.curves, found.best, found.taken) == (
        *(whole.schedule, whole.curves, whole.best),
        whole.taken,
    )
    assert rest["told"] <= 26 - after + 3  # at most the epochs of one member are done again
    for path in (tmp_path / "whole").glob("pbt_*.txt"):
        assert path.read_text() == (tmp_path / "part" / path.name).read_text()


def test_the_teachers_loss_and_momentum_are_those_of_each_member() -> None:
    """Up to the first exchange each member trains as alone."""
    data, epochs = tiny_data(train=48, validation=32), 3
    slot = slot_for(data, epochs)
    found = search_population(training_for(slot, epochs, data), slot, population=2, every=2, seed=3)
    for number in range(2):
        alone = training_for(slot_for(data, epochs), epochs, data)
        alone.seed = search.population.mixed_seed(3, "member", number)
        while alone.epochs_done < 2:
            alone.epoch()
        assert found.curves[number][:2] == tuple(row["validation_accuracy"] for row in alone.history)
    assert found.taken == 1


def test_an_objective_with_a_state_of_its_own_follows_its_member() -> None:
    class Counting(CrossEntropy):
        def __init__(self) -> None:
            super().__init__()
            self.steps = torch.zeros(())

        def loss(self, batch, logits):
            self.steps += 1
            return super().loss(batch, logits)

        def state_dict(self):
            return {"steps": self.steps.clone()}

        def load_state_dict(self, state):
            self.steps = state["steps"].clone()

    data, objective = tiny_data(train=32, validation=16), Counting()
    slot = slot_for(data, 4)
    search_population(training_for(slot, 4, data, objective=objective), slot, population=3, every=2)
    assert objective.steps == 4 * 2


def test_what_an_objective_begins_with_is_done_once_and_resumed(tmp_path) -> None:
    """Attention heads, say, are trained on the teacher before the first step: once, and not by each member."""

    class Prepared(CrossEntropy):
        begun = 0
        ready = torch.zeros(())

        def begin(self, training, each_step):
            type(self).begun += not self.ready
            self.ready = torch.ones(())
            return True

        def state_dict(self):
            return {"ready": self.ready}

        def load_state_dict(self, state):
            self.ready = state["ready"]

    def find(told=lambda progress: None):
        data = tiny_data(train=32, validation=16)
        slot = slot_for(data, 4)
        training = training_for(slot, 4, data, objective=Prepared())
        return search_population(training, slot, population=3, every=2, folder=tmp_path, told=told)

    def stop(progress):
        raise Stop

    with pytest.raises(Stop):
        find(stop)
    find()
    assert Prepared.begun == 1


def test_a_member_whose_loss_breaks_down_is_replaced(monkeypatch) -> None:
    turns = Counter()
    one_epoch = Training.epoch

    def epoch(training, each_step=lambda training: False):
        turns["epochs"] += 1
        if turns["epochs"] == 3:
            raise TrainingError("The loss became nan")
        return one_epoch(training, each_step)

    monkeypatch.setattr(Training, "epoch", epoch)
    seen = []
    found = found_by(every=2, epochs=4, told=lambda progress: seen.append(progress))
    assert found.curves[1][:2] == (None, None) and None not in found.curves[1][2:]
    assert any(1 in progress.taken for progress in seen)


def test_when_all_break_down_it_is_said(monkeypatch) -> None:
    def epoch(training, each_step=lambda training: False):
        raise TrainingError("The loss became nan")

    monkeypatch.setattr(Training, "epoch", epoch)
    with pytest.raises(TrainingError, match="Every member of the search broke down by epoch 2"):
        found_by()


def test_ctrl_c_is_told_with_epoch_and_member(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(Training, "epoch", lambda training, each_step: False)
    with pytest.raises(Interrupted, match="epoch 1 of member 0"):
        found_by(tmp_path)


def test_the_folder_of_another_search_is_refused(tmp_path) -> None:
    found_by(tmp_path)
    with pytest.raises(RunFolderError, match=r"holds another search \(different: every, seed\)"):
        found_by(tmp_path, seed=4, every=3)
    (tmp_path / "population.json").write_text("{")
    with pytest.raises(RunFolderError, match="is damaged"):
        found_by(tmp_path)


def _without_members(folder) -> None:
    path = folder / "population.json"
    journal = json.loads(path.read_text())
    del journal["members"]
    path.write_text(json.dumps(journal))


def _one_member_less(folder) -> None:
    path = folder / "population.json"
    journal = json.loads(path.read_text())
    del journal["members"][0]
    path.write_text(json.dumps(journal))


def _cut_short(folder) -> None:
    for path in folder.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:200])


def _of_another_net(folder) -> None:
    for path in folder.glob("*.pt"):
        torch.save({"model": {}}, path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "population.json").write_text("[]"),
        _without_members,
        _one_member_less,
        _cut_short,
        _of_another_net,
    ],
)
def test_a_damaged_folder_is_one_sentence_with_the_way_out(tmp_path, damage) -> None:
    def stop(progress) -> None:
        if progress.done == 5:
            raise Stop

    with pytest.raises(Stop):
        found_by(tmp_path, told=stop)
    damage(tmp_path)
    with pytest.raises(RunFolderError, match=r"is damaged .*delete .*the search begins anew"):
        found_by(tmp_path)
    (tmp_path / "population.json").unlink()
    assert found_by(tmp_path).schedule.epochs == 6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"population": 1}, "at least 2"),
        ({"every": 0}, "every 1 or more"),
        ({"every": 6}, "every 6 of 6 epochs leaves no epoch behind one"),
    ],
)
def test_senseless_numbers_are_refused(keys, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        found_by(**keys)


def test_nothing_to_validate_on_is_refused() -> None:
    with pytest.raises(RecipeError, match="holds none out"):
        found_by(data=tiny_data(validation=0))


# ---------------------------------------------------------------- members on Ray, without Ray


class Trainable:
    """What Ray's class of this name gives to a member, and no more."""

    trial_resources = SimpleNamespace(required_resources={"CPU": 1})

    def __init__(self, trial_id: str, config, **keys) -> None:
        self.trial_id = trial_id
        self.setup(config, **keys)


def made():
    data = tiny_data(train=48, validation=32)
    slot = slot_for(data, 3)
    return training_for(slot, 3, data), slot


def test_a_process_of_ray_that_takes_up_another_member_begins_anew() -> None:
    member_class = ray_driver._member_class(SimpleNamespace(Trainable=Trainable))
    config = {"hp_policy": Policy.none().vector()}
    other = {"hp_policy": [2] * 60}
    threads = torch.get_num_threads()
    fresh = member_class("run_00001", other, make=made, seed=5)
    reused = member_class("run_00000", config, make=made, seed=5)
    torch.set_num_threads(threads)
    first = [reused.step()["val_acc"] for _ in range(3)]
    reused.trial_id = "run_00001"
    assert reused.reset_config(other)
    assert reused._training.epochs_done == 0
    expected = [fresh.step()["val_acc"] for _ in range(3)]
    assert [reused.step()["val_acc"] for _ in range(3)] == expected != first
    for name, value in fresh._training.model.state_dict().items():
        assert torch.equal(value, reused._training.model.state_dict()[name])


@pytest.mark.parametrize(
    "metrics",
    [[{"training_iteration": 4}, {"training_iteration": 2}], [{"training_iteration": 4}, None], [{}, {}]],
)
def test_members_that_ray_did_not_finish_are_an_interruption(tmp_path, metrics) -> None:
    class Results(list):
        num_errors = 0

    results = Results(SimpleNamespace(metrics=one) for one in metrics)
    with pytest.raises(Interrupted, match="of 2 members were done"):
        ray_driver._found(results, tmp_path, 2, 4, {})


def test_the_curves_of_members_are_those_of_their_epochs(tmp_path) -> None:
    """Epochs that a dead process did twice, and those that were passed over by taking over, shift nothing."""

    class Results(list):
        num_errors = 0

    rows = [
        ([1, 2, 2, 3, 4], [0.1, 0.2, 0.3, 0.4, 0.5]),
        ([1, 4], [0.1, 0.6]),
        ([1, 2, 5], [0.1, -1.0, 0.4]),
    ]
    results = Results()
    for number, (epochs, values) in enumerate(rows):
        place = tmp_path / f"population/Member_run_{number:05d}"
        place.mkdir(parents=True)
        lines = [
            json.dumps({"training_iteration": epoch, "val_acc": value}) + "\n"
            for epoch, value in zip(epochs, values, strict=True)
        ]
        # The first epoch is of the time before a stop: Ray writes its file anew when the search goes on.
        (place / "result.json").write_text(lines[0])
        ray_driver._put_by(tmp_path)
        ray_driver._put_by(tmp_path)
        (place / "result.json").write_text("".join(lines[1:]))
        results.append(
            SimpleNamespace(
                metrics={
                    "training_iteration": epochs[-1],
                    "trial_id": f"run_{number:05d}",
                    "val_acc": values[-1],
                },
                config={"hp_policy": Policy.none().vector()},
                path=str(place),
            )
        )
    found = ray_driver._found(results, tmp_path, 3, 4, {})
    assert found.curves == ((0.1, 0.3, 0.4, 0.5), (0.1, None, None, 0.6), (0.1, None, None, 0.4))
    assert (found.best, found.score) == (1, 0.6)


# ---------------------------------------------------------------- magnitudes


def outcome(sparsity, magnitude, seed, *, top=10, gain=0.01):
    accuracy = 0.45 if magnitude is None else 0.6 - gain * abs(magnitude - top) - 0.001 * seed
    return Outcome(sparsity, magnitude, seed, accuracy, 2 - accuracy, 0.0)


def test_a_sweep_refines_beside_the_best_and_summarises() -> None:
    asked = []

    def train(sparsity, magnitude, seed):
        asked.append((sparsity, magnitude, seed))
        return outcome(sparsity, magnitude, seed, top=14 if sparsity < 0.5 else 5)

    found = sweep(train, [0.0, 0.6], [None, 4, 12, 22], refine=2, seeds=(0, 1))
    assert [one.optimal for one in found] == [14, 4]
    assert [one.maximal for one in found] == [22, 12]
    assert all(one.is_unimodal for one in found)
    assert list(found[0].curve) == [None, 4, 10, 12, 14, 22]
    assert list(found[1].curve) == [None, 2, 4, 6, 12, 22]
    mean, spread, loss = found[0].curve[14]
    assert (mean, loss) == (pytest.approx(0.5995), pytest.approx(1.4005)) and spread == pytest.approx(
        0.000707, rel=1e-2
    )
    assert len(asked) == len(set(asked)) == 2 * 6 * 2
    assert kept_schedule(found).points == {0.0: 14.0, 0.6: 4.0}


def test_a_sweep_goes_on_from_its_journal(tmp_path) -> None:
    journal, asked = tmp_path / "o.json", []

    def train(sparsity, magnitude, seed):
        if len(asked) == 5:
            raise Stop
        asked.append((sparsity, magnitude, seed))
        return outcome(sparsity, magnitude, seed)

    with pytest.raises(Stop):
        sweep(train, [0.0, 0.5], [None, 4, 14], journal=journal)
    rest = []

    def further(sparsity, magnitude, seed):
        rest.append((sparsity, magnitude, seed))
        return outcome(sparsity, magnitude, seed)

    found = sweep(further, [0.0, 0.5], [None, 4, 14], journal=journal)
    assert not set(asked) & set(rest)
    assert found == sweep(outcome, [0.0, 0.5], [None, 4, 14])
    journal.write_text("[{}]")
    with pytest.raises(RunFolderError, match="is damaged"):
        sweep(train, [0.0], [None], journal=journal)


@pytest.mark.parametrize("text", ["3", "{}", '{"a": 1}', "[[]]"])
def test_a_damaged_journal_of_a_sweep_is_told(tmp_path, text: str) -> None:
    (tmp_path / "o.json").write_text(text)
    with pytest.raises(RunFolderError, match="delete it, and the search begins anew"):
        sweep(outcome, [0.0], [None, 4], journal=tmp_path / "o.json")


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
@pytest.mark.parametrize("by", ["accuracy", "cross_entropy"])
def test_what_broke_down_ranks_last_and_is_told(tmp_path, nothing: float | None, by: str) -> None:
    gone, asked = {(4, 0), (4, 1), (30, 1)}, []

    def train(sparsity, magnitude, seed):
        asked.append((magnitude, seed))
        one = outcome(sparsity, magnitude, seed)
        return replace(one, cross_entropy=nothing) if (magnitude, seed) in gone else one

    journal = tmp_path / "o.json"
    keys = {"refine": 0, "seeds": (0, 1), "by": by, "journal": journal}
    (found,) = sweep(train, [0.0], [None, 4, 12, 30], **keys)
    assert (found.optimal, found.maximal) == (12, 12)
    # One seed is enough: a mean over those that are left would make it look better than it is.
    assert found.curve[4] == found.curve[30] == (None, None, None)
    assert table_rows([found])[0]["broke down"] == "4, 30"
    text = journal.read_text()
    assert "NaN" not in text and "Infinity" not in text
    (again,) = sweep(train, [0.0], [None, 4, 12, 30], **keys)
    assert again == found and len(asked) == 8
    figure = draw_sweep([found], tmp_path / "sweep.png", title="a", note="b")
    assert figure.is_file()


def test_where_none_broke_down_any_other_is_no_worse() -> None:
    def train(sparsity, magnitude, seed):
        one = outcome(sparsity, magnitude, seed)
        return replace(one, accuracy=None) if magnitude in (None, 30) else one

    (found,) = sweep(train, [0.0], [None, 12, 30], refine=0)
    assert (found.optimal, found.maximal) == (12, 12)
    assert "broke down" not in table_rows(sweep(outcome, [0.0], [None, 12], refine=0))[0]
    assert table_rows([found])[0]["without"] == ""
    assert (optimal_magnitude({None: math.nan, 4: 0.1}), maximal_magnitude({None: math.nan, 4: 0.1})) == (
        4,
        4,
    )


def test_when_every_magnitude_breaks_down_it_is_said(tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"at sparsity 0\.5 broke down.*smaller lr"):
        sweep(lambda *key: replace(outcome(*key), accuracy=math.nan), [0.5], [None, 4])


def test_by_cross_entropy_the_smaller_is_better() -> None:
    def train(sparsity, magnitude, seed):
        # Accuracy rises with the magnitude, cross entropy as well.
        return Outcome(
            sparsity, magnitude, seed, 0.5 + (magnitude or 0) / 100, 1.0 + (magnitude or 0) / 100, 0.0
        )

    (by_accuracy,) = sweep(train, [0.0], [None, 4, 14], refine=0)
    (by_loss,) = sweep(train, [0.0], [None, 4, 14], refine=0, by="cross_entropy")
    assert (by_accuracy.optimal, by_loss.optimal) == (14, None)
    assert (by_accuracy.maximal, by_loss.maximal) == (14, None)


def test_optimal_and_maximal_by_hand() -> None:
    curve = {None: 0.70, 1: 0.71, 8: 0.72, 14: 0.72, 22: 0.69, 26: 0.70, 30: 0.5}
    assert optimal_magnitude(curve) == 8
    assert maximal_magnitude(curve) == 26
    assert maximal_magnitude(curve, tolerance=0.3) == 30
    assert not is_unimodal(curve)
    assert is_unimodal({None: 0.1, 4: 0.2, 8: 0.2, 12: 0.1})
    assert optimal_magnitude({None: 0.7, 0: 0.7}) is None
    assert maximal_magnitude({None: 0.7, 4: 0.1}) is None
    with pytest.raises(RecipeError, match="put none into the grid"):
        maximal_magnitude({4: 0.1})


def test_the_total_that_is_told_ends_at_what_was_done() -> None:
    told = []
    sweep(
        partial(outcome, top=30),
        [0.0, 0.5],
        [None, 4, 30],
        told=lambda one, done, total: told.append((done, total)),
    )
    assert told[-1][0] == told[-1][1] == len(told)
    assert all(done <= total for done, total in told)


def test_the_grids_are_those_of_the_paper() -> None:
    assert GRIDS["full"] == (None, *range(31))
    assert len(GRIDS["paper20"]) == 21 and len(set(GRIDS["paper20"])) == 21
    assert {1, 4, 8, 12, 14, 18, 22, 26, 30} == set(GRIDS["coarse"][1:])
