"""Handlers of the trainer: plain classes that a config lists."""

from scripts.engines.handlers.centring import Centring
from scripts.engines.handlers.early_stop import EarlyStop
from scripts.engines.handlers.fold_monitor import FoldMonitor
from scripts.engines.handlers.learning_rate import LearningRateSchedule
from scripts.engines.handlers.loss_history import LossHistory
from scripts.engines.handlers.nonfinite_guard import NonFiniteGuard
from scripts.engines.handlers.progress import ProgressBar
from scripts.engines.handlers.registration_writer import RegistrationWriter
from scripts.engines.handlers.snapshots import TemplateSnapshots
from scripts.engines.handlers.training_checkpoint import TrainingCheckpoint
from scripts.engines.handlers.user_errors import UserErrorsOnce

__all__ = [
    "Centring",
    "EarlyStop",
    "FoldMonitor",
    "LearningRateSchedule",
    "LossHistory",
    "NonFiniteGuard",
    "ProgressBar",
    "RegistrationWriter",
    "TemplateSnapshots",
    "TrainingCheckpoint",
    "UserErrorsOnce",
]
