"""Measure how well the surrogates predict recorded configs that they have not seen.

python -m benchmarks.surrogate_error     # two minutes
python -m benchmarks.surrogate_error --data digits --metric val_loss
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro
from sklearn.model_selection import KFold

from benchmarks.record_curves import read_curves
from benchmarks.simulate import GOALS
from benchmarks.surrogate import Surrogate, best_gains
from benchmarks.surrogate_models import Floats

MODELS: Sequence[Literal["forest", "gp"]] = ("forest", "gp")


@dataclass(frozen=True)
class Args:
    """Measure the prediction error of surrogates."""

    data: Literal["mnist", "digits"] = "mnist"
    """Data set whose recorded curves are used."""
    metric: Literal["val_acc", "val_loss"] = "val_acc"
    """Metric to predict."""
    num_parts: int = 10
    """Folds of the cross-validation."""


def predict_unseen(args: Args, model: Literal["forest", "gp"]) -> Floats:
    """Predict the recorded configs, shape (N, epochs), each by a model that has not seen it."""
    configs, recorded = read_curves(args.data)
    predicted = np.empty_like(recorded[args.metric])
    for seen, unseen in KFold(args.num_parts, shuffle=True, random_state=0).split(configs):
        known = {name: curves[seen] for name, curves in recorded.items()}
        surrogate = Surrogate([configs[i] for i in seen], known, GOALS[args.metric], model=model)
        predicted[unseen] = surrogate.expect([configs[i] for i in unseen])
    return predicted


def correlate_ranks(some: Floats, others: Floats) -> float:
    """Spearman's correlation of two arrays with shape (N,) and almost no ties."""
    ranks = [values.argsort(kind="stable").argsort() for values in (some, others)]
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def main(args: Args) -> None:
    curves, goal = read_curves(args.data)[1][args.metric], GOALS[args.metric]
    true = best_gains(curves, goal)
    print(f"{args.data}, {args.metric}, {len(true)} configs\n")
    print("| model | error | error, better half | Spearman | Spearman, better half | best fifth |")
    print("| --- | --- | --- | --- | --- | --- |")
    half, fifth = (true > np.quantile(true, share) for share in (0.5, 0.8))
    for model in MODELS:
        predicted = best_gains(predict_unseen(args, model), goal)
        errors = [np.sqrt(np.mean((predicted - true)[part] ** 2)) for part in (true < np.inf, half)]
        ranks = [
            correlate_ranks(predicted[part], true[part]) for part in (true < np.inf, half, fifth)
        ]
        cells = [model, *(f"{error:.4f}" for error in errors), *(f"{rank:.2f}" for rank in ranks)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
