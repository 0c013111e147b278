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
        ("train.precision=fp8", "`train.precision` cannot be `fp8`: must be `fp32`, `bf16` or `fp16` or `auto`", "show paper"),
        ("train.steps=0", "`train.steps` cannot be `0`: must be greater than or equal to 1 or `auto`", "show paper"),
        ("batches.workers=1.5", "`batches.workers` cannot be `1.5`: must be a valid integer or `auto`", "show paper"),
        ("student.layers=two", "`student.layers` cannot be `two`: must be a valid integer", "show paper"),
        ("data.min_seconds=9", "`data`: min_seconds must be at most half of window_seconds", "show paper"),
        ("objective.layers=[4,4]", "`objective`: layers must be different whole numbers from 0 up", "show paper"),
        ("objective.layers=[]", "`objective.layers` cannot be `[]`", "show paper"),
        ("student.architecture=papr", "`student.architecture` cannot be `papr`: must be `paper`, `paper-ln`, `deep-thin`, `thin-conv` or `hubert`", "did you mean `paper`?"),
        ("student.start=techer", "`student.start` cannot be `techer`: must be `teacher` or `random`", "did you mean `teacher`?"),
        ("student.width=15", "`student.width` cannot be `15`: must be greater than or equal to 16", "show paper"),
        ("student.conv_widths=[4]", "`student.conv_widths` cannot be `4`: must be greater than or equal to 8", "show paper"),
        ("student.start_layers=[0]", "`student.start_layers` cannot be `0`: must be greater than or equal to 1", "show paper"),
        ("student.dropout=1", "`student.dropout` cannot be `1`: must be less than 1", "show paper"),
        ("objective.name=unit", "`objective.name` cannot be `unit`: must be `layerwise` or `units`", "did you mean `units`?"),
        ("objective.layers=contents", "`objective.layers` cannot be `contents`: must be a valid list or `all-round`, `content` or `speaker`", "did you mean `content`?"),
        ("objective.layers=[-1]", "`objective.layers` cannot be `-1`: must be greater than or equal to 0", "show paper"),
        ("objective.student_layers=[]", "`objective.student_layers` cannot be `[]`", "show paper"),
        ("objective.cosine=sigmoid", "`objective.cosine` cannot be `sigmoid`: must be `log-sigmoid` or `raw`", "did you mean `log-sigmoid`?"),
        ("objective.l2_weight=-1", "`objective.l2_weight` cannot be `-1`: must be greater than or equal to 0", "show paper"),
        ("objective.features=mfccs", "`objective.features` cannot be `mfccs`: must be `layers` or `mfcc`", "did you mean `mfcc`?"),
        ("objective.features=mfcc", "`objective`: features `mfcc` belong to the objective `units`", "show paper"),
        ("objective.codebook=x", "`objective`: a codebook belongs to the objective `units`", "show paper"),
        ("objective.clusters=1", "`objective.clusters` cannot be `1`: must be greater than or equal to 2", "show paper"),
        ("objective.cluster_minutes=0", "`objective.cluster_minutes` cannot be `0`: must be greater than 0", "show paper"),
        ("objective.mask_probability=1.1", "`objective.mask_probability` cannot be `1.1`: must be less than or equal to 1", "show paper"),
        ("objective.mask_frames=0", "`objective.mask_frames` cannot be `0`: must be greater than or equal to 1", "show paper"),
        ("objective.visible_weight=0", "`objective`: visible_weight and mask_probability are both 0: nothing to learn", "show paper"),
        ("objective.masked_frames=5", "unknown key `objective.masked_frames`", "did you mean `objective.mask_frames`?"),
        ("noise.probabilty=1", "unknown key `noise.probabilty`", "did you mean `noise.probability`?"),
        ("noise.probability=2", "`noise.probability` cannot be `2`: must be less than or equal to 1", "show paper"),
        ("noise.snr=[20.0,0.0]", "`noise`: snr and gain are ranges, from the lower number to the higher", "show paper"),
        ("noise.gain=[5.0,-15.0]", "`noise`: snr and gain are ranges, from the lower number to the higher", "show paper"),
        ("noise.snr=[1.0]", "`noise.snr` cannot be `[1.0]`: list should have at least 2 items", "show paper"),
        ("noise.voice=-0.1", "`noise.voice` cannot be `-0.1`: must be greater than or equal to 0", "show paper"),
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


def test_nothing_to_learn_is_refused_where_it_is_so() -> None:
    none = ["objective.l1_weight=0", "objective.cosine_weight=0"]
    assert "are all 0: nothing to learn" in problem(*none)[0]
    assert config.load_recipe("smoke", [*none, "objective.l2_weight=1"]).objective.l2_weight == 1
    assert config.load_recipe("smoke", [*none, "objective.name=units"]).objective.l1_weight == 0
    masked = ["objective.visible_weight=0", "objective.mask_probability=0.8"]
    assert config.load_recipe("smoke", masked).objective.visible_weight == 0


def test_units_take_features_and_a_codebook() -> None:
    changes = ["objective.name=units", "objective.features=mfcc", "objective.codebook=a b"]
    objective = config.load_recipe("smoke", changes).objective
    assert (objective.features, objective.codebook) == ("mfcc", "a b")


def test_layers_are_normalised_and_mfcc_always_are() -> None:
    units = ["objective.name=units", "objective.normalise=true"]
    for changes in (units, units[1:]):
        assert config.load_recipe("smoke", changes).objective.normalise
    assert "MFCC always are" in problem(*units, "objective.features=mfcc")[0]


def test_parts_are_a_range_of_seconds() -> None:
    assert config.load_recipe("smoke").objective.part_seconds == "whole"
    given = config.load_recipe("smoke", ["objective.part_seconds=[0.4,3]"])
    assert given.objective.part_seconds == [0.4, 3.0]
    assert "part_seconds is a range" in problem("objective.part_seconds=[3,0.4]")[0]
    for wrong in ("[0.4]", "[0,1]", "some"):
        assert "objective.part_seconds" in problem(f"objective.part_seconds={wrong}")[0]


def test_new_settings_read_back_equal(tmp_path: Path) -> None:
    recipe = config.load_recipe(
        "smoke",
        [
            "student.conv_widths=[8,16]", "student.start_layers=[4,8]", "student.architecture=deep-thin",
            "objective.name=units", "objective.layers=speaker", "objective.student_layers=[0,2]", "objective.normalise=true",
            'objective.codebook="a \\"b\\" ä"', "objective.part_seconds=[0.5,2]", "noise.probability=0.5", "noise.snr=[-5,5]", "noise.equaliser=0.1",
        ],
    )  # fmt: skip
    assert recipe.noise.snr == [-5, 5]
    assert recipe.objective.codebook == 'a "b" ä'
    (tmp_path / "copy.toml").write_text(config.dump_recipe(recipe), encoding="utf-8")
    assert config.load_recipe(str(tmp_path / "copy.toml")) == recipe


@pytest.mark.parametrize(
    "value", ["inf", "nan", "[inf, 1.0]", "[" * 3000, "9" * 5000, "1979-05-27"]
)
def test_values_that_no_setting_can_have(value: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    for key in ("learning_rate", "steps", "betas"):
        path.write_text(f"[train]\n{key} = {value}\n")
        with pytest.raises(DistilkitError, match=rf"is not valid TOML|`train\.{key}` cannot be"):
            config.load_recipe(str(path))
        with pytest.raises(DistilkitError, match=rf"`train\.{key}` cannot be"):
            config.load_recipe("smoke", [f"train.{key}={value}"])
    path.write_text("command = [1, 'a']\n")  # no key of a dictionary
    with pytest.raises(DistilkitError, match="`command` cannot be"):
        config.load_recipe(str(path), (), config.CtcRecipe)
