"""Distil a student, and embed with it.

The same as `distilkit distill` and `distilkit embed`, with the steps in your hands: stop when you like, log
where you like. Twenty steps show that it runs; for a student of use leave out `--steps` and
`--step-seconds`, take a real teacher, and see [a first distillation](../guides/first-distillation.md).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distilkit import demo, teachers
from distilkit.config import load_recipe
from distilkit.distill import prepare, train
from distilkit.embed import embed


def main(arguments: Sequence[str] | None = None) -> None:
    """Distil, then embed one recording."""
    parser = argparse.ArgumentParser()
    parser.add_argument("audio", nargs="*", default=[demo.SPEECH], help="folders or files")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--recipe", default="personal")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--step-seconds", type=float, default=16.0)
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    parser.add_argument("--embed", type=Path, default=next(demo.examples()))
    asked = parser.parse_args(arguments)

    recipe = load_recipe(
        asked.recipe, [f"train.steps={asked.steps}", f"batches.seconds={asked.step_seconds}"]
    )
    job = prepare(asked.audio, teacher=asked.teacher, out=asked.out, recipe=recipe)
    for choice in job.plan.choices:
        print(f"{choice.name}: {choice.value} ({choice.reason})")
    for step in train(job):  # a generator: leave it, and the run can be resumed
        if step.number % 5 == 0:
            print(f"step {step.number}: loss {step.loss:.3f}, {step.grad_norm:.2f}")

    student, _ = teachers.load(str(asked.out))
    embedded, skipped, place = embed([asked.embed], student, out=asked.out / "vectors.npy")
    vectors_TD = np.load(place)
    print(f"{place}: {vectors_TD.shape[0]} vectors of {vectors_TD.shape[1]}, left out: {skipped}")
    assert embedded[0].shape == vectors_TD.shape


if __name__ == "__main__":
    main()
