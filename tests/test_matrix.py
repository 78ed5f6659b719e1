"""Everything composes: which stages may follow which, and that what may follow runs, resumes, reloads and keeps.

The reference for the order is RULES, written by hand from what the stages mean, not from their code. The reference
for a run is what each stage promises: `Ran` holds the model after each stage, and each test looks at one promise.
"""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from toys import TinyConcat, TinyResidual, tiny_data, tiny_net

import compress_aug
from compress_aug import (
    Attach,
    Distill,
    Drop,
    Export,
    Keep,
    Model,
    Prune,
    PruneChannels,
    Quantize,
    Recipe,
    Search,
    Stage,
    State,
    Train,
    checkpoint,
    deploy,
    measure,
)
from compress_aug.channels import cut_channels
from compress_aug.deploy.latency import Latency
from compress_aug.errors import RecipeError, RunFolderError
from compress_aug.inheritance import attach_layers, attached_at, drop_layers
from compress_aug.models import fresh_model
from compress_aug.pruning import mask_smallest
from compress_aug.quantization import is_quantized, quantize, weight_bits
from compress_aug.surgery import copy_model, fold_masks, masked_layers, surgery_log

# What may follow what.


class Refused(NamedTuple):
    """`verb` is refused after `after`, unless an `until` or a fresh net came in between; the sentence holds `says`."""

    verb: str
    after: str
    until: str | None
    says: str


class Needs(NamedTuple):
    """`verb` is refused without an `after` before it that no `until` has undone; the sentence holds `says`.

    of_net: `after` did something to the net, so that a fresh one undoes it too
    """

    verb: str
    after: str
    until: str | None
    says: str
    of_net: bool


RULES = (
    # Two sets of borrowed layers would leave open which of them a drop means.
    Refused("attach", after="attach", until="drop", says="drop them before attaching others"),
    # New float layers would break the chain of scales that quantize has laid through the net.
    Refused("attach", after="quantize", until=None, says="must come before quantize"),
    # There must be something to take away.
    Needs("drop", after="attach", until="drop", says="nothing is attached", of_net=True),
    # Channels of the borrowed layers end in the net's own: cut together, they would be missing after the drop.
    Refused("prune_channels", after="attach", until="drop", says="drop them first"),
    # The dependency graph knows float layers; scales of channels that are gone would stay behind.
    Refused("prune_channels", after="quantize", until=None, says="must come before quantize"),
    # Scales would be laid around layers that leave.
    Refused("quantize", after="attach", until="drop", says="drop the attached layers first"),
    # Weights of layers that leave would count in the share of zeros.
    Refused("prune", after="attach", until="drop", says="drop the attached layers first"),
    # The same for a candidate, which is pruned further.
    Refused("search", after="attach", until="drop", says="drop the attached layers first"),
    # Fake-quantized layers have their bits.
    Refused("quantize", after="quantize", until=None, says="quantized already"),
    # The file is what the device gets: borrowed layers are for training only.
    Refused("export", after="attach", until="drop", says="still attached"),
    # A teacher that nobody kept cannot teach.
    Needs("distill", after="keep", until=None, says="no model was kept", of_net=False),
)
"""A fresh net, and a search of policies, which prunes nothing, may follow everything."""

# These run in all pairs and triples, the other three in pairs: a search costs several trainings.
CORE = ("attach", "drop", "prune", "prune_channels", "quantize", "keep", "distill", "train", "export")
VERBS = (*CORE, "search", "policies", "model")


def refusals(words):
    """By RULES: the position and the words of each refusal. What was refused counts as not there."""
    found, done = [], []
    for position, word in enumerate(words):
        broken = [rule for rule in RULES if rule.verb == word and _broken(rule, done)]
        found += [(position, rule.says) for rule in broken[:1]]
        done += [] if broken else [word]
    return found


def _broken(rule, done):
    undoing = {rule.until} if isinstance(rule, Needs) and not rule.of_net else {rule.until, "model"}
    undone = max((i for i, word in enumerate(done) if word in undoing), default=-1)
    stands = rule.after in done[undone + 1 :]
    return stands if isinstance(rule, Refused) else not stands


def train(epochs=1, **keys):
    # Low enough for a net without batch norms, too.
    return Train(epochs=epochs, batch_size=16, lr=0.02, precision="float32", **keys)


STAGE: dict[str, Callable[[int], Stage]] = {
    "attach": lambda nth: Attach(blocks=1 + nth),
    "drop": lambda nth: Drop(),
    "prune": lambda nth: Prune(sparsity=(0.3, 0.5, 0.6)[nth]),
    "prune_channels": lambda nth: PruneChannels(until={"ratio": (0.25, 0.5, 0.75)[nth]}, round_to=2),
    # 6, because 8 would become 7 on processors whose products saturate.
    "quantize": lambda nth: Quantize(weights=4, activations=8, first_and_last=6, calibrate=32),
    "keep": lambda nth: Keep(name=f"kept{nth}"),
    "export": lambda nth: Export(file=f"model{nth}.onnx"),
    "search": lambda nth: Search(
        kind="magnitude",
        keep=f"search{nth}",
        grid=["none", 9],
        refine=0,
        sparsity=[0.7],
        train_images=16,
        validation_images=16,
        train=train(),
    ),
    "policies": lambda nth: Search(
        kind="population",
        keep=f"policies{nth}",
        population=2,
        every=1,
        train_images=16,
        validation_images=16,
        train=train(2),
    ),
    "model": lambda nth: Model(name="resnet8", arguments={"width": WIDTH}),
    "watch": lambda nth: Watch(),
}

WIDTH = 8
"""Of all nets, at their first layers."""


def stages_of(words, *, teacher=None):
    """A stage for each word: each time a word comes again it asks for more, or under another name.

    Trainings use what the last search has found that is not refused.
    """
    stages, found, refused = [], None, {position for position, _ in refusals(words)}
    for position, word in enumerate(words):
        nth = words[:position].count(word)
        if word == "distill":
            # The newest teacher, which may be a net with other layers, fewer channels or fewer bits.
            kept = words[:position].count("keep")
            name = f"kept{kept - 1}" if kept else teacher or "kept0"
            stages.append(training_of(found, name))
        elif word == "train":
            stages.append(training_of(found))
        else:
            stages.append(stage_of(word, nth))
        if word in ("search", "policies") and position not in refused:
            found = (word, nth)
    return stages


@cache
def stage_of(word, nth):
    return STAGE[word](nth)


@cache
def training_of(found, teacher=None):
    keys = {}
    if found is not None:
        word, nth = found
        keys = {"policy" if word == "policies" else "magnitude": f"{word}{nth}"}
    return train(augment=keys, distill=Distill(teacher=teacher) if teacher else None)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_foresee_agrees_with_the_rules(length):
    """All orders of all verbs: legal ones pass, each illegal stage is told with its place and its reason."""
    for words in itertools.product(VERBS, repeat=length):
        expected = refusals(words)
        stages = stages_of(words)
        try:
            Recipe(stages).foresee()
            problems = []
        except RecipeError as error:
            problems = error.problems
        assert len(problems) == len(expected), (words, expected, problems)
        for problem, (position, says) in zip(problems, expected, strict=True):
            assert problem.startswith(f"stages.{position}.{stages[position].word}: "), (words, problem)
            assert says in problem, (words, problem)


def test_each_rule_refuses_and_relents():
    """No rule is a dead letter: it refuses by itself, and what it waits for, or needs, makes the verb legal."""
    for rule in RULES:
        if isinstance(rule, Needs):
            assert refusals([rule.verb]) == [(0, rule.says)]
            assert not refusals([rule.after, rule.verb])
            assert bool(refusals([rule.after, "model", rule.verb])) == rule.of_net
        else:
            assert not refusals([rule.after, "model", rule.verb])
            assert refusals([rule.after, rule.verb]) == [(1, rule.says)]
            assert rule.until is None or not refusals([rule.after, rule.until, rule.verb])


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([Keep(name="a"), Keep(name="a")], 'kept under the name "a" already'),
        ([Export(file="a.onnx"), Export(file="a.onnx")], '"a.onnx" is written already'),
        ([Prune(sparsity=0.5), Prune(sparsity=0.3)], "lower than the 0.5 of an earlier stage"),
        (
            [Keep(name="a"), Drop(), train(distill=Distill(teacher="b"))],
            'no model was kept under the name "b"',
        ),
    ],
)
def test_twice_the_same_is_refused_where_it_makes_no_sense(stages, says):
    with pytest.raises(RecipeError, match=says):
        Recipe(stages).foresee()


# Running what may follow.

QUIET = Console(quiet=True)
DATA = tiny_data(48, 0, 16)
NETS = {"chain": tiny_net, "residual": TinyResidual, "concat": TinyConcat}


class Watch(Stage):
    """Holds on to the state as it is there, the kept models included."""

    word = "watch"
    changes_model = False
    seen: ClassVar[list[State]] = []

    def run(self, state, setup):
        self.seen.append(replace(state, model=copy_model(state.model)))
        return state


def run(stages, net, out, **keys):
    recipe = Recipe(stages, name="toy")
    return compress_aug.run(
        recipe, model=NETS[net](), data=DATA, device="cpu", console=QUIET, out=out, **keys
    )


@dataclass
class Ran:
    """A run of some verbs: trained, kept as "dense", then each verb, with training after those that change."""

    net: str
    words: tuple[str, ...]
    folder: Path

    @cached_property
    def spelled(self):
        """The words of all stages, and at which of them the last verb is."""
        words, last = ["train", "keep"], 0
        for word in self.words:
            last = len(words)
            words += [word]
            words += ["watch"] if word in ("search", "policies") else []
            words += [] if word in ("train", "distill", "keep") else ["train"]
        return [*words, "watch"], last

    @cached_property
    def stages(self):
        words, _ = self.spelled
        return [train(2), Keep(name="dense"), *stages_of(words[2:], teacher="dense")]

    @cached_property
    def result(self):
        result = run(self.stages, self.net, self.folder)
        self.watched, Watch.seen[:] = Watch.seen[:], []
        self.kept = self.watched[-1].kept
        return result

    def base(self, index):
        """The net that the one after this stage was made of."""
        fresh = [i for i in self.where(Model) if i <= index]
        if not fresh:
            return NETS[self.net]()
        stage = self.stages[fresh[-1]]
        return fresh_model(
            stage.name, stage.arguments, classes=len(DATA.classes), image_shape=DATA.image_shape
        )

    @cached_property
    def models(self):
        """The model after each stage, each from its own checkpoint, as a resumed run would have it."""
        assert self.result
        found = []
        for index, stage in enumerate(self.stages):
            path = self.folder / f"{index:02d}-{stage.word}" / "model.safetensors"
            found.append(checkpoint.rebuild(NETS[self.net](), path) if path.is_file() else found[-1])
        return [model.eval() for model in found]

    def where(self, kind):
        return [index for index, stage in enumerate(self.stages) if isinstance(stage, kind)]


def same(left, right):
    """Bit for bit: the same changes, the same names in the same order, the same values of the same types."""
    assert surgery_log(left) == surgery_log(right)
    there, here = left.state_dict(), right.state_dict()
    assert list(there) == list(here)
    for name, value in there.items():
        assert value.dtype == here[name].dtype and torch.equal(value, here[name]), name
    images = inputs()
    with torch.no_grad():
        assert torch.equal(left.eval()(images), right.eval()(images))


def inputs():
    return DATA.normalise(next(iter(DATA.test.batches(16))).images)


def combinations():
    """The everyday ones first: pairs on one net and twenty triples on the others; all the rest is slow."""
    pairs = legal(VERBS, 2)
    everyday = [("chain", words) for words in pairs if words in SEARCHES or {*words} <= {*CORE}]
    everyday += TRIPLES
    rest = [(net, words) for net in ("chain", "residual", "concat") for words in pairs]
    rest += [("chain", words) for words in legal(CORE, 3) if len(words) == 3]
    for net, words in everyday:
        yield pytest.param((net, words), id=f"{net}: {', '.join(words)}")
    for net, words in rest:
        if (net, words) not in everyday:
            yield pytest.param((net, words), id=f"{net}: {', '.join(words)}", marks=pytest.mark.slow)


def legal(verbs, length):
    """Orders that may follow a kept model, those that need attached layers with the attach before them."""
    found = []
    for words in itertools.product(verbs, repeat=length):
        for before in ((), ("attach",)):
            if not refusals(["keep", *before, *words]):
                found.append((*before, *words))
                break
    return found


SEARCHES = (
    ("attach", "policies"),
    ("prune", "search"),
    ("search", "distill"),
    ("search", "policies"),
    ("policies", "prune_channels"),
    ("policies", "model"),
    ("model", "search"),
    ("model", "attach"),
    ("model", "prune"),
    ("model", "quantize"),
    ("attach", "model"),
    ("prune_channels", "model"),
    ("quantize", "model"),
    ("model", "distill"),
    ("model", "export"),
)
"""Everyday pairs with a search or a fresh net; the other ones are slow."""

TRIPLES = (
    ("residual", ("attach", "drop", "prune")),
    ("residual", ("attach", "drop", "prune_channels")),
    ("residual", ("attach", "keep", "drop", "distill")),
    ("residual", ("prune", "attach", "drop")),
    ("residual", ("prune", "quantize", "export")),
    ("residual", ("prune", "prune_channels", "quantize")),
    ("residual", ("prune_channels", "quantize", "distill")),
    ("residual", ("prune_channels", "prune", "export")),
    ("residual", ("quantize", "prune", "export")),
    ("residual", ("prune", "export", "distill")),
    ("concat", ("attach", "train", "drop")),
    ("concat", ("attach", "drop", "attach")),
    ("concat", ("attach", "drop", "quantize")),
    ("concat", ("prune", "prune_channels", "prune")),
    ("concat", ("prune_channels", "prune_channels", "export")),
    ("concat", ("prune_channels", "prune", "quantize")),
    ("concat", ("prune_channels", "attach", "drop")),
    ("concat", ("prune", "keep", "distill")),
    ("concat", ("quantize", "keep", "distill")),
    ("concat", ("keep", "quantize", "export")),
)


@pytest.fixture(scope="module")
def timeless():
    """Timing is not what is tested here, and takes a process for each file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "latency", lambda *_, **__: Latency(1, 1, 1, 1, "none", None, None, 1, 1, 1))
        yield


@pytest.fixture(scope="module", params=[*combinations()])
def ran(request, tmp_path_factory, timeless):
    net, words = request.param
    done = Ran(net, words, tmp_path_factory.mktemp("matrix") / "run")
    assert done.result
    yield done
    shutil.rmtree(done.folder)


def test_it_ends_with_the_model_of_its_last_checkpoint(ran):
    same(ran.result.model, ran.models[-1])
    assert ran.result.report["finished"]
    assert torch.isfinite(ran.result.model(inputs())).all()


def test_load_gives_that_model_and_no_other_base_does(ran):
    same(compress_aug.load(ran.folder, model=scrambled(NETS[ran.net]())), ran.result.model)
    for wrong in (NETS[ran.net](width=12), NETS["chain" if ran.net == "residual" else "residual"]()):
        if "model" in ran.words:
            # Whatever was there before has left.
            same(compress_aug.load(ran.folder, model=wrong), ran.result.model)
            continue
        with pytest.raises(RunFolderError, match=r"does not fit this model: .*give the model|Give the model"):
            compress_aug.load(ran.folder, model=wrong)


def scrambled(model):
    """Other weights: those of the base must not matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def test_sparsity_is_exact_and_what_is_zero_stays_zero(ran):
    """Attached layers and cut channels change the share of zeros, but no weight that was masked comes back."""
    for index in ran.where(Prune):
        found = zeros(ran.models[index]).values()
        total = sum(mask.numel() for mask in found)
        assert sum(int(mask.sum()) for mask in found) == round(ran.stages[index].sparsity * total)
    for before, model, stage in zip(ran.models, ran.models[1:], ran.stages[1:], strict=False):
        for layer in masked_layers(model).values():
            assert (layer.weight_orig[layer.weight_mask == 0] == 0).all(), "something moves behind the mask"
        if isinstance(stage, PruneChannels):
            assert list(masked_layers(model)) == list(masked_layers(before))
            continue
        if isinstance(stage, Model):
            assert measure.sparsity(model) == 0 and not masked_layers(model)
            continue
        there, here = zeros(before), zeros(model)
        assert all((here[name] | ~there[name]).all() for name in there.keys() & here.keys()), stage
        if not isinstance(stage, Attach | Drop):
            assert measure.sparsity(model) >= measure.sparsity(before), stage


def zeros(model):
    """Where each layer's weight is zero, by the name that it has without attached layers."""
    layers = measure.prunable_layers(model)
    return {plain(name): measure.effective_weight(layer) == 0 for name, layer in layers.items()}


def plain(name):
    return name.replace(".base", "")


def test_bits_are_those_asked_for(ran):
    asked = False
    rows = ran.result.report["stages"]
    for index, (stage, model) in enumerate(zip(ran.stages, ran.models, strict=True)):
        asked = (asked or isinstance(stage, Quantize)) and not isinstance(stage, Model)
        names = list(measure.prunable_layers(ran.base(index)))
        if asked:
            assert weight_bits(model) == {name: 6 if name in (names[0], names[-1]) else 4 for name in names}
        else:
            assert not is_quantized(model) and set(weight_bits(model).values()) == {32}
        assert (4 < rows[index]["bits"]["weights"] < 6) == asked


def test_drop_gives_back_the_names_and_shapes(ran):
    for index in ran.where(Drop):
        attach = max(i for i in ran.where(Attach) if i < index)
        assert attached_at(ran.models[index - 1]) and attached_at(ran.models[index]) is None
        assert shapes(ran.models[index]) == shapes(ran.models[attach - 1])


def shapes(model):
    return {name: value.shape for name, value in fold_masks(copy_model(model)).state_dict().items()}


def test_cut_channels_stay_cut(ran):
    widths = None
    for index, (model, stage) in enumerate(zip(ran.models, ran.stages, strict=True)):
        if isinstance(stage, PruneChannels):
            widths = own_widths(ran, index, model)
            *whole, _ = own_widths(ran, index, ran.base(index)).values()
            assert list(widths.values())[:-1] == [width * (1 - stage.until.ratio) for width in whole]
        elif isinstance(stage, Model):
            widths = None
        elif widths is not None:
            assert own_widths(ran, index, model) == widths


def own_widths(ran, index, model):
    """The output channels of the net's own layers, attached ones left out."""
    layers = {plain(name): layer for name, layer in measure.prunable_layers(model).items()}
    return {name: len(layers[name].weight) for name in measure.prunable_layers(ran.base(index))}


def test_a_search_leaves_the_model_alone(ran):
    """Its candidates are copies: what goes on is what came in, bit for bit, and its row is of none of them."""
    watches = ran.where(Watch)
    for index in ran.where(Search):
        state = ran.watched[watches.index(index + 1)]
        same(state.model, ran.models[index - 1])
        assert ran.stages[index].keep in state.kept
        rows = ran.result.report["stages"]
        assert rows[index]["parameters"] == rows[index - 1]["parameters"]


def test_a_fresh_net_has_nothing_of_the_one_before(ran):
    for index in ran.where(Model):
        model, base = ran.models[index], ran.base(index)
        assert shapes(model) == shapes(base)
        assert [entry["verb"] for entry in surgery_log(model)] == ["model"]


def test_kept_models_are_left_alone(ran):
    """Bit for bit what they were when they were kept, though a student that began as they are was changed."""
    assert [name for name, kept in ran.kept.items() if isinstance(kept, nn.Module)] == [
        ran.stages[index].name for index in ran.where(Keep)
    ]
    for index in ran.where(Keep):
        kept = ran.kept[ran.stages[index].name]
        assert not kept.training and not any(p.requires_grad for p in kept.parameters())
        # Who taught lies in memory as trainings want it, which may move the last bit of a sum.
        same(kept.to(memory_format=torch.contiguous_format), ran.models[index - 1])


def test_files_compute_what_their_models_compute(ran):
    for index in ran.where(Export):
        path = ran.folder / ran.stages[index].file
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"input": inputs().numpy()})
        with torch.no_grad():
            expected = ran.models[index](inputs()).numpy()
        assert (found.argmax(1) == expected.argmax(1)).all()
        np.testing.assert_allclose(found, expected, atol=1e-4)


class Stop(Exception):
    """Raised in the middle of a training, like a power cut."""


def test_resumed_it_is_the_same_run(ran, tmp_path):
    """From the last verb on; the twenty are cut off in their last training as well, and go on once more."""
    _, verb = ran.spelled
    copy = tmp_path / "run"
    shutil.copytree(ran.folder, copy)
    forget(ran, copy, verb)
    last = ran.where(Train)[-1]

    def cut_off(training, *, checkpoint, progress):
        if checkpoint.parent.name != f"{last:02d}-train":
            return compress_aug.fit(training, checkpoint=checkpoint, progress=progress)
        training.epoch(lambda training: True)
        raise Stop

    if (ran.net, ran.words) in TRIPLES and last >= verb:
        with pytest.raises(Stop):
            run(ran.stages, ran.net, copy, resume=True, fit=cut_off)
    resumed = run(ran.stages, ran.net, copy, resume=True)
    same(resumed.model, ran.result.model)
    kept, Watch.seen[:] = Watch.seen[-1].kept, []
    assert kept.keys() == ran.kept.keys()
    for name, model in kept.items():
        if not isinstance(model, nn.Module):
            assert model == ran.kept[name]
            continue
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
        same(*(each.to(memory_format=torch.contiguous_format) for each in (model, ran.kept[name])))
    assert told(resumed.report) == told(ran.result.report)
    for path in ran.folder.rglob("*.onnx"):
        assert (copy / path.relative_to(ran.folder)).read_bytes() == path.read_bytes(), path.name


def forget(ran, folder, first):
    """As if the run had been stopped before the stage `first`, nothing of which was written."""
    for index in range(first, len(ran.stages)):
        stage = ran.stages[index]
        shutil.rmtree(folder / f"{index:02d}-{stage.word}")
        if isinstance(stage, Keep):
            (folder / "kept" / f"{stage.name}.safetensors").unlink()
        if isinstance(stage, Search):
            (folder / "kept" / f"{stage.keep}.yaml").unlink()
        for path in folder.glob(f"{Path(stage.file).stem}*.onnx") if isinstance(stage, Export) else ():
            path.unlink()
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**report, "finished": False}))


def told(report):
    """What the report says of each stage, less what a clock decides."""
    keys = (
        "word",
        "title",
        "accuracy",
        "loss",
        "sparsity",
        "parameters",
        "nonzero_parameters",
        "macs",
        "bits",
    )
    return [{key: row[key] for key in keys} | {"search": row.get("search")} for row in report["stages"]]


# What is given wrong, or is damaged.


@pytest.fixture(scope="module")
def compressed(tmp_path_factory, timeless):
    """A run in which each kind of change was made."""
    words = ("attach", "drop", "prune", "prune_channels", "quantize")
    done = Ran("residual", words, tmp_path_factory.mktemp("compressed") / "run")
    assert done.result
    return done


def with_header(path, **changed):
    """Write the checkpoint anew with another header; None takes a part out."""
    with safe_open(path, framework="pt") as opened:
        about = {**opened.metadata(), **changed}
    save_file(load_file(path), path, {name: value for name, value in about.items() if value is not None})


def last_file(folder):
    return sorted(folder.glob("*/model.safetensors"))[-1]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is not a checkpoint: "),
        (lambda path: path.write_bytes(b""), "is not a checkpoint: "),
        (lambda path: path.write_bytes(bytes(200) + path.read_bytes()[200:]), "is not a checkpoint: "),
        (lambda path: with_header(path, format="2"), "in format '2', and this version .* reads '1'"),
        (lambda path: with_header(path, format=None), "is not a checkpoint of compress_aug"),
        (lambda path: with_header(path, log=None), "is not a checkpoint of compress_aug"),
        (lambda path: with_header(path, log='[{"verb": "mask"'), "is damaged: its log cannot be read"),
        (lambda path: with_header(path, log='["mask"]'), "is damaged: not every entry"),
        (lambda path: with_header(path, log='[{"verb": "mask"}]'), 'is damaged: its change "mask" lacks'),
        (lambda path: with_header(path, log='[{"verb": "melt"}]'), 'the change "melt", which is not one of'),
        (lambda path: with_header(path, log="[]"), "does not fit this model: .*Give the model"),
    ],
)
def test_a_damaged_checkpoint_is_refused(compressed, tmp_path, damage, says):
    copy = tmp_path / "run"
    shutil.copytree(compressed.folder, copy)
    damage(last_file(copy))
    with pytest.raises(RunFolderError, match=says):
        compress_aug.load(copy, model=TinyResidual())
    forget(compressed, copy, len(compressed.stages) - 1)
    with pytest.raises(RunFolderError, match=says):
        run(compressed.stages, "residual", copy, resume=True)


CHANGES = {
    "mask": lambda net: mask_smallest(net, 0.3),
    "cut": lambda net: cut_channels(net, torch.zeros(1, 3, 8, 8), until={"ratio": 0.25}, round_to=2),
    "attach": lambda net: attach_layers(net, torch.zeros(1, 3, 8, 8), blocks=1),
    "attach, drop": lambda net: drop_layers(attach_layers(net, torch.zeros(1, 3, 8, 8), blocks=1)),
    "quantize": lambda net: quantize(net, torch.zeros(1, 3, 8, 8), calibration=[inputs()]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_on_a_model_that_was_changed_before_resumes_and_loads(tmp_path, change):
    """The base is then that model; the untouched one will do as well, for the log holds all changes."""
    stages = [Keep(name="teacher"), train(distill=Distill(teacher="teacher")), Prune(sparsity=0.5), train()]
    keys = {"data": DATA, "device": "cpu", "console": QUIET, "out": tmp_path / "run"}
    given = CHANGES[change](tiny_net())
    result = compress_aug.run(Recipe(stages, name="toy"), model=given, **keys)
    shutil.rmtree(tmp_path / "run" / "03-train")
    shutil.rmtree(tmp_path / "run" / "02-prune")
    same(compress_aug.run(Recipe(stages, name="toy"), model=given, resume=True, **keys).model, result.model)
    for base in (given, tiny_net()):
        same(compress_aug.load(tmp_path / "run", model=base), result.model)
    other = CHANGES["cut" if change == "mask" else "mask"](tiny_net())
    with pytest.raises(RunFolderError, match=r"changed already \(.*\), otherwise than .*Give the model"):
        compress_aug.load(tmp_path / "run", model=other)


# Where runs once broke.


def cut(ratio, **keys):
    return PruneChannels(until={"ratio": ratio}, round_to=2, **keys)


def ranked_against_its_zeros(**_):
    """A net whose batch norm makes little of the channels with large weights: those are cut, the zeros stay."""
    net = tiny_net()
    with torch.no_grad():
        for conv, norm in ((net[0], net[1]), (net[3], net[4])):
            conv.weight[:4] *= 10
            norm.weight[:4] *= 0.1
    return net


@pytest.mark.parametrize(
    ("net", "stages"),
    [
        pytest.param(
            "toys:tiny_net",
            [Attach(blocks=1), Prune(sparsity=0.5), Drop(), Prune(sparsity=0.5)],
            id="attach, prune, drop, prune",
        ),
        pytest.param(
            f"{__name__}:ranked_against_its_zeros",
            [Prune(sparsity=0.5), cut(0.5, importance="bn_scale"), Prune(sparsity=0.5)],
            id="prune, cut, prune",
        ),
        pytest.param(
            "toys:tiny_net",
            [cut(0.5), cut(0.25)],
            id="cut, cut less",
        ),
    ],
)
def test_what_foresee_accepts_runs(tmp_path, net, stages):
    recipe = Recipe(stages, model=net, data=DATA, name="toy")
    try:
        recipe.foresee()
    except RecipeError:
        return
    result = compress_aug.run(recipe, device="cpu", console=QUIET, out=tmp_path / "run")
    assert result.report["finished"]


def test_a_run_that_goes_on_is_not_finished(tmp_path):
    out = tmp_path / "run"
    run([train(), train()], "chain", out)
    shutil.rmtree(out / "01-train")

    def cut_off(training, *, checkpoint, progress):
        raise Stop

    with pytest.raises(Stop):
        run([train(), train()], "chain", out, resume=True, fit=cut_off)
    assert not json.loads((out / "report.json").read_text())["finished"]


@pytest.mark.parametrize("again", [False, True])
def test_a_finished_stage_without_its_checkpoint_is_refused(tmp_path, again):
    out = tmp_path / "run"
    run([train(), Prune(sparsity=0.5), train()], "chain", out)
    if again:
        shutil.rmtree(out / "02-train")
    (out / f"0{2 - again}-{'prune' if again else 'train'}" / "model.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"model\.safetensors"):
        if again:
            run([train(), Prune(sparsity=0.5), train()], "chain", out, resume=True)
        compress_aug.load(out, model=tiny_net())


def test_a_teacher_whose_file_is_gone_is_missed(tmp_path):
    out = tmp_path / "run"
    stages = [Keep(name="teacher"), train(distill=Distill(teacher="teacher"))]
    run(stages, "chain", out)
    shutil.rmtree(out / "01-train")
    (out / "kept" / "teacher.safetensors").unlink()
    with pytest.raises(RunFolderError, match="teacher"):
        run(stages, "chain", out, resume=True)
