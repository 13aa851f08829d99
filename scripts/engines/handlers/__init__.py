"""Handlers of any trainer: plain classes for configs."""

from scripts.engines.handlers.early_stop import EarlyStop
from scripts.engines.handlers.learning_rate import LearningRateSchedule
from scripts.engines.handlers.loss_history import LossHistory
from scripts.engines.handlers.nonfinite_guard import NonFiniteGuard
from scripts.engines.handlers.progress import ProgressBar
from scripts.engines.handlers.training_checkpoint import TrainingCheckpoint
from scripts.engines.handlers.user_errors import UserErrorsOnce

__all__ = [
    "EarlyStop",
    "LearningRateSchedule",
    "LossHistory",
    "NonFiniteGuard",
    "ProgressBar",
    "TrainingCheckpoint",
    "UserErrorsOnce",
]
