"""Compare LSTM character models of Shakespeare's plays with n-grams.

    python -m experiments.char_lm            about 11 minutes on two cores
    python -m experiments.char_lm --quick    under 60 seconds, too short for good scores

Five of the 38 plays are held out: two for the comparison of windows (k1 = k2, at equal updates),
and three for the test of LSTMs of one and two layers with dropout. Expected: fewer bits per
character than an interpolated Kneser-Ney n-gram with contexts of 5 characters, which has 2.18 on
the same plays; and a window of 2 steps is worse than a longer one. A sample of generated text is in
the summary and in sample.txt.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.support.common import ngram, program, style, targets
from experiments.support.common.console import console, progress, table
from experiments.support.common.unroll_choice import choose_unroll
from experiments.support.tasks import characters
from tbptt.data import Alphabet, Plays, alphabet_of, next_symbol_streams, shakespeare

VALID, TEST = ("the-tempest", "julius-caesar"), ("twelfth-night", "richard-ii", "king-lear")
ORDER = 5  # characters of context of the n-grams
# Layers, fraction of --hidden, dropout rate.
MODELS = {"1 layer": (1, 1.0, 0.0), "2 layers, dropout": (2, 0.75, 0.05)}


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """Settings of the two models and of the window sweep."""

    seeds: int = 2
    """number of seeds of every window of the sweep, each with its own parameters, all derived from
    --seed"""
    model_seeds: int = 1
    """number of seeds of each of the two models"""
    hidden: int = 256
    """units of the one-layer model; each of two layers has 3/4 as many"""
    passes: float = 2.5
    """passes of the models over the training plays"""
    batch: int = 32
    """number of text segments trained side by side"""
    k: int = 32
    """window of the models in steps, k1 = k2"""
    windows: tuple[int, ...] = (2, 8, 32)
    """windows of the sweep in steps, k1 = k2, all with an update every 32 steps"""
    sweep_hidden: int = 128
    """units of the models of the sweep"""
    sweep_passes: float = 1.0
    """passes of the sweep over the training plays"""
    lr: float = 4e-3
    """initial learning rate of Adam; cosine decay to 0"""
    prompt: str = "KING LEAR\n"
    """start of the generated sample"""
    sample: int = 1000
    """number of characters to generate"""


def smaller(config: Config) -> Config:
    """Return the settings of a quick run."""
    few = {
        "seeds": 1,
        "hidden": 64,
        "passes": 0.2,
        "windows": (2, 32),
        "sweep_hidden": 64,
        "sweep_passes": 0.05,
    }
    return dataclasses.replace(config, **few, sample=200)


def baselines(train: np.ndarray, text: np.ndarray, V: int) -> dict[str, float]:
    """Count and score n-grams, named by their number of context characters."""
    mixed = ngram.witten_bell(train, text, V, ORDER)
    return {
        "single characters": mixed[0],
        f"Witten-Bell, {ORDER} characters": mixed[ORDER],
        f"Kneser-Ney, {ORDER - 1} characters": ngram.kneser_ney(train, text, V, ORDER - 1),
        f"Kneser-Ney, {ORDER} characters": ngram.kneser_ney(train, text, V, ORDER),
    }


def measure(config: Config) -> dict[str, Any]:
    """Sweep the window, train the models, and score both and the n-grams on held-out plays."""
    config = smaller(config) if config.quick else config
    plays = shakespeare()
    alphabet = alphabet_of(plays.text())
    alphabet.encode(config.prompt)  # raises for an unknown symbol before the training starts
    parts = {name: alphabet.encode(plays.text(of)) for name, of in split(plays).items()}
    base = baselines(parts["train"], parts["test"], len(alphabet))
    best = min(base.values())
    table(
        "n-grams", ("context", "test bits"), [(name, f"{bits:.3f}") for name, bits in base.items()]
    )
    sweep = {str(k): sweep_one(config, k, parts, len(alphabet)) for k in config.windows}
    found = {name: train_one(config, name, parts, alphabet) for name in MODELS}
    short, long = (sweep[str(pick(config.windows))] for pick in (min, max))
    rows = [
        targets.expect(
            f"{name}: test bits per character",
            found[name]["test_bits"],
            at_most=best,
            of=targets.largest,
            because="the best n-gram of this run",
            otherwise=f"The n-gram has {best:.3f} bits; the network had {config.passes:g} passes.",
        )
        for name in MODELS
    ]
    gain = np.subtract(short, long)
    low, high = min(config.windows), max(config.windows)
    what = f"bits per character of window {low} minus those of window {high}"
    medians = ", ".join(f"{k}: {np.median(bits):.3f}" for k, bits in sweep.items())
    text = f"Validation bits by window after {config.sweep_passes:g} passes: {medians}."
    rows.append(
        targets.expect(
            what, gain, at_least=0.0, of=targets.smallest, because="equal updates", otherwise=text
        )
    )
    sample = found["2 layers, dropout"]["sample"]
    console.print(f"\n{config.prompt}{sample}\n", markup=False, highlight=False)
    return {
        "baselines": base,
        "sweep": sweep,
        "models": found,
        "characters": {name: len(codes) for name, codes in parts.items()},
        "targets": rows,
        "results": {
            "baselines": base,
            "validation_bits_by_window": sweep,
            "held_out": {"windows compared on": VALID, "tested on": TEST},
            "left_out": {name: model["left_out"] for name, model in found.items()},
            "prompt": config.prompt,
            "sample": sample,
        },
    }


def split(plays: Plays) -> dict[str, tuple[str, ...]]:
    """Return the names of the plays of each part."""
    return {"train": plays.without(VALID + TEST), "valid": VALID, "test": TEST}


def sweep_one(config: Config, k: int, parts: dict[str, np.ndarray], V: int) -> list[float]:
    """Train a small model with one window.

    Return the validation bits per character of every seed.
    """
    chunk = max(config.windows)
    batch, _ = next_symbol_streams(parts["train"], 16, chunk * characters.SECTION)
    model = characters.make_model(V, 1, config.sweep_hidden, 64, 0.0, choose_unroll(config.unroll))
    params, _ = run(
        config, f"k1 = k2 = {k}", model, batch, k, chunk, config.sweep_passes, config.seeds
    )
    return characters.bits_per_character(model, params, parts["valid"])


def train_one(
    config: Config, name: str, parts: dict[str, np.ndarray], alphabet: Alphabet
) -> dict[str, Any]:
    """Train one of the models.

    Return its loss curve, its bits on the test plays and a sample of the first seed.
    """
    layers, share, rate = MODELS[name]
    batch, left_out = next_symbol_streams(
        parts["train"], config.batch, config.k * characters.SECTION
    )
    hidden, unroll = round(share * config.hidden), choose_unroll(config.unroll)
    model = characters.make_model(len(alphabet), layers, hidden, 64, rate, unroll)
    params, curve = run(
        config, name, model, batch, config.k, config.k, config.passes, config.model_seeds
    )
    first = jax.tree.map(lambda leaf: leaf[0], params)
    key = jax.random.key(config.seed)
    return {
        "test_bits": characters.bits_per_character(model, params, parts["test"]),
        "curve": curve.mean(1).tolist(),
        "step": config.batch * config.k * characters.SECTION,
        "left_out": left_out,
        "sample": characters.generate(model, first, alphabet, config.prompt, config.sample, key),
    }


def run(
    config: Config,
    name: str,
    model: characters.Model,
    batch: Any,
    k: int,
    chunk: int,
    passes: float,
    seeds: int,
) -> Any:
    """Train with a progress bar on stderr."""
    keys = jax.random.split(jax.random.key(config.seed), seeds)
    with progress() as display:
        task = display.add_task(name.ljust(20), total=1.0, loss="compiling")

        def report(done: float, bits: float) -> None:
            display.update(task, completed=done, loss=f"{bits:.3f} bits")

        return characters.train(model, batch, k, chunk, passes, config.lr, keys, report)


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw bits by window, the training curves, and the models with the n-grams.

    Write the sample.
    """
    (folder / "sample.txt").write_text(
        data["results"]["prompt"] + data["results"]["sample"] + "\n", encoding="utf-8"
    )
    figure, axes = style.panels(
        3, title="Character models of Shakespeare's plays, trained by TBPTT"
    )
    ks = [int(k) for k in data["sweep"]]
    for x, bits in enumerate(data["sweep"].values()):
        targets.dots(axes[0], x, bits)
    axes[0].set_xticks(range(len(ks)), [str(k) for k in ks])
    axes[0].set(xlabel="window k1 = k2 (steps)", ylabel="bits per character, validation plays")
    axes[0].set_title("Validation by window, at equal updates", fontsize=10)
    best = min(data["baselines"], key=data["baselines"].get)
    for index, (name, model) in enumerate(data["models"].items()):
        seen = (1 + np.arange(len(model["curve"]))) * model["step"] / 1e6
        axes[1].plot(seen, model["curve"], label=name, **style.line(index))
    axes[1].set(xlabel="training characters read (millions)", ylabel="bits per character, training")
    axes[1].set_title("Training, mean of the seeds", fontsize=10)
    axes[1].legend(fontsize=8)
    for x, model in enumerate(data["models"].values()):
        targets.dots(axes[2], x, model["test_bits"], x)
    for index, (name, bits) in enumerate(data["baselines"].items()):
        if name != "single characters":
            axes[2].axhline(
                bits,
                label=f"{name}: {bits:.2f}",
                **style.line(index + 2) | {"lw": 2.2 if name == best else 1.2},
            )
    axes[2].set_xticks(range(len(data["models"])), list(data["models"]))
    axes[2].set(xlim=(-0.6, len(data["models"]) - 0.4), ylabel="bits per character, test plays")
    axes[2].set_title("Networks (one dot per seed) and n-grams", fontsize=10)
    low, high = axes[2].get_ylim()
    axes[2].set_ylim(low, high + 0.4 * (high - low))  # space for the legend
    axes[2].legend(fontsize=8, loc="upper center")
    style.save(figure, folder, "char_lm")


if __name__ == "__main__":
    program.run(__file__)
