"""A check of the packed bundle under MONAI Label: listing, inference, training, inference again.

Everything goes through MONAI Label's REST interface, as with its viewers. The answers are compared
with the results of the bundle in the repository's environment.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np

from bundle.monai_label.environment import LabelCheckError, LabelEnvironment
from bundle.packing import pack
from bundle.workshop import clean_environment
from scripts.atlas.published_model import published_network
from scripts.phantom import write_demo_cohort
from scripts.runtime.ownership import NAME
from scripts.runtime.storage import file_hash

__all__ = ["label_check"]

SUBJECTS = 8  # MONAI Label holds a fifth of them back: six are for training
TINY = (
    "--learned_atlas#device=cpu",
    "--learned_atlas#dtype=float32",
    "--learned_atlas#cohort#margin=2",
    "--learned_atlas#model#enc_features=[8,8,8]",
    "--learned_atlas#model#dec_features=[8,8,8,8]",
    "--learned_atlas#optimizer#epochs=8",
    "--learned_atlas#refine#rounds=1",
    "--learned_atlas#refine#iterations=2",
    "--learned_atlas#refine#network_epochs=2",
)
EPOCHS = 2
_START, _ANSWER, _TRAINING = 300, 300, 1800  # longest waiting times, seconds
_SHOWN = 25  # lines of a log in an error
_EDGE = 1e-5  # of the largest density: rounding in float32 decides such a voxel


def label_check(
    root: Path, environment: Path, work: Path, archive: Path | None, studies: Path | None
) -> dict[str, Any]:
    """Run the whole check.

    Args:
        root: of the repository.
        environment: folder of MONAI Label's environment, created if missing.
        work: an empty or missing folder for everything else.
        archive: from `pack`; None trains and packs a tiny atlas of a phantom cohort.
        studies: folder of maps to work on, all directly in it, at least five, with a
            `<map>_waytotal` each if the atlas was normalised by it; needed with an archive.

    Returns:
        The results: times in seconds, sizes in bytes, labels, versions.

    Raises:
        LabelCheckError: a check fails.
    """
    if (archive is None) != (studies is None):
        raise LabelCheckError("--archive and --studies go together: an atlas, and maps for it")
    for given in (archive, studies):
        if given is not None and not given.exists():
            raise LabelCheckError(f"no such file or folder: {given}")
    if work.exists() and any(work.iterdir()):
        raise LabelCheckError(f"{work} isn't empty; name another folder with --work")
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    label = LabelEnvironment(environment, root)
    say(f"environment {label.folder} (takes minutes if it has to be made)")
    results["environment_seconds"] = round(label.prepare(), 1)
    results["environment_bytes"] = label.size()
    results["versions"] = label.versions()
    own_studies = work / "studies"
    if archive is None or studies is None:
        say("training and packing a tiny atlas")
        archive, results["tiny_training_seconds"] = _tiny_archive(root, work, own_studies)
    else:
        shutil.copytree(studies, own_studies)
    results["archive_bytes"] = archive.stat().st_size
    bundle = _application(label, archive, work)
    with _Server(label, work, own_studies) as server:
        results["start_seconds"] = server.started
        _check_everything(server, bundle, work, own_studies, results)
    results["server_stopped_with"] = server.code
    return results


def _check_everything(
    server: _Server, bundle: Path, work: Path, studies: Path, results: dict[str, Any]
) -> None:
    names = _study_names(studies)
    results["studies"] = len(names)
    metadata = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    expected = {name.lower(): int(i) for i, name in channels.items() if name != "background"}
    _check_listing(server, expected)
    results["labels"] = expected

    say("requesting the labels of every study")
    before = {}
    seconds = []
    for name in names:
        started = time.monotonic()
        before[name] = server.infer(name, work / "answers" / f"{name}.nii.gz")
        seconds.append(time.monotonic() - started)
    results["first_inference_seconds"] = round(seconds[0], 2)
    results["inference_seconds"] = round(float(np.median(seconds[1:])), 2)
    inferred = server.request("POST", f"infer/{NAME}", {"image": names[0], "output": "json"})
    if inferred["label_names"] != expected:
        raise LabelCheckError(f"labels are named {inferred['label_names']}, must be {expected}")
    results["voxels_labelled"] = _compare(bundle, work / "own", studies, before)

    say("submitting the labels, and training")
    for name, answer in before.items():
        server.submit(name, answer)
    model = bundle / "models/model.pt"
    old = file_hash(model)
    results["training_seconds"] = server.train({"max_epochs": EPOCHS, "device": "cpu"})
    if file_hash(model) == old:
        raise LabelCheckError(f"{model} is unchanged after the training")
    described = json.loads((bundle / "output/learned_atlas/atlas.json").read_text(encoding="utf-8"))
    results["trained_on"] = described["n_subjects"]

    say("requesting labels from the trained model")
    after = {names[0]: server.infer(names[0], work / "answers" / f"{names[0]}_again.nii.gz")}
    results["voxels_labelled_after"] = _compare(bundle, work / "own_again", studies, after)


def _check_listing(server: _Server, labels: dict[str, int]) -> None:
    info = server.request("GET", "info/")
    model = info["models"].get(NAME)
    if model is None:
        raise LabelCheckError(f"{NAME} is not among the models: {sorted(info['models'])}")
    if model["labels"] != labels:
        raise LabelCheckError(f"{NAME} is listed with labels {model['labels']}, must be {labels}")
    if NAME not in info["trainers"]:
        raise LabelCheckError(f"{NAME} is not among the trainers: {sorted(info['trainers'])}")


# ---------------------------------------------------------------------------------------------
# Results of the bundle itself
# ---------------------------------------------------------------------------------------------


def _tiny_archive(root: Path, work: Path, studies: Path) -> tuple[Path, float]:
    """Make a tiny packed atlas, with its subjects' maps as studies."""
    cohort = work / "cohort"
    write_demo_cohort(cohort, subjects=SUBJECTS, held_out=0, shape=(32, 36, 32))
    started = time.monotonic()
    _run(
        [
            "-m", "bundle", "train", f"--dataset_dir={cohort}", f"--output_dir={work / 'trained'}",
            f"--ckpt_dir={work / 'models'}", *TINY,
        ],
        root,
    )  # fmt: skip
    seconds = round(time.monotonic() - started, 1)
    archive = work / f"{NAME}.zip"
    pack(root, work / "models", archive, "a tiny phantom cohort")
    studies.mkdir()
    for path in sorted(cohort.glob("sub-*/**/fdt_paths.nii.gz")):
        subject = path.relative_to(cohort).parts[0]
        shutil.copy(path, studies / f"{subject}.nii.gz")
        shutil.copy(path.with_name("waytotal"), studies / f"{subject}_waytotal")
    return archive, seconds


def _study_names(studies: Path) -> list[str]:
    names = sorted(path.name.removesuffix(".nii.gz") for path in studies.glob("*.nii.gz"))
    if len(names) < 2:
        raise LabelCheckError(f"{studies} contains {len(names)} maps (.nii.gz), needs at least 2")
    return names


def _compare(
    bundle: Path, output_dir: Path, studies: Path, answers: dict[str, Path]
) -> dict[str, int]:
    """Compare label maps with the presence that the bundle computes in its environment.

    Returns:
        Number of labelled voxels by study.
    """
    maps = [str(studies / f"{name}.nii.gz") for name in answers]
    _run(
        [
            "-m", "monai.bundle", "run", "registering", "--config_file", "configs/inference.yaml",
            f"--input={maps}", f"--output_dir={output_dir}", "--learned_atlas#device=cpu",
            "--learned_atlas#dtype=float32",  # as in MONAI Label
            # Folds don't matter for labels, and a tiny model may fold.
            "--learned_atlas#verify_jacobian=$False",
        ],
        bundle,
    )  # fmt: skip
    presence = published_network(bundle / "models/model.pt").description["settings"][
        "presence_value"
    ]
    counts = {}
    for name, path in answers.items():
        answer, study = _image(path), _image(studies / f"{name}.nii.gz")
        shape = study.shape[:3]
        if answer.shape != shape or not np.allclose(answer.affine, study.affine, atol=1e-4):
            raise LabelCheckError(
                f"the label map of {name} has shape {answer.shape} and affine "
                f"{answer.affine.tolist()}, its study {shape} and {study.affine.tolist()}"
            )
        labels = np.asarray(answer.dataobj)
        subject = output_dir / "registered" / name / "atlas_in_patient_space/atlas_mean.nii.gz"
        density = np.asarray(_image(subject).dataobj, dtype=np.float64)
        density = density.reshape(*shape, -1)
        expected = np.where(density.max(-1) > presence, density.argmax(-1) + 1, 0)
        edge = np.abs(density - presence).min(-1) <= _EDGE * density.max()
        if density.shape[-1] > 1:  # rounding also decides between two equal densities
            first, second = np.sort(density, axis=-1)[..., -1], np.sort(density, axis=-1)[..., -2]
            edge |= first - second <= _EDGE * density.max()
        differing = int(((labels != expected) & ~edge).sum())
        if differing or not expected.any():
            raise LabelCheckError(
                f"{differing} voxels of {name} have another label than the bundle's presence "
                f"({int((expected > 0).sum())} voxels)"
            )
        counts[name] = int((labels > 0).sum())
    return counts


def _image(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise LabelCheckError(f"{path} is not a NIfTI image")
    return image


def _run(arguments: list[str], folder: Path) -> None:
    """Run Python in the current environment."""
    environment = {**clean_environment(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    if result.returncode != 0:
        output = _last_lines(result.stdout + result.stderr)
        raise LabelCheckError(f"python {' '.join(arguments[:4])} failed:\n{output}")


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_SHOWN:])


# ---------------------------------------------------------------------------------------------
# MONAI Label
# ---------------------------------------------------------------------------------------------


def _application(label: LabelEnvironment, archive: Path, work: Path) -> Path:
    """MONAI Label's application for bundles, with the archive's bundle in it."""
    command = [*label.monai_label(), "apps", "--download"]
    result = subprocess.run(
        [*command, "--name", "monaibundle", "--output", str(work)],
        env=label.variables(), capture_output=True, text=True,
    )  # fmt: skip
    if result.returncode != 0:
        raise LabelCheckError(f"monailabel apps failed:\n{_last_lines(result.stderr)}")
    models = work / "monaibundle" / "model"
    models.mkdir()
    unpack(archive, models)
    if not (models / NAME / "models/model.pt").is_file():
        raise LabelCheckError(f"{archive} is not an archive of `python -m bundle pack`")
    return models / NAME


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive of `pack`, whose content is in one folder.

    Raises:
        LabelCheckError: it isn't such an archive, a name leads out of it, or it contains a link.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            for one in packed.infolist():
                parts = PurePosixPath(one.filename).parts
                link = (one.external_attr >> 16) & 0o170000 == 0o120000
                if parts[:1] != (NAME,) or ".." in parts or "\\" in one.filename or link:
                    raise LabelCheckError(f"{archive}: has {one.filename!r}; nothing is unpacked")
            if packed.testzip() is not None:
                raise LabelCheckError(f"{archive}: is damaged; nothing is unpacked")
            packed.extractall(folder)
    except (OSError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
        raise LabelCheckError(f"{archive}: can't be unpacked: {error}") from error


class _Server:
    """MONAI Label's server, running inside the block."""

    def __init__(self, label: LabelEnvironment, work: Path, studies: Path) -> None:
        self.label = label
        self.app = work / "monaibundle"
        self.studies = studies
        self.log = work / "server.log"
        self.port = _free_port()
        self.started = 0.0
        self.code: int | None = None

    def __enter__(self) -> _Server:
        say(f"starting the server on port {self.port}")
        begun = time.monotonic()
        environment = {
            **self.label.variables(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *self.label.monai_label(), "start_server",
                    "--app", str(self.app), "--studies", str(self.studies),
                    "--host", "127.0.0.1", "--port", str(self.port),
                    "--conf", "models", NAME, "--conf", "zoo_source", "local",
                    "--conf", "sam2", "false",
                ],
                cwd=self.app, env=environment, stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            self._wait(begun)
        except BaseException:
            self._stop()
            raise
        self.started = round(time.monotonic() - begun, 1)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _wait(self, begun: float) -> None:
        while True:
            if self.process.poll() is not None:
                raise self._failure(f"the server ended with {self.process.returncode}")
            if time.monotonic() - begun > _START:
                raise self._failure(f"the server didn't answer within {_START} s")
            try:
                self.request("GET", "info/")
                return
            except (urllib.error.URLError, ConnectionError, LabelCheckError):
                time.sleep(1)

    def _stop(self) -> None:
        """End the server by its process id."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.code = self.process.wait()

    def _failure(self, what: str) -> LabelCheckError:
        log = _last_lines(self.log.read_text(encoding="utf-8", errors="replace"))
        return LabelCheckError(f"{what}; the end of {self.log}:\n{log}")

    def request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: bytes | None = None,
        kind: str = "application/json",
    ) -> Any:
        """Send one request; parse the answer if it is JSON, else return its bytes."""
        address = f"http://127.0.0.1:{self.port}/{path}"
        if query:
            address += f"?{urllib.parse.urlencode(query)}"
        if method != "GET" and body is None:
            body = b""
        request = urllib.request.Request(address, data=body, method=method)
        if body:
            request.add_header("Content-Type", kind)
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER) as response:
                content = response.read()
                told = response.headers.get_content_type()
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            raise self._failure(f"{method} /{path}: {error.code} {detail}") from error
        return json.loads(content) if told == "application/json" else content

    def infer(self, image: str, target: Path) -> Path:
        """Request a study's label map and save it."""
        form = urllib.parse.urlencode({"params": json.dumps({"device": "cpu"})}).encode()
        answer = self.request(
            "POST", f"infer/{NAME}", {"image": image, "output": "image"}, form,
            "application/x-www-form-urlencoded",
        )  # fmt: skip
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(answer)
        return target

    def submit(self, image: str, label: Path) -> None:
        """Submit a label map as final."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="label"; '
            f'filename="{image}.nii.gz"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        body = head.encode() + label.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        self.request(
            "PUT", "datastore/label", {"image": image, "tag": "final"}, body,
            f"multipart/form-data; boundary={boundary}",
        )  # fmt: skip

    def train(self, options: dict[str, Any]) -> float:
        """Train, wait for the end, and return the seconds."""
        begun = time.monotonic()
        task = self.request("POST", f"train/{NAME}", body=json.dumps(options).encode())
        while task["status"] in ("SUBMITTED", "RUNNING"):
            if time.monotonic() - begun > _TRAINING:
                self.request("DELETE", "train/")
                raise self._failure(f"the training didn't end within {_TRAINING} s")
            time.sleep(1)
            task = self.request("GET", "train/")
        if task["status"] != "DONE":
            details = "\n".join(task.get("details", []))
            raise LabelCheckError(f"the training ended as {task['status']}:\n{details}")
        return round(time.monotonic() - begun, 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say(message: str) -> None:
    """Print a message for the user; standard output belongs to the results."""
    print(f"label-check: {message}", file=sys.stderr, flush=True)
