"""Draw the figure of lag_profile from its data."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import style


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw profile, horizon and bias of each recording, and the memory by window."""
    figure, axes = style.panels(
        3, title="Gradient by lag and bias of the truncated gradient (trained LSTM)", height=5.0
    )
    for axis, (name, result) in zip(axes[:2], data["results"].items(), strict=True):
        for index, (field, median) in enumerate(result["median"].items()):
            lags, top = np.arange(1, len(median) + 1), median[0]
            axis.plot(
                lags,
                np.array(median) / top,
                label=f"gradient by lag, {field} (median; band: 10 to 90 %)",
                **style.line(index),
            )
            mean = np.array(result["profile"][field])
            axis.plot(
                lags,
                mean / mean[0],
                color=style.COLORS[index],
                ls=":",
                lw=1.2,
                label=f"gradient by lag, {field} (mean)",
            )
            low, high = np.array(result["low"][field]) / top, np.array(result["high"][field]) / top
            axis.fill_between(
                lags,
                np.maximum(low, 1e-8),
                np.maximum(high, 1e-8),
                color=style.COLORS[index],
                alpha=0.15,
            )
        windows = result["windows"]
        axis.plot(
            [r["k2"] for r in windows],
            [r["bias"] for r in windows],
            marker="D",
            label="bias of TBPTT(k1, k2)",
            **style.line(3),
        )
        if result["predicted"] is not None and result["predicted"] < 2000:
            axis.axvline(
                result["predicted"],
                color="black",
                ls=":",
                lw=1.6,
                label="lag of 1 % left, predicted",
            )
        for index, (field, lag) in enumerate(result["measured"].items()):
            if lag is not None:
                label = f"the same, measured for {field} (median)"
                axis.plot(
                    lag,
                    0.01,
                    "*",
                    ms=11,
                    color=style.COLORS[index],
                    mec="black",
                    mew=0.6,
                    label=label,
                    zorder=5,
                )
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="lag k, or window k2 (steps)",
            ylabel="relative to lag 1; relative bias",
        )
        axis.set(title=name, ylim=(1e-6, 30))
        # Below: no curve is hidden.
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    windows = data["results"]["ppg"]["windows"]
    axes[2].plot(
        [r["k2"] for r in windows],
        [r["temp_bytes"] / 2**20 for r in windows],
        marker="o",
        **style.line(0),
    )
    axes[2].set(
        xscale="log",
        yscale="log",
        xlabel="window k2 (steps)",
        ylabel="temporary memory of the gradient (MiB)",
    )
    axes[2].set(title="Cost (batch of 8, 32 units)")
    style.save(figure, folder, "lag_profile")
