"""The teacher's filter: scores by hand, which candidate is kept, what is left untouched; and within a training."""

import math
from typing import Any

import pytest
import torch
from test_augment import random_batch
from torch import Tensor, nn
from toys import tiny_data, tiny_net

from compress_aug.augment import LearnedAugment, RandAugment, TeacherFilter, draw_magnitudes, filter_scores
from compress_aug.augment import filter as module
from compress_aug.batch import Batch
from compress_aug.distill import SoftLabels
from compress_aug.errors import ModelError, RecipeError
from compress_aug.policies import Policy, PolicySchedule, Segment
from compress_aug.quantization import quantize
from compress_aug.surgery import copy_model
from compress_aug.training import Settings, Training


def normalise(images: Tensor) -> Tensor:
    return images.float() / 255


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 256, 10)
    )


def of_class_0(count: int) -> Batch:
    batch = random_batch(count)
    return Batch(batch.images, torch.zeros(count, dtype=torch.int64), batch.index)


def filtered(**settings: object) -> TeacherFilter:
    given = {"teacher": net(1).eval(), "student": net(2), "normalise": normalise, **settings}
    return TeacherFilter(RandAugment(random_magnitude=True), **given)  # type: ignore[arg-type]


# ---------------------------------------------------------------- scores


def test_scores_equal_the_formula_by_hand() -> None:
    teacher, student = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.5, 0.5, 0.0]])

    def soft(row: Tensor, tau: float) -> list[float]:
        exps = [math.exp(value / tau) for value in row.tolist()]
        return [value / sum(exps) for value in exps]

    hard = -math.log(soft(teacher[0], 1.0)[1])
    p, q = soft(teacher[0], 4.0), soft(student[0], 4.0)
    divergence = 16 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    crossed = 16 * sum(-a * math.log(b) for a, b in zip(p, q, strict=True))
    target = torch.tensor([1])
    found = filter_scores(teacher, student, target, alpha=0.7, beta=0.3)
    assert float(found) == pytest.approx(0.7 * hard - 0.3 * divergence, rel=1e-5)
    found = filter_scores(teacher, student, target, alpha=0.7, beta=0.3, kl_form="ce")
    assert float(found) == pytest.approx(0.7 * hard - 0.3 * crossed, rel=1e-5)
    assert float(filter_scores(teacher, None, target, beta=0)) == pytest.approx(hard, rel=1e-5)


def test_scores_that_are_no_number_come_last() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [float("inf"), 0.0]])
    scores = filter_scores(logits, torch.zeros(3, 2), torch.tensor([0, 0, 0]))
    assert scores.isfinite().tolist() == [True, False, False]
    assert (scores[1:] == torch.inf).all()


# ---------------------------------------------------------------- the choice


class Brightness(nn.Module):
    """Logits that say how bright an image is: the teacher of these tests knows only bright ones of class 0."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign
        self.asked = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.asked += 1
        bright = inputs.mean((1, 2, 3)) * self.sign
        return torch.stack([bright, -bright], 1) * 4


def test_the_candidate_with_the_lowest_score_is_kept_with_its_logits() -> None:
    batch = of_class_0(40)
    teacher = Brightness()
    choose = filtered(teacher=teacher, student=None, candidates=5, beta=0.0)
    chosen = choose(batch, 30, 2, 7)
    views = [RandAugment(random_magnitude=True)(batch, 30, 2, 7, candidate=n).images for n in range(5)]
    means = torch.stack([normalise(view).mean((1, 2, 3)) for view in views])
    expected = torch.stack(views)[means.argmax(0), torch.arange(40)]
    assert torch.equal(chosen.images, expected)
    assert len(set(means.argmax(0).tolist())) == 5
    assert chosen.teacher_logits is not None
    assert torch.allclose(chosen.teacher_logits, teacher(normalise(expected)))
    assert chosen.targets is batch.targets and chosen.index is batch.index
    assert not chosen.images.requires_grad and not chosen.teacher_logits.requires_grad


def test_disagreement_with_the_student_is_sought() -> None:
    batch = of_class_0(40)
    choose = filtered(teacher=Brightness(), student=Brightness(-1.0), candidates=4, alpha=0.0, beta=1.0)
    chosen = choose(batch, 30, 0, 0)
    # The two are the further apart the brighter the image is.
    views = [RandAugment(random_magnitude=True)(batch, 30, 0, 0, candidate=n).images for n in range(4)]
    means = torch.stack([normalise(view).mean((1, 2, 3)) for view in views])
    assert torch.equal(chosen.images, torch.stack(views)[means.argmax(0), torch.arange(40)])


@pytest.mark.parametrize("magnitude", [None, 30])
def test_one_candidate_is_plain_augmentation_bit_for_bit(magnitude: int | None) -> None:
    batch = random_batch(50)
    chosen = filtered(candidates=1)(batch, magnitude, 3, 4)
    plain = RandAugment(random_magnitude=True)(batch, magnitude, 3, 4)
    assert torch.equal(chosen.images, plain.images)


def test_candidates_do_not_depend_on_how_many_there_are_or_are_scored_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = random_batch(30)
    two = filtered(candidates=2)(batch, 30, 0, 0)
    six = filtered(candidates=6)(batch, 30, 0, 0)
    both = (two.images == six.images).flatten(1).all(1)
    assert both.any() and not both.all()
    one = filtered(candidates=6)
    one(batch, 30, 0, 0)
    said = one.close_epoch()["chosen_magnitude"]
    for at_once in (6, 4):  # all, and a last pass that is shorter
        monkeypatch.setattr(module, "_candidates_at_once", lambda images, at_once=at_once: at_once)
        several = filtered(candidates=6)
        assert torch.equal(several(batch, 30, 0, 0).images, six.images)
        assert several.close_epoch()["chosen_magnitude"] == said
    # The magnitude that is told is that of the views that were taken.
    views = [RandAugment(random_magnitude=True)(batch, 30, 0, 0, candidate=n).images for n in range(6)]
    taken = (torch.stack(views) == six.images).flatten(2).all(2).int().argmax(0)
    levels = [draw_magnitudes(batch.index.numpy(), 30, candidate=n) for n in range(6)]
    assert said == pytest.approx(sum(levels[n][row] for row, n in enumerate(taken.tolist())) / len(batch))


def test_batches_without_a_magnitude_do_not_weaken_the_mean() -> None:
    choose = filtered(candidates=2)
    choose(random_batch(10), 30, 0, 0)
    choose(random_batch(10), None, 0, 0)
    alone = filtered(candidates=2)
    alone(random_batch(10), 30, 0, 0)
    assert choose.close_epoch()["chosen_magnitude"] == alone.close_epoch()["chosen_magnitude"]


def test_images_without_a_finite_score_get_the_first_candidate_and_are_counted() -> None:
    batch = random_batch(10)
    choose = filtered(teacher=lambda inputs: torch.full((len(inputs), 10), float("nan")), candidates=3)
    chosen = choose(batch, 30, 0, 0)
    assert torch.equal(chosen.images, RandAugment(random_magnitude=True)(batch, 30, 0, 0).images)
    assert choose.close_epoch()["unscored_share"] == 1.0


def test_nets_are_left_as_they_were() -> None:
    teacher, student = net(1), net(2)
    teacher[1].eval()
    choose = filtered(teacher=teacher, student=student, candidates=3)
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in (teacher, student)]
    modes = [[m.training for m in n.modules()] for n in (teacher, student)]
    for step in range(10):
        choose(random_batch(8), 20, step, 0)
    for state, part in zip(before, (teacher, student), strict=True):
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())
    assert [[m.training for m in n.modules()] for n in (teacher, student)] == modes
    assert modes[0] == [True, True, False, True, True]


def test_with_beta_0_the_student_is_not_asked() -> None:
    student = Brightness()
    filtered(teacher=Brightness(), student=student, beta=0.0)(of_class_0(6), 20, 0, 0)
    assert student.asked == 0
    filtered(teacher=Brightness(), student=student, candidates=3)(of_class_0(6), 20, 0, 0)
    assert student.asked == 3


def test_empty_batch() -> None:
    empty = Batch(
        torch.zeros(0, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
    )
    assert filtered()(empty, 14, 0, 0).images.shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"candidates": 0}, r"candidates must be a whole number in 1\.\.65536, but it is 0"),
        ({"candidates": True}, "candidates"),
        ({"alpha": 0, "beta": 0}, "not both 0"),
        ({"alpha": -1}, "at least 0"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"kl_form": "js"}, 'kl or ce, but it is "js"'),
        ({"alpha": "1"}, "alpha must be a number, but it is '1'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        filtered(**settings)


def test_without_nets_it_says_what_it_needs() -> None:
    for missing in ({"student": None}, {"normalise": None}):
        with pytest.raises(RecipeError, match="needs normalise and, unless beta is 0, the student"):
            filtered(**missing)(random_batch(4), 14, 0, 0)


def test_nets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"teacher must give logits \(images, classes\), but it gives tuple"):
        filtered(teacher=lambda inputs: (inputs, inputs))(random_batch(4), 14, 0, 0)
    with pytest.raises(ModelError, match="teacher knows 10 classes and its student 2"):
        filtered(student=Brightness())(random_batch(4), 14, 0, 0)
    with pytest.raises(RecipeError, match="from an Augmentation, such as RandAugment, not from a function"):
        TeacherFilter(lambda batch: batch, Brightness())  # type: ignore[arg-type]


# ---------------------------------------------------------------- within a training


def training(*, same_teacher: bool = True, bits: int | None = None, learned: bool = False) -> Training:
    data = tiny_data()
    teacher = tiny_net(width=12)
    plain = {"crop_padding": 1, "flip": False}
    policy = PolicySchedule(2, (Segment(1, Policy.none()), Segment(1, Policy((9,) * 30, (7,) * 30))))
    augment = (
        LearnedAugment(policy, 3, **plain) if learned else RandAugment(random_magnitude=True, **plain)  # type: ignore[arg-type]
    )
    choose = TeacherFilter(augment, teacher, candidates=3)
    objective = SoftLabels(teacher if same_teacher else copy_model(teacher), weight=lambda progress: 0.5)
    settings = Settings(epochs=3, batch_size=16, lr=0.02, precision="float32")
    model = tiny_net()
    if bits:
        seen = [data.normalise(next(iter(data.train.batches(32))).images)]
        model = quantize(model, seen[0][:1], weights=bits, activations=bits, calibration=seen)
    return Training(model, data, objective, settings, augment=choose, magnitude=lambda progress: 20, seed=3)


def finished(run: Training) -> dict[str, Tensor]:
    while run.epochs_done < run.settings.epochs:
        run.epoch()
    return run.finished_model().state_dict()


def test_handed_on_logits_train_as_logits_that_are_asked_again() -> None:
    asked = {"judge": 0, "teacher": 0}
    same, other = training(), training(same_teacher=False)

    def count(part: nn.Module, who: str) -> None:
        part.register_forward_hook(lambda *_: asked.update({who: asked[who] + 1}))

    count(same.objective.teacher, "judge")
    state = finished(same)
    # 3 epochs of 4 steps, three candidates: the loss asks no more.
    assert asked == {"judge": 36, "teacher": 0}
    count(other.objective.teacher, "teacher")
    for name, value in finished(other).items():
        assert torch.allclose(value, state[name], atol=1e-5), name
    assert asked["teacher"] == 12, "a loss with another teacher asks that one"


@pytest.mark.parametrize("kind", [{}, {"bits": 4}, {"learned": True}], ids=str)
def test_a_training_that_was_stopped_ends_as_one_that_was_not(kind: dict[str, Any]) -> None:
    whole = training(**kind)
    state = finished(whole)
    stopped = training(**kind)
    steps = iter(range(100))
    while stopped.epochs_done < 1:
        stopped.epoch()
    stopped.epoch(lambda _: next(steps) == 1)
    saved = stopped.state_dict()
    again = training(**kind)
    again.load_state_dict(saved)
    resumed = finished(again)
    assert all(torch.equal(value, resumed[name]) for name, value in state.items())
    for row, other in zip(whole.history, again.history, strict=True):
        assert row["unscored_share"] == other["unscored_share"] == 0.0
        if "learned" not in kind:
            assert row["chosen_magnitude"] == other["chosen_magnitude"]
            assert 0 < row["chosen_magnitude"] < 20
