"""Average the log-probabilities of a recording's rows into one answer."""

from typing import Any

import numpy as np
import scipy.special

State = tuple[np.ndarray, np.ndarray]  # sum of log-probabilities `[K]`, number of rows `[]`


class MeanLogProbabilities:
    """Mean of the log-probabilities of a recording up to each row.

        total, n = 0, 0 where a recording begins
        total, n = total + log_softmax(outputs[t]), n + 1       unless row t is masked
        answers[t] = total / n

    Blocks of rows follow each other; the sum continues from one to the next.

    Attributes:
        state: the sum of the recording and its number of rows, after the last block.
    """

    def __init__(self, state: State) -> None:
        self.state = state

    def __call__(self, outputs: np.ndarray, resets: np.ndarray, mask: Any = None) -> np.ndarray:
        """Return the answers of a block, `[n, K]` like its outputs."""
        logs = scipy.special.log_softmax(np.asarray(outputs, np.float64), axis=1)
        good = np.ones(len(logs), bool) if mask is None else np.asarray(mask, bool)
        answers = np.empty_like(logs)
        edges = [0, *(np.flatnonzero(resets[1:]) + 1).tolist(), len(logs)]
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
            new = bool(resets[begin])
            known, rows = (np.zeros_like(logs[0]), 0) if new else self.state
            kept = good[begin:end]
            total = known + np.cumsum(np.where(kept[:, None], logs[begin:end], 0), axis=0)
            n = rows + np.cumsum(kept)
            answers[begin:end] = total / np.maximum(n, 1)[:, None]
            self.state = total[-1], np.asarray(n[-1])
        return answers.astype(outputs.dtype)


def initial_mean(outputs: int) -> State:
    """Return the state before the first row, for so many classes."""
    return np.zeros(outputs), np.zeros((), int)
