"""Turn a float model into one that computes as integer kernels will: Brevitas layers and learned scales."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from compress_aug.errors import ModelError
from compress_aug.quantization import dorefa
from compress_aug.quantization.calibrate import check_batch, observe, weight_ends
from compress_aug.quantization.checks import check_inputs, check_same, outputs_of
from compress_aug.quantization.deferred import defer_rectifiers
from compress_aug.quantization.finalize import check_final
from compress_aug.quantization.folding import check_weights, float_norms, fold_batch_norms, foldable_norms
from compress_aug.quantization.frozen import replay_frozen
from compress_aug.quantization.graph import QuantizedModel
from compress_aug.quantization.layerwise import INPUT, keep_input, read_through
from compress_aug.quantization.norms import reestimate_batch_norms
from compress_aug.quantization.parts import follow, kept_notes
from compress_aug.quantization.placing import Quantizer, picked, placed_groups, wanted_bits
from compress_aug.quantization.rewriting import (
    free_name,
    insert_after,
    use_pooling_for_means,
    use_splits_for_chunks,
)
from compress_aug.quantization.scale_groups import Flow
from compress_aug.scheme import Bits, Override, Scheme, chosen
from compress_aug.surgery import (
    LogEntry,
    check_shapes,
    copy_model,
    device_of,
    layer_shapes,
    record,
    replace_log,
    surgery_log,
)

WeightScales = Literal["channel", "tensor"]
Range = Literal["mse", "max", "percentile"]


def quantize(
    model: nn.Module,
    example: Tensor,
    *,
    scheme: Literal["integer", "dorefa"] = "integer",
    weights: int | None = 8,
    activations: int | None = 8,
    first_and_last: Bits | None = None,
    overrides: Mapping[str, Override] | None = None,
    weight_scales: WeightScales = "channel",
    weight_range: Literal["auto"] | Range = "auto",
    activation_range: Range = "mse",
    percentile: float = 99.99,
    learned_scales: bool = True,
    batch_norm: Literal["fold", "keep"] | None = None,
    signed: Bits | None = None,
    rescale: bool = False,
    most_weight_bits: int = 8,
    least_gate_bits: int = 8,
    calibration: Iterable[Tensor] = (),
    note: Callable[[str], None] | None = None,
) -> nn.Module:
    """Replace Conv and Linear layers by Brevitas ones and put learned quantizers between them.

    example:        float (1, C, H, W), shows the shapes that flow through the model
    scheme:         "integer": symmetric uniform grids, fitted to what they hold. "dorefa": the levels of DoReFa,
                    2..7 bits, weights on 2^k levels without a zero, what layers read on 2^k levels in [0, 1]
    weights:        bits of the weights, 2..8; None leaves them float
    activations:    bits of the values between layers, 2..8, one scale each; None leaves them float
    first_and_last: bits of the first and last layer's weights, of the network's input and of what the last
                    layer reads; "float" leaves these layers and what only they read in float. 8 by default, with
                    dorefa "float"
    overrides:      other bits for some layers: {"layer1.*": {"weights": 8, "activations": "float"}}, where a
                    pattern is a module name, a glob or a type and "activations" are the bits of what the layer
                    reads. Later patterns win over earlier ones, and all of them over first_and_last. Values that
                    several layers read have one grid: that of the last pattern that names any of these layers.
                    A pattern that picks gates and no layer gives their bits: {"SiLU": {"activations": 4}}
    weight_scales:  "channel": a scale for each output channel. "tensor": one for each layer
    weight_range:   where a weight's grid ends: "max": at the largest weight; "percentile"; "mse": where the squared
                    error is least; "auto": at the largest weight from 6 bits on, below where it is best for normally
                    distributed weights. It is measured once, as a number of standard deviations (max: anew at each
                    pass), and then follows the weights as they are trained
    activation_range: where a grid between layers ends at first, seen over the calibration batches
    percentile:     of magnitudes that are not zero, above 50 and up to 100; for ranges by percentile
    learned_scales: whether training moves the scales. False keeps them as calibrated, those of weights as well
    batch_norm:     "fold" merges batch norms into the layer before them. "keep" leaves them to be trained, with
                    statistics estimated anew on the calibration batches; `finalize` then merges them, exactly.
                    "fold" by default; dorefa can only keep them
    signed:         with dorefa, bits of the integer grids that hold what may be negative, which DoReFa's activations
                    cut off: what layers behind linear bottlenecks read, and the summands of what is quantized, so
                    that devices compute sums on integers [ours, 8 by default]. Where the last layer is quantized,
                    so is the last block's output, which is pooled for it. "float" leaves all of these float, as
                    the paper has it
    rescale:        with dorefa, gives each layer the mean size of its weights back, for models without batch norms
    most_weight_bits: no weight gets more bits than that, wherever they are named: 7 for processors whose int8
                    kernels saturate. What flows between layers keeps its bits
    least_gate_bits: gates have so many bits where the activations have fewer [ours]: sigmoids and hard sigmoids that
                    are only multiplied with something, as in SiLU and squeeze-and-excitation. They cost nothing in
                    the file, and at fewer bits than 8 an operation more at run time
    calibration:    float input batches (N, C, H, W), normalised as in training, from which the scales start
    note:           is told in a sentence each what is quantized in another way than the rest, and why, and what was
                    left float unasked

    Returns a new model, in the mode of the old one, that can be used as it is (quantization after training)
    or trained on, best with a small learning rate: where batch norms are folded there are none left that would
    bear a large one. The old model must not be used any more. Float weights and masks of `torch.nn.utils.prune`
    live on, so that masked weights stay zero as integers; `make_permanent` on a copy keeps those zeros. Batch
    norms that no layer can take in stay float, as do layers other than Conv and Linear. Layers keep their names.
    Containers are flattened, but a hook set on the name of one, or of a folded batch norm, sees its output.

    A module that torch.fx cannot follow (its forward branches on values, differs between the modes, or writes into
    a part of a tensor) is kept whole: each layer in it quantizes its own input, and puts out floats. If that is so
    of the model's own forward, the whole model is quantized so, in place, and keeps its class. Calls such as
    `conv2d(x, self.weight)` become layers named after their weight; `nn.MultiheadAttention` becomes its
    projections, products and softmax, of which the softmax stays float. Outputs that the model has in training
    only (auxiliary classifiers) are left out.

    Raises QuantizeError for other numbers of bits or options that do not go together, for a pattern that matches
    no layer, for a model that is quantized already, without calibration; with
    dorefa also for masks and, without rescale, for layers that no batch norm follows. The model is then as it was.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> images = torch.rand(8, 3, 8, 8)
    >>> quantized = quantize(net, images[:1], weights=4, activations=4, calibration=[images])
    >>> quantized(images).shape
    torch.Size([8, 2])

    Source: fake quantization with straight-through gradients (arXiv 1712.05877), scales learned with the
    weights (arXiv 1902.08153), in the layers of Brevitas. Differs from both in learning the logarithm of the
    scale, and in folding batch norms before training instead of simulating the fold. DoReFa: arXiv 1606.06160.
    """
    choice = chosen(
        scheme=scheme,
        weights=weights,
        activations=activations,
        first_and_last=first_and_last,
        overrides=overrides,
        weight_scales=weight_scales,
        weight_range=weight_range,
        activation_range=activation_range,
        percentile=percentile,
        learned_scales=learned_scales,
        batch_norm=batch_norm,
        signed=signed,
        rescale=rescale,
        most_weight_bits=most_weight_bits,
        least_gate_bits=least_gate_bits,
    )
    check_inputs(model, example)
    if choice.is_dorefa:
        dorefa.check_unmasked(model)
    example = example.to(device_of(model))
    expected = outputs_of(copy_model(model).eval(), example)
    prepared = _prepare(model, example, choice, note=note)
    check_same(prepared.model, example, expected)
    quantized = _calibrated(prepared, choice, calibration, channels=example.shape[1])
    # A bias that cannot be an integer must be known before training, not at the export.
    check_final(quantized)
    replace_log(quantized, surgery_log(model))
    record(
        quantized,
        "quantize",
        **choice.written(),
        example=[1, *example.shape[1:]],
        layers=prepared.shapes,
        float_norms=prepared.float_norms,
        kept=prepared.kept,
        inner=prepared.inner,
        made=[name for name in prepared.shapes if name not in dict(model.named_modules())],
    )
    return quantized.train(model.training)


def replay(model: nn.Module, entry: LogEntry) -> nn.Module:
    """Make the change of a "quantize" or "finalize" entry on a fresh model; its scales come with the weights.

    Returns the new model. Writes nothing to its log.
    Raises ModelError if the model is not the one that the entry was written for.
    """
    if entry["verb"] == "finalize":
        return replay_frozen(model, entry)
    # Layers that are made of functional calls and of attention are not in the model yet.
    # Logs from before that was told have none, nor modules that are quantized layer by layer.
    made, kept, inner = entry.get("made", ()), entry.get("kept", {}), entry.get("inner")
    present = {name: shape for name, shape in entry["layers"].items() if name not in made}
    check_shapes(model, present, "quantize")
    choice = Scheme.read(entry)
    example = torch.zeros(entry["example"], device=device_of(model))
    prepared = _prepare(model, example, choice, kept, inner)
    if prepared.shapes != entry["layers"]:
        raise ModelError(
            f'The log of "quantize" names {len(entry["layers"])} layers, this model runs '
            f"{len(prepared.shapes)}: give the model that the checkpoint was made from."
        )
    _put_layers(prepared, choice, measure=False)
    _put_quantizers(prepared, choice, dict.fromkeys(prepared.quantizers, 1.0))
    replace_log(prepared.model, surgery_log(model))
    return prepared.model.train(model.training)


@dataclass(frozen=True)
class _Prepared:
    """A float graph model that has an Identity wherever a quantizer will be.

    bits:        of the weights of each layer to be quantized, by name
    quantizers:  what each Identity becomes, by name
    shapes:      the weight shape of every Conv and Linear layer that runs
    float_norms: batch norms that are not folded, and will not be
    kept:        name -> why, of the modules that are quantized layer by layer; "" is the whole model
    inner:       name -> the layers in it that are, in the order in which the example ran through them
    """

    model: nn.Module
    bits: dict[str, int]
    quantizers: dict[str, Quantizer]
    shapes: dict[str, list[int]]
    float_norms: list[str]
    kept: dict[str, str]
    inner: dict[str, list[str]]


def _prepare(
    model: nn.Module,
    example: Tensor,
    choice: Scheme,
    kept: Mapping[str, str] | None = None,
    inner: Mapping[str, list[str]] | None = None,
    note: Callable[[str], None] | None = None,
) -> _Prepared:
    """Trace a copy, fold its batch norms and put an Identity wherever a quantizer belongs.

    kept, inner: what was found out before, with the example of that time: another may run through other layers
    """
    followed = follow(model, example, kept)
    graph_model = followed.model
    if isinstance(graph_model, QuantizedModel):
        check_weights(graph_model)
        if choice.batch_norm == "fold":
            fold_batch_norms(graph_model)
        shapes = Flow(graph_model, example).shapes
        use_pooling_for_means(graph_model, shapes)
        use_splits_for_chunks(graph_model, shapes)
    kept_norms = foldable_norms(graph_model)
    flow = Flow(graph_model, example, kept_norms, inner)
    if note is not None:
        for sentence in (*followed.notes, *kept_notes(flow, followed.kept)):
            note(sentence)
    overrides = picked(flow, choice)
    wanted = wanted_bits(flow, choice, overrides)
    bits = {name: number for name, (number, _) in wanted.items() if number is not None}
    if choice.is_dorefa and not choice.rescale:
        dorefa.check_norms(flow, bits)
    kept_float = frozenset(name for name, sides in wanted.items() if sides == (None, None))
    placed = placed_groups(flow, choice, overrides, kept_float, note)
    container = free_name(graph_model, "activation_quantizers")
    quantizers = {}
    for group, quantizer in placed:
        name = f"{container}.{group.sites[0].name}"
        quantizers[name] = quantizer
        assert isinstance(graph_model, QuantizedModel)
        insert_after(graph_model, group.sites, name, nn.Identity())
    if isinstance(graph_model, QuantizedModel):
        graph_model.recompile()
    for name in (name for names in flow.inner.values() for name in names):
        inputs: Bits | None = wanted[name][1]
        is_named = any("activations" in given and name in names for names, given in overrides)
        if choice.is_dorefa and inputs is not None and (choice.signed == "float" or not is_named):
            # Of what flows there the sign is not known.
            inputs = choice.signed
        if name not in kept_float and isinstance(inputs, int):
            read_through(graph_model.get_submodule(name), nn.Identity())
            quantizers[f"{name}.{INPUT}"] = Quantizer(inputs, is_unsigned=False, is_fixed=False)
    all_shapes = layer_shapes(graph_model, sorted(flow.layers))
    left = float_norms(graph_model, kept_norms)
    return _Prepared(graph_model, bits, quantizers, all_shapes, left, followed.kept, flow.inner)


def _calibrated(
    prepared: _Prepared, choice: Scheme, calibration: Iterable[Tensor], channels: int
) -> nn.Module:
    """Put Brevitas layers and quantizers in place, with scales and batch-norm statistics of the calibration."""
    model, keeps_norms = prepared.model, choice.batch_norm == "keep"
    if keeps_norms:
        calibration = list(calibration)
        for number, batch in enumerate(calibration, start=1):
            check_batch(batch, channels, number)
    measured = {name: wanted for name, wanted in prepared.quantizers.items() if not wanted.is_fixed}
    if choice.is_dorefa:
        # What flows between the layers is of another size than in the float model: its grids are measured with
        # the weights and the other grids in place.
        _put_layers(prepared, choice)
        _put_quantizers(prepared, choice, {name: 1.0 for name in prepared.quantizers if name not in measured})
        reestimate_batch_norms(model, calibration)
    seen = observe(model, list(measured), calibration, channels)
    if not choice.is_dorefa:
        _put_layers(prepared, choice)
    ends = {
        name: seen[name].end(choice.activation_range, wanted.bits, wanted.is_unsigned, choice.percentile)
        for name, wanted in measured.items()
    }
    _put_quantizers(prepared, choice, ends)
    if keeps_norms:
        reestimate_batch_norms(model, calibration)
    return model


def _put_layers(prepared: _Prepared, choice: Scheme, measure: bool = True) -> None:
    """Give the layers their Brevitas form. measure: False where the ends of grids will be loaded."""
    from compress_aug.quantization import layers

    model = prepared.model
    device = device_of(model)
    # The layers draw initial weights, which are then replaced: whoever trains on must not notice.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for name, bits in prepared.bits.items():
            layer = model.get_submodule(name)
            if choice.is_dorefa:
                made = layers.dorefa_layer(layer, bits, choice.rescale)
            else:
                how, ends = _weight_ends(layer, bits, choice, measure)
                made = layers.quantized_layer(layer, bits, scales=choice.weight_scales, how=how, ends=ends)
            keep_input(layer, made)
            model.set_submodule(name, made.to(device))


@torch.no_grad()
def _weight_ends(layer: nn.Module, bits: int, choice: Scheme, measure: bool) -> tuple[str, Tensor | None]:
    """How `layers.quantized_layer` finds the ends of a weight's grids, and the ends where they are measured."""
    from compress_aug.quantization import layers

    by_formula = choice.weight_range in ("auto", "max")
    if by_formula and choice.learned_scales:
        return choice.weight_range, None
    how = "measured" if choice.learned_scales else "fixed"
    rows = layers.weight_rows(layer, choice.weight_scales)
    if not measure:
        return how, torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
    if by_formula:
        return how, layers.formula_ends(rows, bits, choice.weight_range)
    return how, weight_ends(rows, bits, choice.weight_range, choice.percentile)


def _put_quantizers(prepared: _Prepared, choice: Scheme, ends: Mapping[str, float]) -> None:
    """Put a quantizer wherever an Identity waits for one that has an end of its grid."""
    from compress_aug.quantization import fast_layers, layers

    model = prepared.model
    device = device_of(model)
    for name, end in ends.items():
        wanted = prepared.quantizers[name]
        if wanted.is_fixed:
            made = layers.dorefa_quantizer(wanted.bits)
        else:
            made = layers.quantizer(wanted.bits, end, wanted.is_unsigned, choice.learned_scales)
        model.set_submodule(name, made.to(device))
    if isinstance(model, QuantizedModel):
        defer_rectifiers(model, fast_layers.QuantIdentity)
