"""Recognisers of spoken orders: fine-tuned on 25 people, tested on 13 whom no model here ever heard.

Needs DISTILKIT_SHARED (recordings in `speech/commands`). Writes the two folders, makes a tokenizer, fine-tunes a
student as asked, and counts its errors: greedily, and with a language model of the training texts.

python tests/benchmarks/recognition.py STUDENT --how full --seed 0 [--mixed] [--record]
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from record import record

from distilkit.assets.real import unheard

SPEECH = Path(os.environ.get("DISTILKIT_SHARED", "shared")) / "speech"
MORE = ("ljspeech", "prompts", "read_short")  # other people, other words, in --mixed
WAYS = {
    "full": (),
    "lora": ("--lora", "--rank", "64"),
    "random": ("--set", "model.start=random", "--set", "train.freeze_front_end=false"),
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


def folders(place: Path, mixed: bool) -> tuple[Path, Path]:
    """What is trained on, and what is tested on."""
    orders = rows("commands")
    tested = unheard({row["speaker"] for row in orders})
    train = [("commands", row) for row in orders if row["speaker"] not in tested]
    if mixed:
        train += [(name, row) for name in MORE for row in rows(name)]
    test = [("commands", row) for row in orders if row["speaker"] in tested]
    return write(place / ("mixed" if mixed else "train"), train), write(place / "test", test)


def distilkit(*arguments: object) -> str:
    """Run a command; its result."""
    command = [sys.executable, "-m", "distilkit", *map(str, arguments)]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout


def main() -> None:
    """Fine-tune and test once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("student")
    parser.add_argument("--how", choices=WAYS, default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--kind", choices=("char", "unigram", "bpe"), default="char")
    parser.add_argument("--place", type=Path, default=Path("recognition"))
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    train, test = folders(asked.place, asked.mixed)
    tokens = asked.place / f"tokens-{train.name}-{asked.kind}"
    if not tokens.is_dir():
        distilkit("tokenizer", train, "--kind", asked.kind, "--out", tokens)
    words = asked.place / f"{train.name}.arpa"
    if not words.is_file():
        distilkit("lm", train, "--tokenizer", tokens, "--out", words)
    name = "-".join([asked.how.replace(" ", "-"), train.name, asked.kind, str(asked.seed)])
    run = asked.place / "runs" / name
    changes = [word for change in asked.set for word in ("--set", change)]
    tuned = json.loads(
        distilkit(
            "finetune-ctc", train, "--tokenizer", tokens, "--model", asked.student,
            "--recipe", "ctc-tiny", *WAYS[asked.how], *changes, "--seed", asked.seed,
            "--out", run, "--json",
        )
    )  # fmt: skip
    facts = json.loads((run / "run.json").read_text())
    speed = [json.loads(line)["seconds"] for line in (run / "speed.jsonl").read_text().splitlines()]
    measured = {
        "how": asked.how,
        "seed": asked.seed,
        "kind": asked.kind,
        "mixed": asked.mixed,
        "set": asked.set,
        "student": asked.student,
        "trained_parameters": facts["trained"],
        "train_minutes": round(facts["train_seconds"] / 60, 2),
        "train_speakers": facts["train_speakers"],
        "steps": tuned["steps"],
        "training_minutes": round(sum(speed) / 60, 1),
        "held_out": tuned["best"],
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
