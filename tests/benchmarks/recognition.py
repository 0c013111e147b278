"""Recognisers of spoken orders: fine-tuned on 25 people, tested on 13 whom no model here ever heard.

Needs DISTILKIT_SHARED (recordings in `speech/commands`). Writes the two folders, makes a tokenizer, fine-tunes a
student as asked, and counts its errors: greedily, and with a language model of the training texts.

python tests/benchmarks/recognition.py STUDENT --how full --seed 0 [--people 6] [--mixed] [--record]
python tests/benchmarks/recognition.py --table

The student is that of `distilkit demo`, copied to a folder of a name without a path.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from record import RESULTS, record

from distilkit.assets.real import unheard

SPEECH = Path(os.environ.get("DISTILKIT_SHARED", "shared")) / "speech"
PEOPLE = 25  # of the 38 in `commands`; the others are tested
MORE = ("ljspeech", "prompts", "read_short")  # other people, other words, in --mixed
WAYS = {
    "full": (),
    "frozen": ("--set", "train.freeze_front_end=true"),
    "lora": (
        *("--lora", "--rank", "64", "--set", "model.dropout=0", "--set", "lora.front_end=false"),
        *("--set", "train.passes=300"),
    ),
    "lora front": ("--lora", "--rank", "64", "--set", "model.dropout=0"),
    "random": ("--set", "model.start=random"),
}


def rows(name: str) -> list[dict[str, str]]:
    """The table of a set of recordings; its English rows where it has several languages."""
    with (SPEECH / name / "metadata.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    return [row for row in found if row.get("language", "en") == "en"]


def write(folder: Path, chosen: list[tuple[str, dict[str, str]]]) -> Path:
    """A folder of links to recordings, with their texts and speakers."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file_name", "transcription", "speaker"])
            for name, row in chosen:
                link = f"{name}-{row['file_name'].replace('/', '-')}"
                (folder / link).symlink_to((SPEECH / name / row["file_name"]).resolve())
                table.writerow([link, row["transcription"], row["speaker"]])
    return folder


def folders(place: Path, people: int, mixed: bool) -> tuple[Path, Path]:
    """What is trained on, and what is tested on."""
    orders = rows("commands")
    speakers = {row["speaker"] for row in orders}
    tested = unheard(speakers)
    heard = sorted(speakers - tested)[:people]
    train = [("commands", row) for row in orders if row["speaker"] in heard]
    if mixed:
        train += [(name, row) for name in MORE for row in rows(name)]
    test = [("commands", row) for row in orders if row["speaker"] in tested]
    name = ("mixed" if mixed else "train") + ("" if people == PEOPLE else f"-{people}")
    return write(place / name, train), write(place / "test", test)


def table() -> None:
    """Print what was recorded, a line for each way to train: means, least and most.

    A training that was repeated, and came to the same errors, counts once.
    """
    found: dict[tuple[object, ...], dict[str, dict[str, Any]]] = {}
    for line in (RESULTS / "recognition.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        keys = ("how", "kind", "people", "mixed", "set")
        same = str([row[key] for key in ("seed", "greedy", "lm")])
        found.setdefault(tuple(str(row[key]) for key in keys), {})[same] = row
    for key, trainings in found.items():
        seeds = list(trainings.values())
        minutes = [row["train_minutes"] for row in seeds]
        shown = [f"minutes {mean(minutes):.1f}"]
        for label in ("greedy", "lm"):
            rates = [100 * row[label]["wer"] for row in seeds]
            shown.append(f"{label} {mean(rates):.1f}% ({min(rates):.1f} to {max(rates):.1f})")
        print(*key, f"trainings {len(seeds)}", *shown, sep="  ")


def curve(run: Path) -> list[tuple[int, float]]:
    """Steps, and the share of words wrong on what is held out then."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], round(row["valid"]["wer"], 4)) for row in rows if "valid" in row]


def distilkit(*arguments: object) -> str:
    """Run a command; its result."""
    command = [sys.executable, "-m", "distilkit", *map(str, arguments)]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout


def main() -> None:
    """Fine-tune and test once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("student", nargs="?")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--how", choices=WAYS, default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--people", type=int, default=PEOPLE)
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--kind", choices=("char", "unigram", "bpe"), default="char")
    parser.add_argument("--place", type=Path, default=Path("recognition"))
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        table()
        return
    if not asked.student:
        parser.error("which student?")
    train, test = folders(asked.place, asked.people, asked.mixed)
    tokens = asked.place / f"tokens-{train.name}-{asked.kind}"
    if not tokens.is_dir():
        distilkit("tokenizer", train, "--kind", asked.kind, "--out", tokens)
    words = asked.place / f"{train.name}.arpa"
    if not words.is_file():
        distilkit("lm", train, "--tokenizer", tokens, "--out", words)
    parts = [asked.how.replace(" ", "-"), train.name, asked.kind, str(asked.seed), *asked.set]
    name = "-".join(parts)
    run = asked.place / "runs" / name
    changes = [word for change in asked.set for word in ("--set", change)]
    asks = (
        *(train, "--tokenizer", tokens, "--model", asked.student, "--recipe", "ctc-tiny"),
        *(*WAYS[asked.how], *changes, "--seed", asked.seed),
    )
    killed = run.is_dir()
    tuned = json.loads(
        distilkit("finetune-ctc", *(["--resume"] if killed else asks), "--out", run, "--json")
    )
    facts = json.loads((run / "run.json").read_text())
    speed = [json.loads(line)["seconds"] for line in (run / "speed.jsonl").read_text().splitlines()]
    measured = {
        "how": asked.how,
        "seed": asked.seed,
        "kind": asked.kind,
        "people": asked.people,
        "mixed": asked.mixed,
        "set": asked.set,
        "student": asked.student,
        "trained_parameters": facts["trained"],
        "train_minutes": round(facts["train_seconds"] / 60, 2),
        "train_speakers": facts["train_speakers"],
        "steps": tuned["steps"],
        "training_minutes": round(sum(speed) / 60, 1),
        "held_out": tuned["best"],
        "curve": curve(run),
    }
    for label, options in {"greedy": (), "lm": ("--lm", words)}.items():
        found = json.loads(distilkit("evaluate", test, "--model", run, *options, "--json"))
        kept = ("utterances", "wer", "wer_interval", "cer", "cer_interval")
        measured[label] = {key: found[key] for key in kept}
        measured["test_speakers"] = len(found["speakers"])
    print(json.dumps(measured, indent=1))
    if asked.record:
        record("recognition", measured)


if __name__ == "__main__":
    main()
