"""A model as an ONNX file that fuses to integer kernels, with what its user must know written inside."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from compress_aug.deploy.exporter import LAST_OPSET, export_graph, is_brevitas
from compress_aug.deploy.graph import Array
from compress_aug.deploy.naming import name_nodes
from compress_aug.deploy.narrow import with_opset
from compress_aug.deploy.proof import PROOF_IMAGES, Rewrite, RewriteProof
from compress_aug.deploy.rewrite import rewrite, rewrite_float, rewrite_for_tensorrt
from compress_aug.deploy.runtime import Session
from compress_aug.errors import ExportError
from compress_aug.folders import written_whole
from compress_aug.surgery import copy_model, fold_masks


@dataclass(frozen=True)
class Written:
    """How a file was written.

    opset:    the version of the ONNX operators in it
    notes:    one sentence for each thing that differs from what was asked for
    rewrites: what was done to the graph, and by how much each of it moved a logit (0: exact)
    """

    opset: int
    notes: tuple[str, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()


def write(
    model: nn.Module,
    path: Path,
    *,
    image_shape: tuple[int, int, int],
    metadata: Mapping[str, str] | None = None,
    finalize: Callable[[nn.Module], nn.Module] | None = None,
    opset: int = 13,
    pack: bool = True,
    form: Literal["onnxruntime", "tensorrt"] = "onnxruntime",
    images: Tensor | None = None,
) -> Written:
    """Write a float or a Brevitas model as an ONNX file: input `input` (N, C, H, W), output `logits` (N, K).

    image_shape: (C, H, W) of one image; N stays free
    metadata:    written into the file, for `read_metadata` and for the device (see `image_metadata`)
    finalize:    a last change to the copy that is written, such as moving biases to the integer grid
    opset:       13 loads on runtimes back to 2021. A model with scaled_dot_product_attention (a ViT, say)
                 needs 14 and gets it; the result says so. 21 stores weights of 4 bits as INT4 tensors, 25 those
                 of 2 bits as INT2 too, which loads faster than packed ones, on runtimes that know them
    pack:        store weights of 4 bits and fewer several to a byte, which the runtime unpacks when it loads
                 the file; False for a runtime that cannot
    form:        whose integer kernels a quantized model is written for. "tensorrt": signed integers with zero
                 points 0 between QuantizeLinear and DequantizeLinear, biases in float, nothing packed; values
                 that are never negative must have 7 bits or fewer for it
    images:      normalised float images (N, C, H, W), a few of which prove that no rewrite moves a number;
                 without them, noise does

    The model itself stays as it is. Masks become zeros in the file. Layers and quantizers in the file bear the
    names of their modules. A quantized model is rewritten so that the runtime finds its integer kernels, and
    after each rewrite the outputs must be, to the last bit, those of the graph before. The file appears whole,
    and only after it ran on one and on two images; whether the runtime then computes what the model computes
    is what `check_parity` says.

    Raises ExportError if the model cannot be traced, has an operator that ONNX lacks, returns anything but
    logits, or fixes the number of images; if its quantizers do not fit the form; or if the file cannot be
    written. Raises ParityError, naming the rewrite, if one changed an output.

    >>> from compress_aug.deploy import write
    >>> write(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), Path("model.onnx"), image_shape=(3, 4, 4))
    Written(opset=13, notes=(), rewrites=())
    """
    final = copy_model(model).cpu().float().eval()
    if finalize is not None:
        final = finalize(final).eval()
    final = fold_masks(final)
    example = torch.zeros(1, *image_shape)
    later = opset if opset > LAST_OPSET else None
    graph, used, said = export_graph(final, example, opset if later is None else 13)
    if len(graph.graph.output) != 1:
        raise ExportError(
            f"The model must return one tensor of logits, but it returns {len(graph.graph.output)} tensors."
        )
    name_nodes(graph, final, example)
    if later is not None:
        graph, used = with_opset(graph, later), later
    notes = list(said)
    rewrites: tuple[Rewrite, ...] = ()
    if is_brevitas(final) or any(node.op_type == "Shape" for node in graph.graph.node):
        proof = RewriteProof(graph, _proof_images(images, image_shape))
        if not is_brevitas(final):
            graph = rewrite_float(graph, watch=proof)
        elif form == "tensorrt":
            graph = rewrite_for_tensorrt(graph, watch=proof)
        else:
            graph = rewrite(graph, pack=pack, opset=used, watch=proof)
        notes, rewrites = notes + proof.notes, tuple(proof.rewrites)
    graph.producer_name = "compress_aug"
    helper.set_model_props(graph, {key: str(value) for key, value in (metadata or {}).items()})
    try:
        with written_whole(path) as temporary:
            onnx.save(graph, str(temporary))
            _check_runs(temporary, image_shape)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}.") from error
    return Written(used, tuple(notes), rewrites)


def _proof_images(images: Tensor | None, image_shape: tuple[int, int, int]) -> Array:
    if images is None:
        images = torch.randn(PROOF_IMAGES, *image_shape, generator=torch.Generator().manual_seed(0))
    return images[:PROOF_IMAGES].cpu().float().numpy()


def _check_runs(path: Path, image_shape: tuple[int, int, int]) -> None:
    """Run the file on one image and on two. Raises ExportError if it gives anything but logits for each."""
    session = Session(path)
    fixed = (
        "The model fixes the number of images when it is traced, so that the file runs on one image but not "
        "on two: write x.flatten(1) instead of a reshape to a fixed size."
    )
    for images in (1, 2):
        try:
            logits = session.run(np.zeros((images, *image_shape), np.float32))
        except ExportError as error:
            raise (error if images == 1 else ExportError(fixed)) from error
        if images == 2 and len(logits) == 1:
            raise ExportError(fixed)
        if logits.ndim != 2 or len(logits) != images:
            raise ExportError(
                f"The model must return logits of shape ({images}, classes) for {images} images, "
                f"but it returns {logits.shape}."
            )


def image_metadata(
    *,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
) -> dict[str, str]:
    """The metadata that names classes and prepares images on the device, each value as JSON.

    image_shape: (C, H, W)
    mean, std:   per channel, of pixels in 0..1
    classes:     class number k is classes[k]

    >>> image_metadata(image_shape=(1, 8, 8), mean=[0.3], std=[0.4], classes=["no", "yes"])
    {'image_shape': '[1, 8, 8]', 'mean': '[0.3]', 'std': '[0.4]', 'classes': '["no", "yes"]'}
    """
    values = {"image_shape": image_shape, "mean": mean, "std": std, "classes": classes}
    return {key: json.dumps(list(value), ensure_ascii=False) for key, value in values.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """What `write` was given as metadata.

    Raises ExportError if the file is missing or the runtime cannot load it.
    """
    return Session(path).metadata
