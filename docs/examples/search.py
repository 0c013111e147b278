"""Search recordings by sound, and group them.

Each recording becomes one vector, the mean over its frames; recordings with like vectors sound alike. In what
they are alike depends on the layer: try a low one for voices and a high one for words, and listen. Without a
query the first recording is looked for.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

from distilkit import demo, models
from distilkit.embed import embed


def main(arguments: Sequence[str] | None = None) -> None:
    """Embed a folder once, then search and cluster."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?", default=demo.WORDS)
    parser.add_argument("--model", default="tiny", help="a run, a folder, a hub id")
    parser.add_argument("--layer", default="last")
    parser.add_argument("--query", help="a recording's path in the folder; the first one")
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("example-vectors"))
    asked = parser.parse_args(arguments)

    opened = models.encoder(asked.model)
    embedded, skipped, place = embed(  # a second call finds what the first has written
        [asked.folder],
        opened.listener,
        layer=asked.layer,
        pool="mean",
        out=asked.out,
        name=asked.model,
    )
    print(f"{len(embedded)} recordings, {len(skipped)} left out, vectors in {place}")

    names = [item.id for item in embedded]
    vectors_ND = np.stack([np.load(place / item.output) for item in embedded])
    vectors_ND -= vectors_ND.mean(0)  # what all of them share tells nothing apart
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)

    query = names.index(asked.query) if asked.query else 0
    near = np.argsort(-vectors_ND @ vectors_ND[query])[1:6]
    print(f"most like {names[query]}:")
    for other in near:
        print(f"  {names[other]}  {vectors_ND[other] @ vectors_ND[query]:.2f}")

    group_N = KMeans(asked.groups, n_init=4, random_state=0).fit_predict(vectors_ND)
    for group in range(asked.groups):
        members = [names[index] for index in np.flatnonzero(group_N == group)]
        print(f"group {group}, {len(members)} recordings: {', '.join(members[:4])} ...")


if __name__ == "__main__":
    main()
