"""Predict a learning curve for every config of the space, from recorded curves: `Surrogate`.

There are two models, a forest and a Gaussian process. `benchmarks/surrogate_error.py` measures how
well they predict configs that they have not seen.

The forest reproduces the recorded curves exactly and mixes them in between. Its best regions are
two dozen islands, each around one config whose training was lucky; a search that finds an island is
lucky in every training there. The Gaussian process treats luck as noise and gives each training its
own: the residual of one recorded curve, drawn at random; or the deviation of one curve from the
mean of a config that was trained several times. This matters among the best configs, whose scores
differ by less than the scores of two trainings of one config.
"""

import math
import zlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.record_curves import draw_config
from benchmarks.surrogate_models import Floats, Forest, GaussianProcess, Model
from tune_jobs.engine.core.goal import Goal

__all__ = ["Curve", "Surrogate", "Top", "best_gains", "diverges", "draw_space", "encode"]

MODELS = {"forest": Forest, "gp": GaussianProcess}
LOGARITHMIC = ("lr", "weight_decay", "hidden_size", "batch_size")
LR_RANGE = (1e-4, 1e-2)
SPACE_INDEX = (
    1_000_000  # of the first config that `draw_space` draws; recorded configs have lower indices
)
LEAST_ERROR = 1e-3  # added to errors before taking the logarithm: a recorded error may be 0


class Curve(NamedTuple):
    """The learning curve of one training.

    Attributes:
        scores: The score after each epoch, shape (epochs,).
        epoch_length: The time of an epoch, relative to the mean config.
    """

    scores: Floats
    epoch_length: float


class Top(NamedTuple):
    """The best scores of the space.

    Attributes:
        target: The score that 1 % of the configs reach at their best epoch.
        best: The best score of all configs that were drawn.
    """

    target: float
    best: float


class Surrogate:
    """Predicts the learning curve of any config of the space.

    Args:
        configs: The N recorded configs.
        recorded: Their values of the goal's metric and "seconds", each with shape (N, epochs).
        goal: What is optimized.
        repeats: For each config that was trained several times, its scores, shape (repeats,
            epochs); the noise is drawn from them. Without any, it is drawn from the residuals.
        nan_share: Share of the space that diverges in its first epoch.
        model: The model to fit.

    Attributes:
        max_epochs: Epochs of a curve.
    """

    def __init__(
        self,
        configs: list[dict[str, Any]],
        recorded: dict[str, Floats],
        goal: Goal,
        repeats: Iterable[Floats] = (),
        nan_share: float = 0.0,
        model: Literal["forest", "gp"] = "gp",
    ) -> None:
        self._goal = goal
        self._nan_share = nan_share
        scores, seconds = recorded[goal.metric], recorded["seconds"].mean(axis=1, keepdims=True)
        self.max_epochs: int = scores.shape[1]
        outputs = np.hstack([self._to_log(scores), np.log(seconds / seconds.mean())])
        self._model: Model = MODELS[model](_encode_all(configs), outputs)
        deviations = [_deviations(self._to_log(scores)) for scores in repeats]
        # Each row is the noise of one training; shape (M, epochs).
        self._noise = np.vstack(deviations or [outputs[:, :-1] - self._expect_log(configs)])

    def curve(self, config: dict[str, Any], rng: np.random.Generator) -> Curve:
        """Train a config once; the scores are NaN if it diverges."""
        outputs = self._model.predict(encode(config))
        scores = self._from_log(outputs[:-1] + rng.choice(self._noise))
        if diverges(config, self._nan_share):
            scores = np.full_like(scores, np.nan)
        return Curve(scores, float(np.exp(outputs[-1])))

    def expect(self, configs: list[dict[str, Any]]) -> Floats:
        """Predict scores without noise, shape (N, epochs)."""
        return self._from_log(self._expect_log(configs))

    def top(self, num_draws: int) -> Top:
        """Estimate the best scores of the space from configs drawn at random."""
        configs = draw_space(num_draws)
        noise = np.random.default_rng(0).choice(self._noise, num_draws)
        scores = self._from_log(self._expect_log(configs) + noise)
        gains = best_gains(scores, self._goal)
        gains[[diverges(config, self._nan_share) for config in configs]] = -np.inf
        to_score = self._goal.gain  # it is its own inverse
        return Top(to_score(float(np.quantile(gains, 0.99))), to_score(float(gains.max())))

    def _expect_log(self, configs: list[dict[str, Any]]) -> Floats:
        """Predict the logarithms that the model is fitted to, shape (N, epochs)."""
        return self._model.predict_all(_encode_all(configs))[:, :-1]

    def _to_log(self, scores: Floats) -> Floats:
        """Turn accuracies into logarithms of errors, and losses into logarithms."""
        losses = 1.0 - scores + LEAST_ERROR if self._goal.mode == "max" else scores
        logarithms: Floats = np.log(losses)
        return logarithms

    def _from_log(self, logarithms: Floats) -> Floats:
        losses: Floats = np.exp(logarithms)
        return 1.0 - losses + LEAST_ERROR if self._goal.mode == "max" else losses


def best_gains(scores: Floats, goal: Goal) -> Floats:
    """The gain of each curve's best epoch, shape (N,); the scores have shape (N, epochs)."""
    gains = scores if goal.mode == "max" else -scores
    best: Floats = gains.max(axis=1)
    return best


def encode(config: dict[str, Any]) -> Floats:
    """Encode a config as numbers, sorted by parameter name, shape (parameters,)."""
    numbers = [
        np.log(value) if name in LOGARITHMIC else float(value)
        for name, value in sorted(config.items())
    ]
    return np.array(numbers)


def draw_space(num_draws: int) -> list[dict[str, Any]]:
    """Draw configs that represent the space; none of them has been recorded."""
    return [draw_config(SPACE_INDEX + index) for index in range(num_draws)]


def diverges(config: dict[str, Any], share: float) -> bool:
    """Whether a config diverges in the simulation.

    The probability rises with the learning rate: where u is the rank of the learning rate in the
    space, 0 to 1, it is u^(1 / share - 1), whose mean over the space is `share`. A hash of the
    config decides, so that a search can learn only part of the rule.
    """
    if not share:
        return False
    low, high = np.log(LR_RANGE)
    rank = np.clip((np.log(config["lr"]) - low) / (high - low), 0.0, 1.0)
    drawn = zlib.crc32(repr(sorted(config.items())).encode()) / 2**32
    return bool(drawn < rank ** (1 / share - 1))


def _deviations(values: Floats) -> Floats:
    """The deviations of rows from their mean, scaled up because the mean is itself estimated."""
    num_rows = len(values)
    deviations: Floats = (values - values.mean(axis=0)) * math.sqrt(num_rows / (num_rows - 1))
    return deviations


def _encode_all(configs: list[dict[str, Any]]) -> Floats:
    return np.stack([encode(config) for config in configs])
