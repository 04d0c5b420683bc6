"""Curves for every config of the space, from those that were recorded: `Surrogate`.

Two models are to be had, a forest and a Gaussian process; `benchmarks/surrogate_error.py` tells how
near they come to configs that they have not seen.

The forest returns recorded curves as they are, and mixes them between: its best are two dozen
islands, each around one config whose training was lucky, and who finds one is lucky each time. The
process takes luck for noise, and gives each training its own: by how much one of the recorded
curves, drawn at random, is off the process's; or one of the curves of a config that was trained
several times, off their mean. That counts among the best, whose scores differ by less than those of
two trainings.
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
SPACE_INDEX = 1_000_000  # of the first config that stands for the space; recorded ones are below
LEAST_ERROR = 1e-3  # added to errors, whose logarithm is modelled: a recorded one may be 0


class Curve(NamedTuple):
    """What training a config shows.

    Attributes:
        scores: Shape (epochs,).
        epoch_length: How long it trains an epoch, relative to the mean config.
    """

    scores: Floats
    epoch_length: float


class Top(NamedTuple):
    """The best of the space.

    Attributes:
        target: The score that one config in a hundred reaches, at its best epoch.
        best: The best score of all that were drawn.
    """

    target: float
    best: float


class Surrogate:
    """The curves of all configs of the space.

    Args:
        configs: What has been recorded, N of them.
        recorded: The goal's metric and "seconds", each with shape (N, epochs).
        goal: What is optimised.
        repeats: What trainings of one config have shown, shape (repeats, epochs) each; without any
            the noise is what the process does not explain.
        nan_share: Share of the space that diverges in its first epoch.
        model: What is fitted to them.

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
        # Each row is the noise of a training, shape (M, epochs).
        self._noise = np.vstack(deviations or [outputs[:, :-1] - self._expect_log(configs)])

    def curve(self, config: dict[str, Any], rng: np.random.Generator) -> Curve:
        """What training a config shows once; its scores are NaN if it diverges."""
        outputs = self._model.predict(encode(config))
        scores = self._from_log(outputs[:-1] + rng.choice(self._noise))
        if diverges(config, self._nan_share):
            scores = np.full_like(scores, np.nan)
        return Curve(scores, float(np.exp(outputs[-1])))

    def expect(self, configs: list[dict[str, Any]]) -> Floats:
        """Scores without noise, shape (N, epochs)."""
        return self._from_log(self._expect_log(configs))

    def expect_best(self, config: dict[str, Any]) -> float:
        """The score of a config's best epoch, without noise."""
        (gain,) = best_gains(self.expect([config]), self._goal)
        return self._goal.gain(float(gain))

    def top(self, num_draws: int) -> Top:
        """The best of the space, judged by configs that are drawn as random search draws them."""
        configs = draw_space(num_draws)
        noise = np.random.default_rng(0).choice(self._noise, num_draws)
        scores = self._from_log(self._expect_log(configs) + noise)
        gains = best_gains(scores, self._goal)
        gains[[diverges(config, self._nan_share) for config in configs]] = -np.inf
        to_score = self._goal.gain  # its own inverse
        return Top(to_score(float(np.quantile(gains, 0.99))), to_score(float(gains.max())))

    def _expect_log(self, configs: list[dict[str, Any]]) -> Floats:
        """What is modelled of their scores, shape (N, epochs)."""
        return self._model.predict_all(_encode_all(configs))[:, :-1]

    def _to_log(self, scores: Floats) -> Floats:
        """Accuracies as logarithms of errors, losses as logarithms."""
        losses = 1.0 - scores + LEAST_ERROR if self._goal.mode == "max" else scores
        logarithms: Floats = np.log(losses)
        return logarithms

    def _from_log(self, logarithms: Floats) -> Floats:
        losses: Floats = np.exp(logarithms)
        return 1.0 - losses + LEAST_ERROR if self._goal.mode == "max" else losses


def best_gains(scores: Floats, goal: Goal) -> Floats:
    """The gain of each curve's best epoch, shape (N,), from scores with shape (N, epochs)."""
    gains = scores if goal.mode == "max" else -scores
    best: Floats = gains.max(axis=1)
    return best


def encode(config: dict[str, Any]) -> Floats:
    """A config as numbers in the order of their names, shape (parameters,)."""
    numbers = [
        np.log(value) if name in LOGARITHMIC else float(value)
        for name, value in sorted(config.items())
    ]
    return np.array(numbers)


def draw_space(num_draws: int) -> list[dict[str, Any]]:
    """Configs that stand for the space; none of them has been recorded."""
    return [draw_config(SPACE_INDEX + index) for index in range(num_draws)]


def diverges(config: dict[str, Any], share: float) -> bool:
    """Whether a config is one of those that are made to diverge.

    The higher its learning rate, the more likely: with u the rank of its learning rate in the
    space, 0 to 1, the probability is u^(1 / share - 1), whose mean over the space is `share`.
    Which of them do is left to a hash, so that a searcher can learn it only in part.
    """
    if not share:
        return False
    low, high = np.log(LR_RANGE)
    rank = np.clip((np.log(config["lr"]) - low) / (high - low), 0.0, 1.0)
    drawn = zlib.crc32(repr(sorted(config.items())).encode()) / 2**32
    return bool(drawn < rank ** (1 / share - 1))


def _deviations(values: Floats) -> Floats:
    """By how much each row is off their mean, as widely as if that were the true one."""
    num_rows = len(values)
    deviations: Floats = (values - values.mean(axis=0)) * math.sqrt(num_rows / (num_rows - 1))
    return deviations


def _encode_all(configs: list[dict[str, Any]]) -> Floats:
    return np.stack([encode(config) for config in configs])
