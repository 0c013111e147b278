"""Put trained students into the package as the built-in model `tiny`, in fp16; its card stays.

Several runs of one recipe from one start, differing in their seed, become one model: the mean of their
weights (Wortsman et al., Model soups, arXiv 2203.05482, the uniform one). With --out the model goes to
that folder instead, in fp32, to teach the next runs.

python distilkit/assets/pack.py RUN ... [--out FOLDER]
"""

import argparse
import sys
from pathlib import Path

import torch

from distilkit import hub, teachers
from distilkit.encoder import Encoder
from distilkit.runs import replacing
from distilkit.students import save


def mean(models: list[Encoder]) -> Encoder:
    """The first model, with the mean of all their weights."""
    first, *others = (model.model.state_dict() for model in models)
    if any(first.keys() != other.keys() for other in others):
        sys.exit("these models have different weights: give runs of one recipe")
    several = [first, *others]
    weights = {
        name: torch.stack([each[name].double() for each in several]).mean(0) for name in first
    }
    models[0].model.load_state_dict(weights)
    return models[0]


def main() -> None:
    """Write the model, and say how large it is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    encoder = mean([teachers.load(name)[0] for name in asked.runs])
    target = asked.out or hub.BUILT_IN["tiny"]
    card = target / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else "# tiny\n"
    with replacing(target) as beside:
        save(encoder, beside, text, torch.float32 if asked.out else torch.float16)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{size / 1e6:.2f} MB in {target}")


if __name__ == "__main__":
    main()
