import json

import pytest
from pydantic import ValidationError

from lib.config.checked import described
from lib.config.settings import Settings
from lib.files.errors import BadInput
from lib.files.json_file import write_json
from lib.models.families import preset


def make(**changes):
    return preset("lora", **({"data": "d", "output": "o"} | changes))


def test_presets_differ_where_the_methods_do():
    lora, full = make(), preset("dreambooth", data="d", output="o")
    differing = {name for name in lora.__dict__ if getattr(lora, name) != getattr(full, name)}
    assert differing <= {"method", "learning_rate", "rank", "alpha", "targets"}, (
        "the recipe must be the same for both methods"
    )
    assert lora.learning_rate > full.learning_rate, (
        "each has its own, found by the sweep; one for both is the commonest unfair test"
    )


def test_alpha_follows_rank_unless_given():
    assert make(rank=4).alpha == 4.0 and make(rank=4, alpha=8).alpha == 8.0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"learning_rat": 1e-4}, ["learning_rat", "did you mean 'learning_rate'"]),
        ({"colour": 3}, ["colour", "known settings are"]),
        ({"steps": 0}, ["steps", "0", "1 to"]),
        ({"steps": "200"}, ["steps", "whole number", "'200'"]),
        ({"steps": True}, ["steps", "whole number"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "nan"]),
        ({"learning_rate": "1e-4"}, ["learning_rate", "a number"]),
        ({"rank": 0}, ["rank"]),
        ({"precision": "fp8"}, ["precision", "fp8", "bf16", "fp16"]),
        ({"targets": "everything"}, ["targets", "attention"]),
        ({"output": " "}, ["output", "empty"]),
        ({"quantize": "int8", "dora": True}, ["quantize", "int8", "dora", "nf4"]),
    ],
)
def test_a_bad_value_gets_one_sentence(changes, words):
    with pytest.raises(BadInput) as caught:
        make(**changes)
    text = str(caught.value)
    assert all(word in text for word in words) and "\n" not in text


def test_every_setting_is_described_and_limits_are_those_that_hold():
    for name, setting in described(Settings).items():
        assert setting.description.endswith("."), f"{name} has no description"
        if setting.kind in (int, float):
            for limit in setting.limits:
                assert type(limit) is setting.kind
                bad = limit - 1 if limit == setting.limits[0] else limit + 1
                sentence = (
                    f"Setting '{name}' is {bad}, outside {setting.limits[0]} to"
                    f" {setting.limits[1]}: choose a value in that range."
                )
                with pytest.raises(BadInput) as caught:
                    make(**{name: bad})
                assert str(caught.value) == sentence
        if setting.choices:
            with pytest.raises(BadInput) as caught:
                Settings(**{"method": "lora", "data": "d", "output": "o", name: "x"})
            assert str(caught.value) == (
                f"Setting '{name}' is 'x': it must be one of {', '.join(setting.choices)}."
            )


def test_of_several_mistakes_the_one_to_mend_first_is_told():
    wrong = {"steps": "x", "rank": 0, "optimizer": "sgd"}
    given = {"method": "lora", "data": "d", "output": "o"} | wrong
    for word in ("colour", "steps", "rank", "optimizer"):
        with pytest.raises(BadInput, match=f"'{word}'"):
            Settings(**({"colour": 1} | given if word == "colour" else given))
        given.pop(word, None)
    assert Settings(**given).optimizer == "adamw"


def test_code_that_is_wrong_is_no_bad_input():
    defaults = [setting.default for setting in described(Settings).values()][3:]
    with pytest.raises(ValidationError):
        Settings("lora", "d", "o", *defaults, "one too many")
    with pytest.raises(BadInput, match="'data' must be a text"):
        Settings("lora", 1, "o")


def test_settings_take_a_whole_number_for_a_float_and_convert_nothing_else():
    settings = make(alpha=3)
    assert type(settings.alpha) is float and hash(settings) == hash(make(alpha=3.0))
    for name, value in (("dora", 1), ("steps", 3.0), ("data", b"d"), ("guidance", False)):
        with pytest.raises(BadInput, match=f"Setting '{name}' must be .* write it as one."):
            make(**{name: value})


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(BadInput, match="textual_inversion"):
        preset("textual_inversion", data="d", output="o")


def test_settings_are_frozen_and_survive_the_file(tmp_path):
    settings = make(seed=7, prior_weight=0)
    with pytest.raises(AttributeError):
        settings.seed = 3
    settings.save(tmp_path / "settings.json")
    assert Settings.load(tmp_path / "settings.json") == settings
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"], (
        "no temporary file may stay behind"
    )


@pytest.mark.parametrize(
    "text, word",
    [("{", "JSON"), ("[1]", "list"), (json.dumps({"method": "lora", "data": "d"}), "output")],
)
def test_a_broken_settings_file_is_named(tmp_path, text, word):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(BadInput, match=word):
        Settings.load(tmp_path / "s.json")
    with pytest.raises(BadInput, match="no file"):
        Settings.load(tmp_path / "absent.json")


def test_writing_json_is_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
