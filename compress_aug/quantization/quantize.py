"""Turn a float model into one that computes as integer kernels will: Brevitas layers and learned scales."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from compress_aug.errors import ModelError
from compress_aug.quantization.calibrate import observe
from compress_aug.quantization.checks import check_bits, check_inputs, check_same, outputs_of
from compress_aug.quantization.finalize import integer_layers, snapped_bias
from compress_aug.quantization.folding import check_weights, fold_batch_norms
from compress_aug.quantization.graph import QuantizedModel, traced
from compress_aug.quantization.rewriting import (
    free_name,
    insert_after,
    use_pooling_for_means,
    use_splits_for_chunks,
)
from compress_aug.quantization.scale_groups import Flow, ScaleGroup, first_layers, last_layers, scale_groups
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

Ends = int | Literal["float"]


def quantize(
    model: nn.Module,
    example: Tensor,
    *,
    weights: int | None = 8,
    activations: int | None = 8,
    first_and_last: Ends = 8,
    calibration: Iterable[Tensor] = (),
) -> nn.Module:
    """Replace Conv and Linear layers by Brevitas ones and put learned quantizers between them.

    example:        float (1, C, H, W), shows the shapes that flow through the model
    weights:        bits of the weights, 2..8, one scale per output channel; None leaves them float
    activations:    bits of the values between layers, 2..8, one learned scale each; None leaves them float
    first_and_last: bits of the first and last layer's weights, of the network's input and of what the last
                    layer reads; "float" leaves these layers and what only they read in float
    calibration:    float input batches (N, C, H, W), normalised as in training, from which the scales start

    Returns a new model, in the mode of the old one, that can be used as it is (quantization after training)
    or trained on, best with a small learning rate: there are no batch norms left that would bear a large
    one. The old model must not be used any more. Float weights and masks of `torch.nn.utils.prune` live on,
    so that masked weights stay zero as integers; `make_permanent` on a copy keeps those zeros. Batch norms are
    folded into the layer before them; those that cannot be stay float, as do layers other than Conv and
    Linear. Layers keep their names. Containers are flattened, but a hook set on the name of one, or of a
    folded batch norm, sees its output.

    Raises QuantizeError for other numbers of bits, for a model that is quantized already or that torch.fx
    cannot trace, without calibration; the model is then as it was.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> images = torch.rand(8, 3, 8, 8)
    >>> quantized = quantize(net, images[:1], weights=4, activations=4, calibration=[images])
    >>> quantized(images).shape
    torch.Size([8, 2])

    Source: fake quantization with straight-through gradients (arXiv 1712.05877), scales learned with the
    weights (arXiv 1902.08153), in the layers of Brevitas. Differs from both in learning the logarithm of the
    scale, and in folding batch norms before training instead of simulating the fold.
    """
    check_bits(weights, activations, first_and_last)
    check_inputs(model, example)
    choice = _Choice(weights, activations, first_and_last)
    example = example.to(device_of(model))
    expected = outputs_of(copy_model(model).eval(), example)
    prepared = _prepare(model, example, choice)
    check_same(prepared.model, example, expected)
    seen = observe(prepared.model, list(prepared.quantizers), calibration, channels=example.shape[1])
    ends = {
        name: seen[name].best_end(wanted.bits, wanted.is_unsigned)
        for name, wanted in prepared.quantizers.items()
    }
    quantized = _convert(prepared, ends)
    for name, layer, source in integer_layers(quantized):
        # A bias that cannot be an integer must be known before training, not at the export.
        snapped_bias(name, layer, source)
    replace_log(quantized, surgery_log(model))
    record(
        quantized,
        "quantize",
        weights=weights,
        activations=activations,
        first_and_last=first_and_last,
        example=[1, *example.shape[1:]],
        layers=prepared.shapes,
        float_norms=prepared.float_norms,
    )
    return quantized.train(model.training)


def replay(model: nn.Module, entry: LogEntry) -> nn.Module:
    """Make the change of a "quantize" or "finalize" entry on a fresh model; its scales come with the weights.

    Returns the new model. Writes nothing to its log.
    Raises ModelError if the model is not the one that the entry was written for.
    """
    if entry["verb"] == "finalize":
        return model
    check_shapes(model, entry["layers"], "quantize")
    choice = _Choice(entry["weights"], entry["activations"], entry["first_and_last"])
    prepared = _prepare(model, torch.zeros(entry["example"], device=device_of(model)), choice)
    if prepared.shapes.keys() != entry["layers"].keys():
        raise ModelError(
            f'The log of "quantize" names {len(entry["layers"])} layers, this model runs '
            f"{len(prepared.shapes)}: give the model that the checkpoint was made from."
        )
    quantized = _convert(prepared, dict.fromkeys(prepared.quantizers, 1.0))
    replace_log(quantized, surgery_log(model))
    return quantized.train(model.training)


@dataclass(frozen=True)
class _Choice:
    weights: int | None
    activations: int | None
    first_and_last: Ends

    def bits_of(self, is_outermost: bool, otherwise: int) -> int:
        return self.first_and_last if is_outermost and self.first_and_last != "float" else otherwise


@dataclass(frozen=True)
class _Quantizer:
    bits: int
    is_unsigned: bool


@dataclass(frozen=True)
class _Prepared:
    """A float graph model that has an Identity wherever a quantizer will be.

    bits:        of the weights of each layer to be quantized, by name
    quantizers:  what each Identity becomes, by name
    shapes:      the weight shape of every Conv and Linear layer that runs
    float_norms: batch norms that were not folded
    """

    model: QuantizedModel
    bits: dict[str, int]
    quantizers: dict[str, _Quantizer]
    shapes: dict[str, list[int]]
    float_norms: list[str]


def _prepare(model: nn.Module, example: Tensor, choice: _Choice) -> _Prepared:
    """Trace a copy, fold its batch norms and put an Identity wherever a quantizer belongs."""
    graph_model = traced(copy_model(model).eval())
    check_weights(graph_model)
    float_norms = fold_batch_norms(graph_model)
    shapes = Flow(graph_model, example).shapes
    use_pooling_for_means(graph_model, shapes)
    use_splits_for_chunks(graph_model, shapes)
    flow = Flow(graph_model, example)
    ends = first_layers(flow) | last_layers(flow)
    kept_float = ends if choice.first_and_last == "float" else frozenset()
    bits = {}
    if choice.weights is not None:
        bits = {name: choice.bits_of(name in ends, choice.weights) for name in flow.layers - kept_float}
    quantizers = {}
    if choice.activations is not None:
        groups = scale_groups(flow, kept_float)
        quantizers = _insert_identities(graph_model, groups, choice, choice.activations)
    return _Prepared(
        graph_model, bits, quantizers, layer_shapes(graph_model, sorted(flow.layers)), float_norms
    )


def _insert_identities(
    graph_model: QuantizedModel, groups: list[ScaleGroup], choice: _Choice, bits: int
) -> dict[str, _Quantizer]:
    container = free_name(graph_model, "activation_quantizers")
    quantizers = {}
    for group in groups:
        name = f"{container}.{group.sites[0].name}"
        quantizers[name] = _Quantizer(choice.bits_of(group.is_outermost, bits), group.is_unsigned)
        insert_after(graph_model, group.sites, name, nn.Identity())
    return quantizers


def _convert(prepared: _Prepared, ends: dict[str, float]) -> QuantizedModel:
    """Put Brevitas layers and quantizers in place."""
    from compress_aug.quantization import layers

    model = prepared.model
    device = device_of(model)
    # The layers draw initial weights, which are then replaced: whoever trains on must not notice.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for name, bits in prepared.bits.items():
            model.set_submodule(name, layers.quantized_layer(model.get_submodule(name), bits))
        for name, wanted in prepared.quantizers.items():
            model.set_submodule(name, layers.quantizer(wanted.bits, ends[name], wanted.is_unsigned))
    return model.to(device)
