"""Print the tables of window_tradeoff."""

from typing import Any

from experiments.support.common.console import console, human_bytes, table


def show(summary: dict[str, Any]) -> None:
    """Print the tables."""
    table(
        f"{summary['dataset']}: {summary['horizon']} steps ahead, equal training seconds"
        + (" (QUICK: too short to conclude from)" if summary["quick"] else ""),
        (
            "estimator",
            "k1",
            "k2",
            "updates",
            "train s",
            "compile s",
            "step bytes",
            "valid MSE",
            "test MSE",
        ),
        [
            (
                r["estimator"],
                str(r["k1"]),
                str(r["k2"]),
                str(r["updates"]),
                f"{r['train_seconds']:.1f}",
                f"{r['compile_seconds']:.1f}",
                human_bytes(r["temp_bytes"]),
                f"{r['valid_mse']:.4f}",
                f"{r['test_mse']:.4f}",
            )
            for r in summary["rows"]
        ],
    )
    table(
        "without a network",
        ("baseline", "test MSE"),
        [(k, f"{v:.4f}") for k, v in summary["baselines"].items()],
    )
    table(
        "temporary bytes by sequence length",
        ("steps", "one TBPTT(50, 50) step", "one TBPTT(50, 50) epoch", "one full BPTT step"),
        [
            (
                str(m["length"]),
                *(
                    human_bytes(m[name])
                    for name in ("truncated_step", "truncated_epoch", "full_step")
                ),
            )
            for m in summary["memory"]
        ],
    )
    pick = summary["chosen"]
    console.print(
        f"chosen on validation: k1={pick['k1']}, k2={pick['k2']}; beats AR(256): "
        f"{pick['beats_ar256']}"
    )
