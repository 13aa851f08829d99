"""Programs made of a published network give what the network gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scripts.atlas import export_model as module
from scripts.atlas.network import AtlasNetwork
from scripts.errors import CheckpointError, ConfigurationError
from scripts.settings.atlas import LearnedAtlasConfig

MODEL = {
    "enc_features": [4, 4], "dec_features": [4, 4, 4], "int_steps": 2, "passes": [2, 1, 1]
}  # fmt: skip


def published(folder: Path, shape: tuple[int, ...], k: int = 1) -> tuple[AtlasNetwork, Path]:
    """A network whose fields move by about a voxel, and its file."""
    torch.manual_seed(0)
    settings = LearnedAtlasConfig.load(
        {"model": {**MODEL, "n_templates": k}, "refine": {"network_epochs": 1}}
    )
    grid = {"shape": list(shape), "affine": np.eye(4).tolist(), "sform_code": 1, "qform_code": 1}
    description = {
        "format": 1, "settings": settings.as_dict(), "cohort": "made here", "grid": grid,
        "crop": {"start": [0] * len(shape), "stop": list(shape)}, "normalisation": "none",
        "tracts": [],
    }  # fmt: skip
    network = AtlasNetwork(
        torch.rand(k, 1, *shape) * 3, settings.loss.log_offset, **MODEL, description=description
    )
    nn.init.normal_(network.unet.field.weight, std=0.05)
    assert network.unet.field.bias is not None
    nn.init.normal_(network.unet.field.bias, std=0.5)
    path = folder / "model.pt"
    torch.save(network.state_dict(), path)
    return network.eval(), path


def opened(path: Path) -> torch.nn.Module:
    if path.suffix == ".ts":
        return torch.jit.load(path)
    return torch.export.load(path).module()


@pytest.mark.parametrize("suffix", [".ts", ".pt2"])
@pytest.mark.parametrize(("shape", "k"), [((12, 16, 8), 1), ((13, 11, 9), 2), ((17, 12), 1)])
def test_program_equals_network(tmp_path, suffix, shape, k):
    network, model = published(tmp_path, shape, k)
    output = tmp_path / f"atlas{suffix}"
    assert module.save_program(model, output) <= 1e-5
    program = opened(output)
    for seed in (1, 2):  # with K > 1 they needn't look like the same template
        torch.manual_seed(seed)
        image = torch.rand(1, 1, *shape) * 3
        with torch.no_grad():
            expected = network(image)
            result = program(image)
        assert not torch.allclose(expected, network.template_density()[:1])  # something moved
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_exporting_leaves_the_network_as_it_was(tmp_path):
    """Export works on fake tensors; none may stay behind."""
    network, _ = published(tmp_path, (9, 10, 7))
    image = torch.rand(1, 1, 9, 10, 7)
    with torch.no_grad():
        before = network(image)
        module.exported_program(network)
        assert torch.equal(network(image), before)


def test_a_program_that_differs_is_not_written(tmp_path, monkeypatch):
    _, model = published(tmp_path, (12, 10))
    other, _ = published(tmp_path, (12, 10))
    with torch.no_grad():
        other.template.mul_(1.5)
    wrong = module.traced_program(other)
    monkeypatch.setattr(module, "traced_program", lambda network: wrong)
    with pytest.raises(CheckpointError, match="differ from the network's"):
        module.save_program(model, tmp_path / "atlas.ts")
    assert not (tmp_path / "atlas.ts").exists()


def test_onnx_without_its_packages_is_one_message(tmp_path, monkeypatch):
    """With them, `python -m bundle.bench.extras onnx` exports and compares."""
    _, model = published(tmp_path, (12, 10))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install onnx onnxscript onnxruntime"):
        module.save_program(model, tmp_path / "atlas.onnx")
    assert not (tmp_path / "atlas.onnx").exists()


def test_command_line(tmp_path, capsys):
    _, model = published(tmp_path, (12, 10))
    assert module.main([str(model), str(tmp_path / "atlas.ts")]) == 0
    assert "differs from the network by" in capsys.readouterr().out
    assert module.main([str(model), str(tmp_path / "atlas.tflite")]) == ConfigurationError.exit_code
    assert ".ts (TorchScript) or .pt2" in capsys.readouterr().err
    assert module.main(["none.pt", str(tmp_path / "atlas.ts")]) == CheckpointError.exit_code
    assert "none.pt: no such model" in capsys.readouterr().err
