"""`magnitude: auto`: the rule by hand on nets with known losses, what probes leave untouched and cost; resume."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from rich.console import Console
from test_augment import random_batch
from torch import Tensor, nn
from torch.nn import functional
from toys import tiny_data, tiny_net

import compress_aug
from compress_aug import Augment, AutoMagnitude, Distill, Keep, Prune, Quantize, Recipe, Search, Train
from compress_aug.augment import (
    Difficulty,
    LearnedAugment,
    RandAugment,
    difficulty,
    knowledge_sums,
    next_magnitude,
    probe_interval,
)
from compress_aug.augment import auto as module
from compress_aug.batch import Batch
from compress_aug.errors import ModelError, RecipeError
from compress_aug.policies import Policy, PolicySchedule, Segment
from compress_aug.quantization import quantize
from compress_aug.recipe import load_recipe
from compress_aug.surgery import copy_model, freeze
from compress_aug.training import Settings, Training

QUIET = Console(quiet=True)


def normalise(images: Tensor) -> Tensor:
    return images.float() / 255


# ---------------------------------------------------------------- how hard images are


def logits(count: int, spread: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    right = torch.tensor([spread, 0.0, 0.0])
    return right + torch.randn(count, 3, generator=generator)


@pytest.mark.parametrize("spreads", [(3.0, 2.0, 4.0, 3.5), (4.0, 2.5, 3.0, 2.0)])
def test_difficulty_equals_the_formula_by_hand(spreads: tuple[float, ...]) -> None:
    targets = torch.zeros(50, dtype=torch.int64)
    four = [logits(50, spread, seed) for seed, spread in enumerate(spreads)]
    found = difficulty(knowledge_sums((four[0], four[1]), (four[2], four[3]), targets))
    knows = [math.log(3) - float(functional.cross_entropy(part, targets)) for part in four]
    assert found is not None
    # What the student knows beyond the reference is no loss when augmentation takes it.
    assert (knows[0] < knows[2]) == (spreads[0] < spreads[2])
    assert found.student == pytest.approx(knows[1] / min(knows[0], knows[2]), rel=1e-5)
    assert found.reference == pytest.approx(knows[3] / knows[2], rel=1e-5)
    assert found.gap == pytest.approx(found.reference - found.student, rel=1e-6)


def test_sums_may_be_added_up() -> None:
    targets = torch.zeros(50, dtype=torch.int64)
    four = [logits(50, 2.0, seed) for seed in range(4)]
    parts = [
        knowledge_sums((four[0][rows], four[1][rows]), (four[2][rows], four[3][rows]), targets[rows])
        for rows in (slice(0, 20), slice(20, 50))
    ]
    whole = knowledge_sums((four[0], four[1]), (four[2], four[3]), targets)
    assert torch.allclose(parts[0] + parts[1], whole)


@pytest.mark.parametrize("plain", [5.7, 4.3])
def test_the_standard_errors_are_those_of_many_samples(plain: float) -> None:
    targets = torch.zeros(100, dtype=torch.int64)
    found = []
    for seed in range(400):
        shared = logits(100, 0.0, 4 * seed)
        four = [logits(100, spread, 4 * seed + 1) + shared for spread in (5.0, 4.0)]
        four += [logits(100, spread, 4 * seed + 2) + shared for spread in (plain, 4.2)]
        one = difficulty(knowledge_sums((four[0], four[1]), (four[2], four[3]), targets))
        assert one is not None
        found.append(one)
    for value, error in (("gap", "gap_error"), ("reference", "reference_error")):
        values = torch.tensor([getattr(one, value) for one in found])
        errors = torch.tensor([getattr(one, error) for one in found])
        assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.15)


def test_who_knows_too_little_tells_nothing() -> None:
    targets = torch.zeros(8, dtype=torch.int64)
    sure, half, chance = (torch.tensor([[value, 0.0, 0.0]]).repeat(8, 1) for value in (5.0, 0.5, 0.0))
    assert difficulty(knowledge_sums((half, half), (sure, sure), targets)) is None
    assert difficulty(knowledge_sums((chance, chance), (chance, chance), targets)) is None
    assert difficulty(knowledge_sums((sure, sure), (half, half), targets)) is not None
    assert difficulty(knowledge_sums((sure[:1], sure[:1]), (sure[:1], sure[:1]), targets[:1])) is None


def test_images_without_a_number_do_not_count() -> None:
    targets = torch.zeros(10, dtype=torch.int64)
    four = [logits(10, 3.0, seed) for seed in range(4)]
    four[1][3] = float("nan")
    rest = [row for row in range(10) if row != 3]
    sums = knowledge_sums((four[0], four[1]), (four[2], four[3]), targets)
    others = [part[rest] for part in four]
    assert torch.equal(sums, knowledge_sums((others[0], others[1]), (others[2], others[3]), targets[rest]))
    assert sums[0] == 9


# ---------------------------------------------------------------- the rule


def seen(
    gap: float, error: float = 0.01, reference: float = 0.9, reference_error: float = 0.01
) -> Difficulty:
    return Difficulty(reference - gap, reference, gap, error, reference_error)


@pytest.mark.parametrize(
    ("magnitude", "found", "after"),
    [
        (8, seen(0.05), 9),
        (8, seen(0.15), 7),
        (8, seen(0.05, 0.06), 8),
        (8, seen(0.15, 0.06), 8),
        (8, None, 8),
        (20, seen(0.0), 20),
        (1, seen(0.2), None),
        (None, seen(0.2), None),
        (None, seen(0.0), 1),
        (None, None, None),
        # The reference must know the images, too.
        (8, seen(0.0, reference=0.4), 7),
        (8, seen(0.0, reference=0.5), 8),
        (8, seen(-0.5, reference=0.55), 9),
    ],
)
def test_the_rule_by_hand(magnitude: int | None, found: Difficulty | None, after: int | None) -> None:
    assert next_magnitude(magnitude, found, gap=0.1, known=0.5, most=20) == after


def test_probes_cost_what_they_may() -> None:
    for student, reference, images, batch, cost in (
        (40, 40, 32, 128, 0.1),
        (10, 60, 16, 64, 0.1),
        (1, 900, 32, 128, 0.05),
        (100, 1, 1, 4, 1.0),
    ):
        interval = probe_interval(student, reference, images=images, batch_size=batch, cost=cost)
        probe, step = 2 * images * (student + reference), 3 * batch * student
        assert probe / (interval * step) <= cost
        assert interval == 1 or probe / ((interval - 1) * step) > cost


# ---------------------------------------------------------------- on nets with known losses


class Bears(nn.Module):
    """Knows a plain image well, and one of these tests' augmentation by what it loses at each M."""

    def __init__(self, loss: float) -> None:
        super().__init__()
        self.loss = loss
        self.layer = nn.Conv2d(3, 2, 1)  # so that it has MACs

    def forward(self, inputs: Tensor) -> Tensor:
        strength = inputs[:, 0, 0, 0] * 255
        right = 5 * (1 - self.loss * strength)
        return torch.stack([right, torch.zeros_like(right)], 1) + 0 * self.layer(inputs).mean((2, 3))


class Written(RandAugment):
    """Writes M into the first pixel."""

    def __call__(
        self, batch: Batch, magnitude: int | None, epoch: int, seed: int, candidate: Any = 0
    ) -> Batch:
        images = batch.images.clone()
        images[:, :, 0, 0] = magnitude or 0
        return Batch(images, batch.targets, batch.index)


def of_class_0(count: int) -> Batch:
    batch = random_batch(count)
    return Batch(batch.images, torch.zeros(count, dtype=torch.int64), batch.index)


def follow(loss: float, reference: float, steps: int = 60, **settings: Any) -> list[int | None]:
    given = {"student": Bears(loss), "normalise": normalise, "gap": 0.1, **settings}
    auto = AutoMagnitude(Written(), Bears(reference), **given)
    return [
        (auto(of_class_0(16), None, 0, 0), auto.magnitude)[1] for _ in range(steps * (auto.interval or 4))
    ]


def test_a_net_like_its_reference_rises_to_the_most() -> None:
    path = follow(0.01, 0.01, known=0.0, most=17)
    assert path[:3] == [4, 4, 4] and path[3] == 5
    assert path[-1] == max(level or 0 for level in path) == 17


def test_a_weaker_net_settles_where_the_gap_is() -> None:
    settled = {}
    for loss in (0.02, 0.04, 0.1):
        path = follow(loss, 0.01, known=0.0)
        settled[loss] = path[-1] or 0
        assert len(set(path[-30:])) <= 2, "it stays within one of the border"

        def knows(right: float) -> float:
            return math.log(2) - math.log(1 + math.exp(-right))

        def gap(level: int, loss: float = loss) -> float:
            kept = [knows(5 * (1 - part * level)) / knows(5) for part in (0.01, loss)]
            return kept[0] - kept[1]

        border = next(level for level in range(31) if gap(level) > 0.1)
        assert abs(settled[loss] - border) <= 1
    assert settled[0.02] > settled[0.04] > settled[0.1] > 0


def test_what_the_reference_does_not_know_either_is_too_hard() -> None:
    free, bound = follow(0.02, 0.02, known=0.0)[-1], follow(0.02, 0.02, known=0.9)[-1]
    assert free == 30 and bound is not None and 10 < bound < 30


def test_below_1_it_is_none_and_the_way_back_is_open() -> None:
    auto = AutoMagnitude(Written(), Bears(0.0), student=Bears(0.5), normalise=normalise, cost=1.0)
    assert auto.magnitude == 4
    for _ in range(40):
        auto(of_class_0(16), None, 0, 0)
    assert auto.magnitude is None
    assert int(auto(of_class_0(16), 14, 0, 0).images[0, 0, 0, 0]) == 0, "the M that is given is not taken"
    auto.student = Bears(0.0)
    for _ in range(300):
        auto(of_class_0(16), None, 0, 0)
    assert auto.magnitude is not None and auto.magnitude > 4


def test_a_net_at_chance_waits() -> None:
    class Chance(Bears):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) * 0.1

    path = follow(0.0, 0.0, student=Chance(0.0))
    assert set(path) == {4}
    assert set(follow(0.0, 0.0, student=Chance(0.0), start=None)) == {None}


# ---------------------------------------------------------------- what is left untouched


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 256, 10),
    )


def test_probes_leave_nets_and_random_numbers_as_they_were() -> None:
    reference, student = net(1), net(2)
    student[1].eval()
    auto = AutoMagnitude(RandAugment(), reference, student=student, normalise=normalise)
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in (reference, student)]
    modes = [[m.training for m in n.modules()] for n in (reference, student)]
    torch.manual_seed(5)
    random = torch.get_rng_state()
    for step in range(8):
        batch = random_batch(32)
        plain = RandAugment()(batch, auto.magnitude, step, 0)
        assert torch.equal(auto(batch, None, step, 0).images, plain.images)
    assert auto._epoch[0] == 2 * 8, "two probes of a quarter of the batch"
    assert torch.equal(torch.get_rng_state(), random)
    for state, part in zip(before, (reference, student), strict=True):
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())
    assert [[m.training for m in n.modules()] for n in (reference, student)] == modes
    assert modes[1] == [True, True, False, True, True, True]


def test_the_same_net_has_no_gap() -> None:
    model = net(1)
    with torch.no_grad():
        model[4].weight.mul_(5)
    auto = AutoMagnitude(RandAugment(), model, student=model, normalise=normalise)
    batch = random_batch(64)
    with torch.no_grad():
        model.eval()
        targets = model(normalise(RandAugment()(batch, None, 0, 0).images)).argmax(1)
        model.train()
    for _ in range(4):
        auto(Batch(batch.images, targets, batch.index), None, 0, 0)
    row = auto.close_epoch()
    assert row["magnitude_gap"] == 0.0
    assert row["mean_magnitude"] == 4.0
    assert auto.close_epoch() == {}


def test_wrong_settings_are_refused() -> None:
    policy = PolicySchedule(2, (Segment(2, Policy.none()),))
    for augment, settings, sentence in (
        (RandAugment(), {"gap": 0}, "gap must be above 0, but it is 0"),
        (RandAugment(), {"known": 1}, r"known must be in \[0, 1\)"),
        (RandAugment(), {"cost": 0}, "cost must be above 0"),
        (RandAugment(), {"start": 9, "most": 8}, r"start in 1\.\.most or None, but they are 8 and 9"),
        (RandAugment(), {"most": 31}, "0..30"),
        (RandAugment(random_magnitude=True), {}, "not for one with random_magnitude"),
        (LearnedAugment(policy, 2), {}, "not for a LearnedAugment"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            AutoMagnitude(augment, Bears(0.0), **settings)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="needs the student and normalise"):
        AutoMagnitude(RandAugment(), Bears(0.0))(of_class_0(8), None, 0, 0)


def test_nets_that_do_not_fit_are_refused() -> None:
    for reference, sentence in (
        (Bears(0.0), "knows 2 classes and the student 10"),
        (nn.Conv2d(3, 2, 1), r"must give logits \(images, classes\), but one gives \(2, 2, 16, 16\)"),
    ):
        auto = AutoMagnitude(RandAugment(), reference, student=net(0), normalise=normalise, cost=1.0)
        with pytest.raises(ModelError, match=sentence):
            for _ in range(4):
                auto(of_class_0(8), None, 0, 0)


# ---------------------------------------------------------------- within a training


def training(*, bits: int | None = None, seed: int = 3, said: list[str] | None = None) -> Training:
    data = tiny_data()
    reference = freeze(tiny_net(width=12))
    auto = AutoMagnitude(RandAugment(crop_padding=1, flip=False), reference, gap=0.1, cost=1.0, known=0.0)
    model = tiny_net()
    if bits:
        seen = [data.normalise(next(iter(data.train.batches(32))).images)]
        model = quantize(model, seen[0][:1], weights=bits, activations=bits, calibration=seen)
    settings = Settings(epochs=3, batch_size=16, lr=0.02, precision="float32")
    note = (said if said is not None else []).append
    return Training(model, data, settings=settings, augment=auto, seed=seed, note=note)


def finished(run: Training) -> dict[str, Tensor]:
    while run.epochs_done < run.settings.epochs:
        run.epoch()
    return run.finished_model().state_dict()


def told(run: Training) -> list[dict[str, Any]]:
    keys = ("loss", "magnitude", "mean_magnitude", "magnitude_gap", "reference_knows")
    return [{key: row[key] for key in keys if key in row} for row in run.history]


@pytest.mark.parametrize("bits", [None, 4])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(bits: int | None, monkeypatch: Any) -> None:
    # So that M moves within a few steps.
    monkeypatch.setattr(module, "_KNOWS_ENOUGH", -1e9)
    said: list[str] = []
    whole = training(bits=bits, said=said)
    reference = {k: v.clone() for k, v in whole._augment.reference.state_dict().items()}
    state = finished(whole)
    again = training(bits=bits)
    repeated = finished(again)
    assert all(torch.equal(value, repeated[name]) for name, value in state.items())
    assert told(again) == told(whole), "one seed, one result"
    for after in (2,) if bits else (1, 2, 3):
        stopped = training(bits=bits)
        steps = iter(range(100))
        stopped.epoch()
        stopped.epoch(lambda _, steps=steps, after=after: next(steps) == after - 1)
        resumed = training(bits=bits)
        resumed.load_state_dict(stopped.state_dict())
        end = finished(resumed)
        assert all(torch.equal(value, end[name]) for name, value in state.items())
        assert told(resumed) == told(whole)
    kept = whole._augment.reference
    assert all(torch.equal(value, reference[name]) for name, value in kept.state_dict().items())
    levels = [level for row in whole.history for level in row["magnitude"]]
    assert levels[0] == 4 and len(set(levels)) > 1, "M moved, and the rows of the epochs show it"
    assert whole._augment.magnitude != levels[0]
    assert any("magnitude auto: a probe of 4 images every 1 steps, 12 in all" in line for line in said)


def _agree(fabric: Fabric) -> list[int]:
    module._KNOWS_ENOUGH = -1e9
    auto = AutoMagnitude(
        RandAugment(crop_padding=1, flip=False), freeze(tiny_net(width=12)), gap=0.1, cost=1.0, known=0.0
    )
    settings = Settings(epochs=2, batch_size=16, lr=0.02, precision="float32")
    run = Training(tiny_net(), tiny_data(), settings=settings, augment=auto, seed=3, fabric=fabric)
    finished(run)
    mine = torch.tensor([[level or 0 for row in run.history for level in row["magnitude"]]])
    everyone = fabric.all_gather(mine)
    # Otherwise its threads may still run while the process ends, which aborts it now and then.
    fabric.barrier()
    torch.distributed.destroy_process_group()
    return everyone.flatten().tolist()


@pytest.mark.slow
def test_processes_agree() -> None:
    levels = Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(_agree)
    mine, others = levels[: len(levels) // 2], levels[len(levels) // 2 :]
    assert mine == others and len(set(mine)) > 1


# ---------------------------------------------------------------- in recipes

KEPT = "- keep: dense\n"


def read(tmp_path: Any, augment: str, before: str = KEPT, train: str = "") -> Recipe:
    stages = f"{before}- train: {{epochs: 2, augment: {augment}{train}}}\n".replace("- ", "  - ")
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\nmodel: resnet8\ndata: digits\nstages:\n" + stages)
    return load_recipe(path)


def test_what_recipes_say(tmp_path: Any) -> None:
    recipe = read(tmp_path, "{magnitude: auto, auto: {reference: dense, gap: 0.2, start: none}}")
    augment = recipe.stages[1].augment  # type: ignore[attr-defined]
    assert augment.magnitude == "auto"
    assert (augment.auto.gap, augment.auto.start, augment.auto.most, augment.auto.cost) == (
        0.2,
        "none",
        30,
        0.1,
    )
    assert recipe.plan()[1]["magnitude"] == "auto by dense"
    recipe.save(tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml").stages == recipe.stages
    assert read(tmp_path, "{auto: {reference: dense}}").stages[1].augment.magnitude == "auto"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("augment", "sentence"),
    [
        ("{magnitude: auto}", "add auto: {reference: NAME}, with `- keep: NAME` before it"),
        (
            "{auto: {reference: dens}}",
            'auto.reference: no model was kept under the name "dens"; did you mean',
        ),
        ("{auto: {gap: 0.1}}", 'the key "reference" is missing'),
        ("{magnitude: 4, auto: {reference: dense}}", "auto belongs to magnitude: auto"),
        ("{magnitude: none, auto: {reference: dense}}", "auto belongs to magnitude: auto"),
        ("{auto: {reference: dense}, policy: p.yaml}", "magnitude: auto is one M for all images"),
        (
            "{auto: {reference: dense}, filter: {teacher: dense}}",
            "leave out policy, filter and random_magnitude",
        ),
        ("{auto: {reference: dense}, random_magnitude: true}", "magnitude: auto is one M for all images"),
        ("{auto: {reference: dense, start: 9, most: 8}}", "expected start in 1..8 (most), or none, found 9"),
        ("{auto: {reference: dense, start: 0}}", "expected start in 1..30 (most), or none, found 0"),
        ("{auto: {reference: dense, most: 31}}", "31"),
        ("{auto: {reference: dense, gap: 0}}", "above 0"),
        ("{auto: {reference: dense, gaps: 1}}", "gap"),
    ],
)
def test_mistakes_are_told(tmp_path: Any, augment: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, augment)
    assert len(caught.value.problems) == 1
    assert sentence in caught.value.problems[0]


def test_a_reference_must_have_been_kept_and_no_search_finds_what_is_found(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match="no earlier stage keeps one: put `- keep: dense` before it"):
        read(tmp_path, "{auto: {reference: dense}}", before="")
    with pytest.raises(ValueError, match="what is searched for is not given"):
        Search(kind="magnitude", keep="x", train=Train(epochs=1, augment={"auto": {"reference": "dense"}}))  # type: ignore[arg-type]


def train(epochs: int, **keys: Any) -> Train:
    return Train(epochs=epochs, batch_size=16, lr=0.05, precision="float32", **keys)


def test_runs_with_teachers_pruned_and_quantized_students(tmp_path: Any) -> None:
    auto = Augment(auto={"reference": "dense", "cost": 1.0})  # type: ignore[arg-type]
    stages = [
        train(4, augment=Augment(magnitude=2)),
        Keep(name="dense"),
        Prune(sparsity=0.4),
        train(
            3, augment=auto, prune={"sparsity": {"start": 0.4, "end": 0.6}}, distill=Distill(teacher="dense")
        ),
        Quantize(weights=4, activations=4, calibrate=16),
        train(2, augment=auto),
    ]
    given = {"model": tiny_net(), "data": tiny_data(), "device": "cpu", "console": QUIET}
    rows = compress_aug.run(Recipe(stages, name="toy"), out=tmp_path / "run", **given).report["stages"]  # type: ignore[arg-type]
    for row in (rows[3], rows[5]):
        levels = [level for epoch in row["history"] for level in epoch["magnitude"]]
        assert row["magnitude"] == [levels[0], levels[-1]] and levels[0] == 4
        assert any("magnitude auto: a probe of 4 images every 1 steps" in note for note in row["notes"])
        assert any("magnitude_gap" in epoch for epoch in row["history"])
        assert all(0 <= epoch["mean_magnitude"] <= 30 for epoch in row["history"])
    checked = compress_aug.check(
        Recipe(stages, name="toy"), model=tiny_net(), data=tiny_data(), device="cpu", console=QUIET
    )
    assert len(checked["stages"]) == len(stages)


def test_copies_of_a_masked_reference_work() -> None:
    model = compress_aug.mask_smallest(tiny_net(), 0.5)
    model(torch.zeros(2, 3, 8, 8))
    auto = AutoMagnitude(RandAugment(), freeze(copy_model(model)), student=model, normalise=normalise)
    for _ in range(4):
        auto(next(iter(tiny_data().train.batches(16))), None, 0, 0)
    assert auto.interval == 4


def test_a_recipe_and_the_class_begin_with_the_same_numbers():
    """Also those that docs/stages.md tells."""
    from compress_aug.stages import Auto

    own = {
        name: parameter.default
        for name, parameter in inspect.signature(AutoMagnitude).parameters.items()
        if name in Auto.model_fields and name != "reference"
    }
    assert {name: Auto(reference="dense").model_dump()[name] for name in own} == own
    page = (Path(__file__).parent.parent / "docs" / "stages.md").read_text()
    card = page[page.index("| `gap` |") :]
    for name in ("gap", "known", "cost"):
        assert f"| `{name}` | {own[name]:g} |" in card
