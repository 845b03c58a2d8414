"""What Aicher, Foti and Fox found on the copy task, beside what `experiments.adaptive_copy` measured."""

from typing import Any

from experiments.support.common import program
from experiments.support.estimators.copy_training import LAG, NOTHING


def claims(rows: list[dict[str, Any]], curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Makes the claims.

    Args: rows: of the summary; curves: of the figure, `asked` being `[passes, k2]` where a tolerance was asked.
    """
    by_k = {row["k"]: row["perplexity"] for row in rows if "k" in row}
    longer = [p for k, p in by_k.items() if k >= LAG]
    adaptive = [row["perplexity"] for row in rows if "delta" in row]
    asked = {curve["name"]: dict(curve["asked"]) for curve in curves if curve["asked"]}
    grown = {name: (of[0], of[1], of[max(of)]) for name, of in asked.items()}
    short = next(row for row in rows if row.get("k") == 5)
    clean = short["perplexity_without_repeats"]
    return [
        program.claim(1, "K = 5: the plateau (published 1.65)", by_k[5], "1.4 to 1.8", 1.4 < by_k[5] < 1.8),
        program.claim(2, "K >= 10: worst perplexity", max(longer), "below 1.1", max(longer) < 1.1),
        program.claim(3, "delta: worst perplexity", max(adaptive), "below 1.1", max(adaptive) < 1.1),
        program.claim(
            4,
            "k2 that a tolerance asks for, of its own network: untrained; after one pass, when it knows little more than "
            "how frequent symbols are; at the end",
            "; ".join(f"{name}: {before}, {early}, {late}" for name, (before, early, late) in grown.items()),
            "it grows, from before anything is learnt, with every delta",
            all(late > before for before, _, late in grown.values()),
        ),
        program.claim(
            5,
            "K = 5 against the worst of all others (the order of the plateaus)",
            f"{by_k[5]:.3f}; {max(longer + adaptive):.3f}",
            "further from 1 by more than 5 times",
            by_k[5] - 1 > 5 * (max(longer + adaptive) - 1),
        ),
        program.claim(
            6,
            "K = 5 remembers nothing: its perplexity, and without the repeats of the published streams",
            f"{by_k[5]:.3f}; {clean:.3f}",
            f"{short['nothing']:.3f}; {NOTHING:.3f}, within 5 %",
            abs(by_k[5] / short["nothing"] - 1) < 0.05 and abs(clean / NOTHING - 1) < 0.05,
        ),
    ]
