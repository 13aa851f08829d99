"""Checks of features that need packages beyond the pinned ones.

    python -m bundle.bench.extras onnx      # pip install onnx onnxscript onnxruntime
    python -m bundle.bench.extras mlflow    # pip install mlflow
    python -m bundle.bench.extras schema    # pip install jsonschema; the schema from its address

``onnx``: networks of three sizes as ONNX models, compared with the eager ones. ``mlflow``: a small
training with ``--tracking mlflow``, and the losses that MLflow recorded. ``schema``: MONAI's
verify_metadata. mlflow pins other versions of some packages, so use a separate environment. The
status is 0 if the check passes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--learned_atlas#device=cpu", "--learned_atlas#dtype=float32",
    "--learned_atlas#model#enc_features=[4,4]", "--learned_atlas#model#dec_features=[4,4,4]",
    "--learned_atlas#optimizer#epochs=3", "--learned_atlas#refine#rounds=0",
    "--learned_atlas#refine#network_epochs=1",
)  # fmt: skip


def check_onnx(folder: Path) -> None:
    """Export networks of three sizes, with one and two templates, in three and two dimensions."""
    import torch

    from scripts.atlas.export_model import save_program
    from scripts.atlas.network import AtlasNetwork
    from scripts.settings.atlas import LearnedAtlasConfig

    model = {"enc_features": [4, 4], "dec_features": [4, 4, 4], "int_steps": 5}
    for shape, k in (((12, 16, 8), 1), ((13, 11, 9), 2), ((17, 12), 1)):
        torch.manual_seed(0)
        settings = LearnedAtlasConfig.load({"model": {**model, "n_templates": k}})
        network = AtlasNetwork(
            torch.rand(k, 1, *shape) * 3,
            settings.loss.log_offset,
            enc_features=settings.model.enc_features,
            dec_features=settings.model.dec_features,
            int_steps=settings.model.int_steps,
            description={"format": 1, "settings": settings.as_dict()},
        )
        torch.nn.init.normal_(network.unet.field.weight, std=0.05)
        torch.save(network.state_dict(), folder / "model.pt")
        difference = save_program(folder / "model.pt", folder / "atlas.onnx")
        print(f"onnx {shape}, {k} templates: differs by {difference:.1g} of the largest density")


def check_mlflow(folder: Path) -> None:
    """Train with tracking, and read back what was tracked."""
    from mlflow import MlflowClient

    from scripts.phantom import write_demo_cohort

    write_demo_cohort(folder / "demo", subjects=5, held_out=0, shape=(20, 24, 20))
    store = f"sqlite:///{folder}/mlflow.db"
    command = [
        sys.executable, "-m", "monai.bundle", "run", "training",
        "--config_file", "configs/train.yaml", "--tracking", "mlflow", "--tracking_uri", store,
        "--output_dir", str(folder / "output"), "--ckpt_dir", str(folder / "models"),
        "--dataset_dir", str(folder / "demo"), *TINY,
    ]  # fmt: skip
    # MLflow 3 requires its file store to be selected by name; ours is a database.
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    client = MlflowClient(store)
    runs = [
        run
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
    ]
    if len(runs) != 1:
        raise SystemExit(f"mlflow has {len(runs)} runs, not one")
    values = {
        name: len(client.get_metric_history(runs[0].info.run_id, name))
        for name in runs[0].data.metrics
    }
    print("mlflow: values by metric:", json.dumps(values))
    print("mlflow: status:", runs[0].info.status)
    if not any("loss" in name.lower() and count >= 3 for name, count in values.items()):
        raise SystemExit("mlflow has no losses of the training")


def check_schema(folder: Path) -> None:
    """MONAI's check of the metadata against the zoo's schema."""
    command = [
        sys.executable, "-m", "monai.bundle", "verify_metadata", "--meta_file",
        str(ROOT / "configs" / "metadata.json"), "--filepath", str(folder / "schema.json"),
    ]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True)


def main() -> None:
    """Run the selected check."""
    checks = {"onnx": check_onnx, "mlflow": check_mlflow, "schema": check_schema}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=checks)
    with tempfile.TemporaryDirectory() as folder:
        checks[parser.parse_args().what](Path(folder))


if __name__ == "__main__":
    main()
