"""After training: exact centring, and instance optimisation of velocities with the template."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from scripts.atlas.network import NEGLIGIBLE_SHARE
from scripts.atlas.registration import estimate_velocity
from scripts.atlas.template_fit import (
    fit_conditional_template,
    fit_templates,
    fit_velocity_slopes,
    in_template_space,
)
from scripts.atlas.training_step import bare, soft_assignment
from scripts.atlas.velocity_refinement import refine_velocity
from scripts.errors import CheckpointError
from scripts.losses.atlas_loss import AtlasLoss
from scripts.networks.checkpoint import (
    load_checkpoint,
    load_latest,
    load_weights,
    save_checkpoint,
)
from scripts.runtime.ordered_map import ordered_map
from scripts.runtime.processes import add_up, from_first, is_first, share
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import file_hash
from scripts.runtime.torch_threads import divided_threads, subjects_at_once
from scripts.spatial.unfolding import unfolded_velocity
from scripts.spatial.warp import warp

__all__ = ["CohortRefinement"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_AT_ONCE = 2_500_000  # voxels of the subjects that are computed at once: a gibibyte at most


class CohortRefinement:
    """Alternates between updating each subject's velocity and updating the template.

    A round has three steps. Each velocity takes some gradient steps against the template
    (`refine_velocity`) and is smoothed where it is close to folding (`unfolded_velocity`). The
    cohort's mean velocity is subtracted from all of them, so that the template stays in the middle
    of the cohort. The template becomes the least-squares fit to the subjects in their spaces,
    sum_i J_i d_i(phi_i(x)) / sum_i J_i, with phi_i from template to subject and J_i its Jacobian
    determinant (Ma et al., NeuroImage 2008).

    With covariates the template is a function of them (see `AtlasNetwork`), and a round fits the
    function: regression of the velocities on the covariates gives its deformation, and the
    least-squares fit of the densities gives one image per covariate besides the template. Both are
    shrunk where they don't differ from chance (`shrunken`). Without covariates the only column is
    the constant, and the regression is the mean.

    Rounds of the network come first, where asked: a velocity is then what the network finds against
    the template as it is, without gradient steps. All of them but the last use the coarse
    passes alone, which are cheap and sharpen a blurred template as well. A network that needs no
    training on the cohort makes the atlas in a few of them.

    Without rounds the network's velocities are used, exactly centred, and the learned template
    moves along with the centring.

    The velocities of a round are in files, one per subject, each written completely or not at all.
    An interrupted round continues with the next subject, and memory doesn't grow with the cohort.

    With several processes each one refines its share of the subjects. Means and templates are sums
    over all of them, so the result equals that of one process up to rounding.

    Args:
        network: the trained network.
        dataset: log densities, in the order of the cohort (``image``).
        loss: of the training.
        folder: for the velocities and the state.
        rounds: number of rounds; 0: only centring.
        iterations: gradient steps per subject and round.
        lr: size of the steps, voxels.
        dtype: of the convolutions.
        device: of the computation.
        mixture_sharpness: of the soft assignment with K > 1.
        design: coded covariates ``(N, p)`` of a conditional template, with mean 0.
        window: side, in voxels, of the windows for the shrinkage of slopes.
        network_rounds: how often the network alone registers all subjects, before the other rounds.
        final_lr: size of a round's last step, to which it falls; None: it stays.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        dataset: Sequence[dict[str, Any]],
        loss: AtlasLoss,
        folder: str | Path,
        rounds: int = 0,
        iterations: int = 10,
        lr: float = 0.3,
        dtype: str = "float32",
        device: torch.device | str = "cpu",
        mixture_sharpness: float = 50.0,
        design: np.ndarray | None = None,
        window: int = 7,
        network_rounds: int = 0,
        final_lr: float | None = None,
    ) -> None:
        self.network = bare(network)
        self.dataset = dataset
        self.loss = loss
        self.folder = Path(folder)
        self.network_rounds = network_rounds
        self.rounds = network_rounds + rounds
        self.iterations = iterations
        self.lr = lr
        self.final_lr = final_lr
        self.dtype = dtype
        self.device = torch.device(device)
        self.mixture_sharpness = mixture_sharpness
        self.design = None if design is None else torch.as_tensor(design).to(self.device)
        self.window = window
        self.round = 0
        self.history: list[float] = []
        self._source: str | None = None  # hash of the state that `restore` took over
        self.offset = torch.zeros_like(self.network.mean_velocity)
        # Share of each subject that each template explains, (N, K).
        self.assignment = torch.ones(len(dataset), self.network.n_templates)

    # -- the run ---------------------------------------------------------------------------

    @torch.no_grad()
    def run(self) -> None:
        """Centre, refine, and leave the network with its final template; resumes automatically."""
        self.network.eval()
        if not self._load():
            if self.network_rounds == 0:
                self._centre_network(uncentred=True)
            self.save()
        if self.round < self.rounds:
            local = len(share(len(self.dataset)))
            with progress_bar(self.rounds * local, "refinement", initial=self.round * local) as bar:
                while self.round < self.rounds:
                    self._run_round(bar)

    def restore(self) -> None:
        """Take over a finished refinement, writing nothing.

        Raises:
            CheckpointError: it isn't all there.
        """
        self.network.eval()
        self._source = self._hash()
        checkpoint = load_checkpoint(self.folder / "state.pt")
        self._take_over(checkpoint)
        if self.round < self.rounds:
            raise CheckpointError(
                f"{self.folder}: contains {self.round} of {self.rounds} rounds of refinement; "
                "finish the training"
            )

    def check_unchanged(self) -> None:
        """Make sure that the folder still holds what `restore` took over.

        Raises:
            CheckpointError: another run has been at work there.
        """
        if self._source is not None and self._hash() != self._source:
            raise CheckpointError(
                f"{self.folder}: changed while it was being read; nothing is published"
            )

    def _hash(self) -> str:
        path = self.folder / "state.pt"
        try:
            return file_hash(path)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error

    def image(self, index: int) -> torch.Tensor:
        """A subject's log density, ``(1, C, *shape)``, on the device."""
        return torch.as_tensor(self.dataset[index]["image"]).to(self.device)[None]

    def velocity(self, index: int, template: int = 0) -> torch.Tensor:
        """Final velocity of a subject to a template: refined if available, else the network's."""
        if self.round and template == self.assigned_template(index):
            return self._stored(self.round - 1, index) - self.offset[template]
        return self._network_velocity(index, template)

    def _network_velocity(self, index: int, template: int, coarse: bool = False) -> torch.Tensor:
        """What the network finds of a subject, by all its passes or by the coarse ones alone."""
        passes = tuple(factor for factor in self.network.passes if factor > 1) if coarse else ()
        return estimate_velocity(
            self.network,
            self.image(index),
            self.dtype,
            template,
            covariates=self.covariates(index),
            passes=passes or None,
        )

    def covariates(self, index: int) -> torch.Tensor | None:
        """A subject's coded covariates ``(1, p)``; None for an unconditional template."""
        return None if self.design is None else self.design[index : index + 1]

    # -- pieces ----------------------------------------------------------------------------

    def _run_round(self, bar: tqdm) -> None:
        if self.round < self.network_rounds and self.network.n_templates > 1:
            self._assign()
        total = torch.zeros((), dtype=torch.float64)
        for _, loss in self._of_subjects(self._refine_subject):
            total += loss
            bar.set_postfix(
                {"round": f"{self.round + 1}/{self.rounds}", "loss": f"{loss:.3f}"},
                refresh=False,
            )
            bar.update()
        add_up(total)
        self.history.append(float(total) / len(self.dataset))
        self.offset = self._mean(self.round)
        self._update_template(self.round)
        if self.round + 1 == self.rounds == self.network_rounds:
            self.network.mean_velocity += self.offset  # of what the network alone found
        elif self.round + 1 == self.rounds:
            self.recentre()
        self.round += 1
        self.save()
        if is_first():
            # The sums above used this round's velocities: no process needs earlier ones any more.
            shutil.rmtree(self._round_folder(self.round - 2), ignore_errors=True)

    def _of_subjects(self, function: Callable[[int], T]) -> Iterator[tuple[int, T]]:
        """Each subject of this process with what a function makes of it, in order.

        Several subjects are computed at once, each by one thread, if they are small. Sums in this
        order don't depend on how many.
        """
        at_once = subjects_at_once(math.prod(self.network.shape), self.device, _AT_ONCE)

        @torch.no_grad()  # the mode belongs to the thread
        def made(index: int) -> T:
            return function(index)

        with divided_threads(at_once):
            yield from ordered_map(made, share(len(self.dataset)), at_once)

    def assigned_template(self, index: int) -> int:
        """Index of the template that explains a subject best."""
        return int(self.assignment[index].argmax())

    def _centre_network(self, uncentred: bool) -> None:
        """Replace the running mean velocity by the exact one; the template moves with it.

        Args:
            uncentred: the network was trained without subtracting the running mean.
        """
        network = self.network
        if network.n_templates > 1:
            self._assign()
        total = torch.zeros_like(network.mean_velocity)
        weight = self.assignment.sum(0).clamp_min(1e-6)

        def velocities(index: int) -> dict[int, torch.Tensor]:
            image = self.image(index)
            return {
                k: estimate_velocity(network, image, self.dtype, k)[0]
                for k in range(network.n_templates)
                if float(self.assignment[index, k]) > NEGLIGIBLE_SHARE
            }

        for index, estimated in self._of_subjects(velocities):
            for k, velocity in estimated.items():
                total[k] += velocity * (float(self.assignment[index, k]) / float(weight[k]))
        add_up(total)
        # The fields that were learned against this template lose `moved`: to first order, exp(v -
        # m) needs the template moved by exp(m).
        moved = network.mean_velocity + total if uncentred else total
        network.mean_velocity += total
        for k in range(network.n_templates):
            there = network.displacement(moved[k : k + 1])
            network.template[k] = warp(network.template[k : k + 1], there)[0]
        network.project_template()

    def _assign(self) -> None:
        """Soft assignment of each subject to the templates, from its losses."""
        network = self.network
        self.assignment.zero_()

        def shares(index: int) -> torch.Tensor:
            image = self.image(index)
            # Fields are learned uncentred, see `_centre_network`.
            raw = [
                estimate_velocity(network, image, self.dtype, k) + network.mean_velocity[k]
                for k in range(network.n_templates)
            ]
            return soft_assignment(network, self.loss, image, raw, self.mixture_sharpness)[0]

        for index, assigned in self._of_subjects(shares):
            self.assignment[index] = assigned
        add_up(self.assignment)
        network.mixture.copy_(self.assignment.mean(0))

    def _refine_subject(self, index: int) -> float:
        path = self._velocity_file(self.round, index)
        if path.exists():
            try:
                return float(load_checkpoint(path)["loss"])
            except CheckpointError as error:
                logger.warning("%s; it is made again", error)
        assigned, network = self.assigned_template(index), self.network
        alone = self.round < self.network_rounds
        if alone:
            start = self._network_velocity(
                index, assigned, coarse=self.round + 1 < self.network_rounds
            )
        else:
            start = self.velocity(index, assigned)
        with torch.enable_grad():
            refined, loss = refine_velocity(
                network, self.loss, self.image(index), start,
                0 if alone else self.iterations, self.lr, assigned, self.covariates(index),
                self.final_lr,
            )  # fmt: skip
        refined = unfolded_velocity(network, refined)
        save_checkpoint({"velocity": refined[0].cpu(), "loss": loss}, path)
        return loss

    def _mean(self, number: int) -> torch.Tensor:
        """Mean velocity over the subjects of each template."""
        total = torch.zeros_like(self.network.mean_velocity)
        count = torch.zeros(self.network.n_templates)
        for index, velocity in self._of_subjects(lambda i: self._stored(number, i)[0]):
            assigned = self.assigned_template(index)
            total[assigned] += velocity
            count[assigned] += 1
        add_up(total, count)
        return total / count.clamp_min(1).to(total).view(-1, *([1] * (total.dim() - 1)))

    def _registered(self, number: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Index of each subject of this process, its density in template space, and J there."""

        def moved(index: int) -> tuple[torch.Tensor, torch.Tensor]:
            velocity = self._stored(number, index) - self.offset[self.assigned_template(index)]
            return in_template_space(self.network, self.image(index), velocity)

        for index, (density, size) in self._of_subjects(moved):
            yield index, density, size

    def _update_template(self, number: int) -> None:
        """Fit the template, and with covariates its slopes, to a round's velocities."""
        if self.design is None:
            fit_templates(
                self.network,
                (
                    (self.assigned_template(i), density, size)
                    for i, density, size in self._registered(number)
                ),
            )
            return
        design = self.design
        fit_velocity_slopes(
            self.network,
            ((design[i], self._stored(number, i) - self.offset) for i in share(len(self.dataset))),
            self.window,
        )
        fit_conditional_template(
            self.network,
            ((design[i], density, size) for i, density, size in self._registered(number)),
            self.window,
        )

    @torch.no_grad()
    def recentre(self) -> None:
        """Shift the network so that on average over the cohort it gives the refined velocity.

        Without refined velocities the average becomes 0, and the template moves accordingly.
        """
        network = self.network
        if not self.history:
            self._centre_network(uncentred=False)
            return
        shift = torch.zeros_like(network.mean_velocity)
        count = torch.zeros(network.n_templates)
        newest = len(self.history) - 1

        def change(index: int) -> torch.Tensor:
            assigned = self.assigned_template(index)
            refined = self._stored(newest, index) - self.offset[assigned]
            return (self._network_velocity(index, assigned) - refined)[0]

        for index, difference in self._of_subjects(change):
            assigned = self.assigned_template(index)
            shift[assigned] += difference
            count[assigned] += 1
        add_up(shift, count)
        count = count.clamp_min(1).to(shift)
        network.mean_velocity += shift / count.view(-1, *([1] * (shift.dim() - 1)))

    # -- files -----------------------------------------------------------------------------

    def _round_folder(self, number: int) -> Path:
        return self.folder / f"round-{number:03d}"

    def _velocity_file(self, number: int, index: int) -> Path:
        return self._round_folder(number) / f"{index:06d}.pt"

    def _stored(self, number: int, index: int) -> torch.Tensor:
        path = self._velocity_file(number, index)
        checkpoint = load_checkpoint(path)
        if not isinstance(checkpoint.get("velocity"), torch.Tensor):
            raise CheckpointError(f"{path}: contains no velocity")
        return checkpoint["velocity"].to(self.device)[None]

    def _load(self) -> bool:
        checkpoint = from_first(self._read)
        if checkpoint is None:
            return False
        self._take_over(checkpoint)
        if self.round < self.rounds:
            logger.info("refinement continues after round %d", self.round)
        return True

    def _take_over(self, checkpoint: dict[str, Any]) -> None:
        load_weights(self.network, checkpoint, self.folder / "state.pt")
        try:
            self.round = int(checkpoint["round"])
            self.offset = checkpoint["offset"].to(self.device)
            self.assignment = checkpoint["assignment"]
            self.history = list(checkpoint["history"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{self.folder / 'state.pt'}: is not a state of a refinement ({error})"
            ) from error

    def _read(self) -> dict[str, Any] | None:
        """The state to go on from; None: from the training's end, also if a file is damaged."""
        try:
            result = load_latest(self.folder / "state.pt")
            self._check_velocities(result)
        except CheckpointError as error:
            logger.warning("%s; the refinement starts again from the end of the training", error)
            shutil.rmtree(self.folder)
            return None
        return result

    def _check_velocities(self, checkpoint: dict[str, Any] | None) -> None:
        """Make sure that no velocity is damaged that a state needs and that can't be made again.

        Raises:
            CheckpointError: naming the file.
        """
        done = 0 if checkpoint is None else checkpoint.get("round")
        if type(done) is not int or done < 1:  # none is needed, or `_take_over` refuses the state
            return
        for index in range(len(self.dataset)):
            try:
                self._stored(done, index)  # of the round under way, it stands for the one before
            except CheckpointError:
                self._stored(done - 1, index)

    def save(self) -> None:
        """Save the number of finished rounds, with the current network."""
        if not is_first():
            return
        save_checkpoint(
            {
                "round": self.round,
                "network": self.network.state_dict(),
                "offset": self.offset.cpu(),
                "assignment": self.assignment,
                "history": self.history,
            },
            self.folder / "state.pt",
            keep_previous=True,
        )
