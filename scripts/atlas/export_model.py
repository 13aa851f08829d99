"""A published network as a standalone program: TorchScript by tracing, `torch.export`, ONNX.

    python -m scripts.atlas.export_model models/model.pt tract_density_atlas.ts
    python -m scripts.atlas.export_model models/model.pt tract_density_atlas.pt2
    python -m scripts.atlas.export_model models/model.pt tract_density_atlas.onnx

The program maps a log density ``(1, C, *shape)`` to the template's density in the subject's space,
as the network does in evaluation mode. Its shape is fixed, because the template is part of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import published_network
from scripts.errors import CheckpointError, ConfigurationError, TractAtlasError
from scripts.runtime.storage import write_whole

__all__ = ["exported_program", "onnx_program", "save_program", "traced_program"]

_TOLERANCE = 1e-5  # of the template's largest density
_SUFFIXES = {".ts": "TorchScript", ".pt2": "torch.export", ".onnx": "ONNX"}
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONNX_OPERATORS = 20  # the first version whose GridSample supports volumes

Program = Callable[[torch.Tensor], torch.Tensor]


def _example(network: AtlasNetwork) -> torch.Tensor:
    """An input that differs from the template, so that displacements aren't all zero."""
    template = network.template.detach()[:1]
    return template.roll(1, dims=2) * 0.9


def traced_program(network: AtlasNetwork) -> torch.jit.ScriptModule:
    """The network in evaluation as TorchScript (scripting fails on MONAI's ``Warp``)."""
    with warnings.catch_warnings():
        # Sizes become constants, which is correct: the template has only one size.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        program = torch.jit.trace(network.eval(), _example(network), check_trace=False)
    assert isinstance(program, torch.jit.ScriptModule)
    return program


def exported_program(network: AtlasNetwork) -> torch.export.ExportedProgram:
    """The network in evaluation as an exported graph."""
    with torch.no_grad():
        return torch.export.export(network.eval(), (_example(network),))


def onnx_program(network: AtlasNetwork) -> bytes:
    """The network in evaluation as an ONNX model; input ``image``, output ``pred``.

    Raises:
        ConfigurationError: a package that this needs isn't installed.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"an ONNX model needs {' and '.join(missing)}; install them with "
            f"pip install {' '.join(_ONNX_PACKAGES)}"
        )
    with torch.no_grad():
        program = torch.onnx.export(
            network.eval(), (_example(network),), dynamo=True, verbose=False,
            opset_version=_ONNX_OPERATORS, input_names=["image"], output_names=["pred"],
        )  # fmt: skip
    assert program is not None
    return program.model_proto.SerializeToString()


def _recorded(network: AtlasNetwork, suffix: str) -> tuple[bytes, Program]:
    """The program's file, and the program as it is read from there."""
    written = io.BytesIO()  # writers check the final name; write_whole has another until the end
    if suffix == ".ts":
        torch.jit.save(traced_program(network), written)
        return written.getvalue(), torch.jit.load(io.BytesIO(written.getvalue()))
    if suffix == ".pt2":
        torch.export.save(exported_program(network), written)
        return written.getvalue(), torch.export.load(io.BytesIO(written.getvalue())).module()
    content = onnx_program(network)
    from onnxruntime import InferenceSession

    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def save_program(model: str | Path, output: str | Path) -> float:
    """Write a published model as a program, after comparing it with its network.

    Args:
        model: ``<ckpt_dir>/model.pt``.
        output: ``*.ts`` for TorchScript, ``*.pt2`` for `torch.export`, ``*.onnx`` for ONNX.

    Returns:
        The largest difference between the written program and the network, divided by the
        template's largest density.

    Raises:
        ConfigurationError: ``output`` has another suffix, or a package for it isn't installed.
        CheckpointError: ``model`` can't be used, or the program's output differs from the
        network's.
        StorageError: ``output`` can't be written.
    """
    suffix = Path(output).suffix
    if suffix not in _SUFFIXES:
        known = " or ".join(f"{one} ({kind})" for one, kind in _SUFFIXES.items())
        raise ConfigurationError(f"{output}: must end with {known}")
    network = published_network(model)
    content, program = _recorded(network, suffix)
    image = _example(network) * 1.1  # not the image that was used for recording the program
    with torch.no_grad():
        expected = network(image)
        difference = (program(image) - expected).abs().max() / expected.max().clamp_min(1e-30)
    if not difference <= _TOLERANCE:
        raise CheckpointError(
            f"{model}: the program's densities differ from the network's by "
            f"{float(difference):.2g} of the largest, more than {_TOLERANCE:g}; it isn't written"
        )
    with write_whole(output) as staged:
        staged.write_bytes(content)
    return float(difference)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(prog="python -m scripts.atlas.export_model")
    parser.add_argument("model", type=Path, help="<ckpt_dir>/model.pt")
    parser.add_argument(
        "output", type=Path, help="a .ts (TorchScript), .pt2 (torch.export) or .onnx"
    )
    options = parser.parse_args(arguments)
    try:
        difference = save_program(options.model, options.output)
    except TractAtlasError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.output}: differs from the network by {difference:.1g} of the largest density")
    return 0


if __name__ == "__main__":
    sys.exit(main())
