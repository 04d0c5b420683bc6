"""Regressions that predict one row quickly: `Forest` and `GaussianProcess`."""

import warnings
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

__all__ = ["Floats", "Forest", "GaussianProcess", "Model"]

Floats = NDArray[np.float64]


class Model(Protocol):
    """A fitted regression."""

    def predict(self, row: Floats) -> Floats:
        """Predict the outputs, shape (outputs,), of one row of inputs, shape (inputs,)."""

    def predict_all(self, rows: Floats) -> Floats:
        """Predict the outputs, shape (N, outputs), of rows of inputs, shape (N, inputs)."""


class Forest:
    """Extremely randomized trees, fully grown, so that they reproduce the data they are fitted to.

    scikit-learn takes 5 ms for one row, most of it to pass the row to each tree. Here all trees
    descend one level at a time together.

    Args:
        inputs: Shape (N, inputs).
        outputs: Shape (N, outputs).
        num_trees: The number of trees.
    """

    def __init__(self, inputs: Floats, outputs: Floats, num_trees: int = 100) -> None:
        self._fitted = ExtraTreesRegressor(num_trees, random_state=0).fit(inputs, outputs)
        trees = [estimator.tree_ for estimator in self._fitted.estimators_]
        sizes = [tree.node_count for tree in trees]
        self._roots = np.cumsum([0, *sizes[:-1]])
        offsets = np.repeat(self._roots, sizes)
        left = np.concatenate([tree.children_left for tree in trees])
        right = np.concatenate([tree.children_right for tree in trees])
        is_leaf, nodes = left < 0, np.arange(len(left))
        # The child of a leaf is the leaf itself, so that all trees take the same number of steps.
        self._left = np.where(is_leaf, nodes, left + offsets)
        self._right = np.where(is_leaf, nodes, right + offsets)
        self._feature = np.where(is_leaf, 0, np.concatenate([tree.feature for tree in trees]))
        self._threshold = np.concatenate([tree.threshold for tree in trees])
        self._values = np.concatenate([tree.value[:, :, 0] for tree in trees])  # (nodes, outputs)
        self._depth = max(tree.max_depth for tree in trees)

    def predict(self, row: Floats) -> Floats:
        rounded = row.astype(np.float32)  # scikit-learn compares in this precision
        nodes = self._roots  # (trees,)
        for _ in range(self._depth):
            is_left = rounded[self._feature[nodes]] <= self._threshold[nodes]
            nodes = np.where(is_left, self._left[nodes], self._right[nodes])
        outputs: Floats = self._values[nodes].mean(axis=0)
        return outputs

    def predict_all(self, rows: Floats) -> Floats:
        outputs: Floats = self._fitted.predict(rows)
        return outputs


class GaussianProcess:
    """A Gaussian process with a Matern kernel, a length scale for each input, and noise.

    Predictions leave out the noise. All outputs share the kernel, whose parameters maximize the
    likelihood.

    Args:
        inputs: Shape (N, inputs).
        outputs: Shape (N, outputs).
    """

    def __init__(self, inputs: Floats, outputs: Floats) -> None:
        self._mean, self._spread = inputs.mean(axis=0), inputs.std(axis=0)
        matern = Matern(np.ones(inputs.shape[1]), (0.1, 100.0), nu=2.5)
        kernel = ConstantKernel(1.0, (1e-2, 1e4)) * matern + WhiteKernel(0.1)
        self._fitted = GaussianProcessRegressor(kernel, normalize_y=True)
        with warnings.catch_warnings():
            # The length scale of an input that does not matter ends at its upper bound.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._fitted.fit(self._scaled(inputs), outputs)
        found = self._fitted.kernel_.k1
        self._lengths = found.k2.length_scale  # (inputs,)
        self._points = self._fitted.X_train_ / self._lengths  # (N, inputs)
        self._weights = self._fitted.alpha_ * found.k1.constant_value * outputs.std(axis=0)
        self._offset = outputs.mean(axis=0)

    def predict(self, row: Floats) -> Floats:
        steps = self._points - self._scaled(row) / self._lengths
        distances = np.sqrt(5.0 * (steps * steps).sum(axis=1))  # (N,)
        covariances = (1.0 + distances + distances * distances / 3.0) * np.exp(-distances)
        outputs: Floats = covariances @ self._weights + self._offset
        return outputs

    def predict_all(self, rows: Floats) -> Floats:
        outputs: Floats = self._fitted.predict(self._scaled(rows))
        return outputs

    def _scaled(self, rows: Floats) -> Floats:
        scaled: Floats = (rows - self._mean) / self._spread
        return scaled
