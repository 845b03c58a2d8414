"""Compare the results of `experiments.adaptive_copy` with those of Aicher, Foti and Fox."""

from typing import Any

from experiments.support.common import program
from experiments.support.estimators.copy_training import LAG, MEMORYLESS


def claims(rows: list[dict[str, Any]], curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the claims.

    Args:
      rows: the rows of the summary.
      curves: the curves of the figure; `required` is a list of `[passes, k2]`, empty for fixed
        windows.
    """
    by_k = {row["k"]: row["perplexity"] for row in rows if "k" in row}
    longer = [p for k, p in by_k.items() if k >= LAG]
    adaptive = [row["perplexity"] for row in rows if "delta" in row]
    required = {curve["name"]: dict(curve["required"]) for curve in curves if curve["required"]}
    grown = {name: (of[0], of[1], of[max(of)]) for name, of in required.items()}
    short = next(row for row in rows if row.get("k") == 5)
    clean = short["perplexity_without_repeats"]
    return [
        program.claim(
            1, "K = 5: perplexity (published 1.65)", by_k[5], "1.4 to 1.8", 1.4 < by_k[5] < 1.8
        ),
        program.claim(
            2, "K >= 10: largest perplexity", max(longer), "below 1.1", max(longer) < 1.1
        ),
        program.claim(
            3, "chosen windows: largest perplexity", max(adaptive), "below 1.1", max(adaptive) < 1.1
        ),
        program.claim(
            4,
            "k2 that a tolerance requires: before training; after one pass, when the network "
            "predicts little more than "
            "symbol frequencies; at the end",
            "; ".join(
                f"{name}: {before}, {early}, {late}"
                for name, (before, early, late) in grown.items()
            ),
            "larger at the end than before training, for every delta",
            all(late > before for before, _, late in grown.values()),
        ),
        program.claim(
            5,
            "perplexity of K = 5; largest of all others",
            f"{by_k[5]:.3f}; {max(longer + adaptive):.3f}",
            "its distance from 1 is more than 5 times as large",
            by_k[5] - 1 > 5 * (max(longer + adaptive) - 1),
        ),
        program.claim(
            6,
            "K = 5 is memoryless: its perplexity on published streams; on a stream without repeats",
            f"{by_k[5]:.3f}; {clean:.3f}",
            f"{short['memoryless']:.3f}; {MEMORYLESS:.3f}, within 5 %",
            abs(by_k[5] / short["memoryless"] - 1) < 0.05 and abs(clean / MEMORYLESS - 1) < 0.05,
        ),
    ]
