"""A fresh model becomes the compressed one: every chain of changes, saved and rebuilt, computes the same bits."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn
from toys import TinyResidual, tiny_net

from compress_aug import checkpoint, measure
from compress_aug.channels import cut_channels
from compress_aug.errors import RunFolderError
from compress_aug.inheritance import attach_layers, drop_layers
from compress_aug.pruning import mask_smallest
from compress_aug.quantization import finalize, quantize
from compress_aug.surgery import copy_model, make_permanent, masked_layers, record, surgery_log

SHAPE = (3, 8, 8)


def example():
    return torch.zeros(1, *SHAPE)


def batches():
    torch.manual_seed(1)
    return [torch.randn(16, *SHAPE) for _ in range(2)]


def trained(model):
    """A few steps, so that weights, statistics and scales all differ from a fresh model's."""
    torch.manual_seed(2)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, *SHAPE)).square().mean().backward()
        optimizer.step()
    return model


def int8(model):
    return quantize(model, example(), weights=8, activations=8, calibration=batches())


CHAINS = {
    "nothing": lambda m: trained(m),
    "mask": lambda m: trained(mask_smallest(m, 0.5)),
    "mask twice": lambda m: trained(mask_smallest(trained(mask_smallest(m, 0.3)), 0.6)),
    "mask, permanent": lambda m: trained(make_permanent(mask_smallest(m, 0.5))),
    "mask, permanent, mask": lambda m: trained(mask_smallest(make_permanent(mask_smallest(m, 0.5)), 0.6)),
    "attach": lambda m: trained(attach_layers(m, example(), blocks=2)),
    "attach, drop": lambda m: trained(drop_layers(trained(attach_layers(m, example(), blocks=2)))),
    "attach, drop, attach": lambda m: attach_layers(
        drop_layers(attach_layers(m, example(), blocks=2)), example(), blocks=1
    ),
    "cut": lambda m: trained(cut_channels(m, example(), until={"ratio": 0.5}, round_to=1)),
    "cut, mask": lambda m: trained(
        mask_smallest(cut_channels(m, example(), until={"ratio": 0.5}, round_to=1), 0.4)
    ),
    "quantize": lambda m: trained(int8(trained(m))),
    "mask, quantize": lambda m: trained(int8(trained(mask_smallest(m, 0.5)))),
    "mask, quantize, mask": lambda m: trained(mask_smallest(int8(mask_smallest(m, 0.3)), 0.6)),
    "mask, attach, drop, cut, quantize, finalize": lambda m: finalize(
        trained(
            int8(
                cut_channels(
                    drop_layers(trained(attach_layers(mask_smallest(m, 0.4), example(), blocks=1))),
                    example(),
                    until={"ratio": 0.25},
                    round_to=1,
                )
            )
        )
    ),
}


@pytest.mark.parametrize("net", [tiny_net, TinyResidual])
@pytest.mark.parametrize("chain", list(CHAINS))
def test_rebuilt_it_computes_the_same(chain, net, tmp_path):
    model = CHAINS[chain](net())
    path = tmp_path / "model.safetensors"
    checkpoint.save(model, path, about="toy")
    torch.manual_seed(77)
    base = net()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_()
    rebuilt = checkpoint.rebuild(base, path)
    x = torch.randn(8, *SHAPE)
    assert torch.equal(model.eval()(x), rebuilt.eval()(x))
    assert surgery_log(rebuilt) == surgery_log(model)
    assert measure.sparsity(rebuilt) == measure.sparsity(model)
    assert checkpoint.read_extra(path) == {"about": "toy"}
    # Training goes on as it would have: no statistics are collected anew, no mask is forgotten.
    after = [trained(m).eval()(x) for m in (copy_model(model), rebuilt)]
    assert torch.equal(*after)


def test_a_wrong_base_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(mask_smallest(tiny_net(), 0.5), path)
    with pytest.raises(RunFolderError, match="give the model that the checkpoint was made from"):
        checkpoint.rebuild(tiny_net(width=16), path)
    checkpoint.save(tiny_net(), path)
    with pytest.raises(RunFolderError, match="Give the model that the checkpoint was made from"):
        checkpoint.rebuild(tiny_net(width=16), path)


def test_tied_weights_and_odd_layouts_are_saved(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    conv = nn.Sequential(model, nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    path = tmp_path / "model.safetensors"
    checkpoint.save(conv, path)
    with safe_open(path, framework="pt") as opened:
        assert set(opened.keys()) == set(conv.state_dict())


def test_a_rebuilt_masked_layer_shows_its_zeros_before_it_runs(tmp_path):
    pruned = mask_smallest(tiny_net(), 0.5)
    path = tmp_path / "model.safetensors"
    checkpoint.save(pruned, path)
    other = tiny_net()
    with torch.no_grad():
        other[0].weight.add_(1.0)
    rebuilt = checkpoint.rebuild(other, path)
    layers = masked_layers(pruned)
    assert len(layers) == 3
    for name, layer in layers.items():
        assert torch.equal(rebuilt.get_submodule(name).weight, layer.weight)


def test_a_broken_or_strange_file_is_one_sentence(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not at all")
    with pytest.raises(RunFolderError, match="is not a checkpoint"):
        checkpoint.read_log(path)
    with pytest.raises(RunFolderError, match="is not a checkpoint"):
        checkpoint.rebuild(tiny_net(), tmp_path / "missing.safetensors")


def test_verbs_of_ones_own(tmp_path):
    model = tiny_net()
    model.append(nn.Linear(4, 4))
    record(model, "append", size=4)
    path = tmp_path / "model.safetensors"
    checkpoint.save(model, path)

    def replay(base, entry):
        base.append(nn.Linear(entry["size"], entry["size"]))
        return base

    with pytest.raises(RunFolderError, match='the change "append"'):
        checkpoint.rebuild(tiny_net(), path)
    rebuilt = checkpoint.rebuild(tiny_net(), path, {"append": replay})
    assert set(rebuilt.state_dict()) == set(model.state_dict())


def test_the_log_is_readable_without_torch(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(mask_smallest(tiny_net(), 0.5), path)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    (entry,) = json.loads(header["__metadata__"]["log"])
    assert entry["verb"] == "mask"


def test_another_number_type_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "model.safetensors"
    model = mask_smallest(tiny_net().double(), 0.5)
    checkpoint.save(model, path)
    with pytest.raises(
        RunFolderError, match=r"stored as torch\.float64, .* Give the model with \.to\(torch\.float64"
    ):
        checkpoint.rebuild(tiny_net(), path)
    loaded = checkpoint.rebuild(tiny_net().double(), path)
    inputs = example().double()
    assert torch.equal(loaded.eval()(inputs), model.eval()(inputs))
