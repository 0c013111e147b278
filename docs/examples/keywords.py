"""Keywords: what a student kept.

A small head is trained on frozen frames of each model, and tested on speakers that it never heard.
`log-mel` needs no model: what it can do was never the model's merit. The command for this is
`distilkit probe ks DATA`.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distilkit import demo, probes, teachers
from distilkit.probes import features
from distilkit.probes.examples import Asked


def main(arguments: Sequence[str] | None = None) -> None:
    """Probe a student, its teacher, and log-mel bands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="*", default=[demo.WORDS], help="recordings with a table")
    parser.add_argument(
        "--label", default="transcription", help="the column that holds the keyword"
    )
    parser.add_argument("--model", default="tiny", help="a student")
    parser.add_argument("--against", help="its teacher")
    parser.add_argument("--workers", type=int, help="processes that train heads; one a core")
    asked = parser.parse_args(arguments)

    cuts = probes.read(asked.data).cuts
    problems, left = probes.prepare(["ks"], cuts, Asked(columns=(asked.label,)))
    assert not left  # else why the task cannot be done
    systems = [features.log_mel()]
    for name in filter(None, (asked.model, asked.against)):
        encoder, _ = teachers.load(name)
        systems.append(features.model(name, encoder, "cpu", "fp32"))
    with tempfile.TemporaryDirectory() as folder:
        heard = probes.hear(systems, problems, Path(folder), "cpu")
        for outcome in probes.solve(problems, heard, against=asked.against, workers=asked.workers):
            for name, metrics in outcome.values.items():
                value = metrics["accuracy"]
                print(f"{name}: {value.value:.1%} right ({value.low:.1%} to {value.high:.1%})")
            if outcome.kept:
                print(f"kept of {asked.against}: {outcome.kept.value:.1%}")


if __name__ == "__main__":  # heads are trained in processes of their own
    main()
