"""Ridge regression by normal equations, which are summed block by block."""

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64


class NormalEquations:
    """Sums over the rows of a linear regression of Y `[n, K]` or `[n]` on X `[n, F]`.

        gram = X' X,    moment = X' Y,    n = the number of rows

    X is never in memory as a whole. Its last column is 1, for the intercept.

    Args:
        features: F.
        outputs: K; None for Y `[n]`.
    """

    def __init__(self, features: int, outputs: int | None = None) -> None:
        self.gram = np.zeros((features, features))
        self.moment = np.zeros(features if outputs is None else (features, outputs))
        self.n = 0

    def add(self, x: Float64[np.ndarray, "n F"], y: Float[np.ndarray, "n *K"]) -> None:
        """Add the rows of a block."""
        self.gram += x.T @ x
        self.moment += x.T @ y
        self.n += len(y)

    def solve(
        self, ridge: float, chosen: np.ndarray | None = None, intercept: float = 0.0
    ) -> Float64[np.ndarray, "F *K"]:
        """Return the weights of ridge regression.

            minimise  |Y - X w|^2 + ridge * n * (|w[:-1]|^2 + intercept * w[-1]^2)

        Args:
            ridge: the penalty per row, independent of the amount of data.
            chosen: indices of the features to use, the last one that of the intercept; None: all.
            intercept: the penalty of the intercept relative to that of the others.
        """
        gram, moment = self.gram, self.moment
        if chosen is not None:
            gram, moment = gram[np.ix_(chosen, chosen)], moment[chosen]
        penalty = np.full(len(gram), ridge * max(self.n, 1))
        penalty[-1] *= intercept
        return scipy.linalg.solve(gram + np.diag(penalty), moment, assume_a="pos")
