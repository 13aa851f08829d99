"""One iteration of the evaluator: registers subjects to the published templates."""

from __future__ import annotations

import time
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_dst_type, convert_to_tensor

from scripts.atlas.registration import optimised_velocity
from scripts.atlas.subject_masks import SubjectMasks
from scripts.atlas.training_step import bare
from scripts.losses.atlas_loss import AtlasLoss
from scripts.networks.precision import autocast

__all__ = ["RegistrationStep"]


class RegistrationStep:
    """The evaluator's ``iteration_update``.

    MONAI's step keeps only the network's prediction. This one also keeps the velocity, so that the
    fields don't need another run of the network, and refines it if requested.

    Args:
        loss: of the training, for the refinement.
        dtype: of the convolutions.
        iterations: gradient steps that refine each velocity; 0: no refinement.
        lr: size of the steps, voxels.
        masks: voxels of the subjects that don't count; None: all count.
    """

    def __init__(
        self,
        loss: AtlasLoss,
        dtype: str = "float32",
        iterations: int = 0,
        lr: float = 0.3,
        masks: SubjectMasks | None = None,
    ) -> None:
        self.loss = loss
        self.dtype = dtype
        self.iterations = iterations
        self.lr = lr
        self.masks = masks

    @torch.no_grad()
    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Any]:
        """Run one iteration.

        Args:
            engine: has network and inferer.
            batch: ``image (B, C, *shape)`` log densities and ``subject`` names; for a conditional
                template ``covariates (B, p)``, coded.

        Returns:
            ``pred (B, C, *shape)`` the template's density in the subject's space, ``velocity
            (B, d, *reduced)``, ``template (B,)`` and ``seconds (B,)``; ``image`` and ``subject``.
        """
        started = time.perf_counter()
        network = bare(engine.network)
        network.eval()
        device = engine.state.device
        image = batch["image"].to(device, non_blocking=engine.non_blocking)
        # The metadata stay with what is inverted later; the network computes without them.
        plain = convert_to_tensor(image, track_meta=False)
        covariates = batch.get("covariates")
        if covariates is not None:
            covariates = torch.as_tensor(covariates).to(device)
        valid = None
        if self.masks is not None:
            valid = self.masks.valid_of_batch(batch["subject"], plain.device)
        masked = () if valid is None else (valid,)
        with autocast(plain.device, self.dtype):
            velocity, template = engine.inferer(plain, network.match, covariates, *masked)
        engine.state.output = {"image": image, "subject": batch["subject"]}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        if self.iterations:
            velocity = torch.cat(
                [
                    optimised_velocity(
                        network, self.loss, plain[b : b + 1], velocity[b : b + 1],
                        self.iterations, self.lr, int(template[b]),
                        None if covariates is None else covariates[b : b + 1],
                        None if valid is None else valid[b : b + 1],
                    )
                    for b in range(len(plain))
                ]
            )  # fmt: skip
        pred = network.predict(velocity, template, covariates)
        if pred.is_cuda:
            torch.cuda.synchronize(pred.device)
        seconds = (time.perf_counter() - started) / len(plain)
        engine.state.output.update(
            pred=convert_to_dst_type(pred, image)[0],
            velocity=velocity,
            template=template,
            seconds=torch.full((len(plain),), seconds),
        )
        if covariates is not None:
            engine.state.output["covariates"] = covariates
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output
