"""Recipes: every problem at once, with the nearest right key; what is written reads back equal."""

from pathlib import Path

import pytest

from distilkit import config
from distilkit.errors import DistilkitError


def problem(*changes: str) -> tuple[str, str | None]:
    with pytest.raises(DistilkitError) as caught:
        config.load_recipe("smoke", changes)
    return caught.value.problem, caught.value.hint


@pytest.mark.parametrize("name", ["paper", "personal", "smoke"])
def test_built_in_recipes_read_and_write_back(name: str, tmp_path: Path) -> None:
    assert name in config.recipe_names()
    recipe = config.load_recipe(name)
    (tmp_path / "copy.toml").write_text(config.dump_recipe(recipe))
    assert config.load_recipe(str(tmp_path / "copy.toml")) == recipe
    first = config.recipe_path(name).read_text().splitlines()[:5]
    assert [line.split(":")[0] for line in first] == [
        "# What", "# Data", "# Time", "# Result", "# Command",
    ]  # fmt: skip


def test_the_paper_recipe_has_the_paper_numbers() -> None:
    recipe = config.load_recipe("paper")
    assert recipe.train.steps == 200_000
    assert recipe.train.learning_rate == 2e-4
    assert recipe.train.warmup_fraction == 0.07
    assert recipe.batches.seconds == 24 * 250_000 / 16_000
    assert recipe.objective.layers == [4, 8, 12]


@pytest.mark.parametrize(
    ("change", "said", "hint"),
    [
        ("train.learning_rat=1e-4", "unknown key `train.learning_rat`", "did you mean `train.learning_rate`?"),
        ("trian.steps=1", "unknown section `trian`", "did you mean `train`?"),
        ("train.zzz=1", "unknown key `train.zzz`", "keys: betas, checkpoint_every, "),
        ("data.seconds=1", "unknown key `data.seconds`", "did you mean `batches.seconds`?"),
        ("train.precision=fp8", "`train.precision` cannot be `fp8`: must be 'fp32', 'bf16' or 'fp16' or must be 'auto'", "show paper"),
        ("train.steps=0", "`train.steps` cannot be `0`: must be greater than or equal to 1 or must be 'auto'", "show paper"),
        ("batches.workers=1.5", "`batches.workers` cannot be `1.5`: must be a valid integer or must be 'auto'", "show paper"),
        ("student.layers=two", "`student.layers` cannot be `two`: must be a valid integer", "show paper"),
        ("data.min_seconds=9", "`data`: min_seconds must be at most half of window_seconds", "show paper"),
        ("objective.layers=[4,4]", "`objective`: layers must be different whole numbers from 0 up", "show paper"),
        ("objective.layers=[]", "`objective.layers` cannot be `[]`", "show paper"),
        ("train.steps", "`--set train.steps` is not of the form `section.key=value`", "--set train.steps=1000"),
        ("steps=3", "`--set steps=3` is not of the form `section.key=value`", "--set train.steps=1000"),
    ],
)  # fmt: skip
def test_wrong_keys_and_values(change: str, said: str, hint: str) -> None:
    got, hinted = problem(change)
    assert got.startswith(said)
    assert "\n" not in got
    assert hint in str(hinted)


def test_all_problems_at_once() -> None:
    got, hint = problem("train.stepps=3", "student.layers=0", "data.windw_seconds=3")
    assert got.startswith("3 problems in ")
    assert hint == "did you mean `data.window_seconds`?; did you mean `train.steps`?"


def test_values_are_read_as_toml_and_words_as_words() -> None:
    recipe = config.load_recipe(
        "smoke",
        ["train.steps=auto", "objective.layers=[2, 3]", "train.gradient_checkpointing=true"],
    )
    assert recipe.train.steps == "auto"
    assert recipe.objective.layers == [2, 3]
    assert recipe.train.gradient_checkpointing is True


def test_recipes_that_are_not_there_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(DistilkitError, match="no recipe `papr`") as caught:
        config.load_recipe("papr")
    assert caught.value.hint == "did you mean `paper`?"
    with pytest.raises(DistilkitError, match="neither a built-in name nor a file") as caught:
        config.load_recipe("nothing/like/it.toml")
    assert caught.value.hint == "built-in recipes: " + ", ".join(config.recipe_names())
    (tmp_path / "bad.toml").write_text("[train\nsteps = 3")
    with pytest.raises(DistilkitError, match="is not valid TOML"):
        config.load_recipe(str(tmp_path / "bad.toml"))
    (tmp_path / "flat.toml").write_text("train = 3")
    with pytest.raises(DistilkitError, match="`train` cannot be `3`"):
        config.load_recipe(str(tmp_path / "flat.toml"))


def test_a_personal_run_has_steps_from_its_hours() -> None:
    from distilkit import plan

    train = config.load_recipe("personal").train
    few, reason = plan.steps(train, steps_per_pass=10, train_seconds=1_200)
    assert few == 2_000
    assert reason == "the least of this recipe; 60 passes over 20 min 00 s of audio would be 600"
    middle, reason = plan.steps(train, steps_per_pass=300, train_seconds=36_000)
    assert middle == 18_000
    assert reason == "60 passes over 10 h 00 min of audio"
    most, reason = plan.steps(train, steps_per_pass=3_000, train_seconds=360_000)
    assert most == 100_000
    assert reason.startswith("the most of this recipe")
