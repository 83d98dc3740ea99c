"""`config show|why|schema|groups`, and JSON Schema against every shipped YAML."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml

from mlplatform import places
from mlplatform.cli.compose import compose, compose_model
from mlplatform.cli.library import Library
from mlplatform.cli.main import main
from mlplatform.cli.safe_yaml import parse, read
from mlplatform.registry import json_schema

SHIPPED = sorted([*places.conf().rglob("*.yaml"), *places.recipes().rglob("*.yaml")])


def group_of(file: Path) -> str:
    """Return the registry's group of a shipped file: its folder's name, `run` for whole runs."""
    return "run" if file.parent in (places.conf(), places.recipes()) else file.parent.name


@cache
def validator(group: str) -> jsonschema.Draft202012Validator:
    schema = json_schema(group)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(places.share())))
def test_json_schema_accepts_every_shipped_file(file: Path) -> None:
    data = read(file).data
    made = {"parts": {"one": {"kind": "text", "path": "a.txt"}}, "weights": {"one": 1.0}}  # a mixture's are the user's
    validator(group_of(file)).validate({k: made[k] if v == "???" and k in made else v for k, v in data.items()})


@pytest.mark.parametrize("option", Library().options("model"))
def test_json_schema_accepts_every_composed_model(option: str) -> None:
    validator("model").validate(compose_model(option).config)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "single_tower", "trunk": {"kind": "transformer", "dimm": 3}},
        {"kind": "single_tower", "trunk": {"kind": "transformer", "depth": 0}},
        {"kind": "single_tower", "trunk": {"kind": "transformer", "dim": "wide"}},
        {"kind": "two_towers"},
        {"trunk": {"layer": {"mlp": {"kind": "gated_mlp", "widht": 3}}}},
        {"trunk": {"norm": {"_target_": "os.system"}}},
    ],
)
def test_json_schema_refuses_what_the_checker_refuses(wrong: dict) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator("model").validate(wrong)


def test_schemas_are_written_with_the_editors_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema", "--write", str(tmp_path / "s")]) == 0
    assert f"# yaml-language-server: $schema={tmp_path}/s/model.schema.json" in capsys.readouterr().out
    assert json.loads((tmp_path / "s" / "model.schema.json").read_text()) == json_schema("model")


def test_show_prints_yaml_that_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "model=bert"]) == 0
    text = capsys.readouterr().out
    wanted = compose(overrides=["model=bert"]).config
    assert parse(text, "shown").data == wanted == yaml.safe_load(text)
    assert main(["config", "show", "model.trunk.layer", "model=bert", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == wanted["model"]["trunk"]["layer"]
    assert main(["config", "show", "model.trunk.depth", "model=bert"]) == 0
    assert capsys.readouterr().out == "12\n"


def test_show_of_a_wrong_config_shows_it_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "model.trunk", "model.trunk.depth=0"]) == 2
    said = capsys.readouterr()
    assert "depth: 0" in said.out
    assert "error: model.trunk.depth: 0 is not allowed" in said.err
    assert "(from the command line: model.trunk.depth=0)" in said.err


def test_why_names_the_setter_and_what_it_shadowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "why", "model.trunk.depth", "model.trunk.depth=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model.trunk.depth: 2"
    assert lines[1].split(maxsplit=2) == ["set", "by", "the command line: model.trunk.depth=2"]
    assert [line.split()[0] for line in lines[2:]] == ["shadowed", "shadowed"]
    assert "conf/model/llama_tiny.yaml:" in lines[2]
    assert "32" in lines[3]
    assert "conf/model/llama.yaml:" in lines[3]


def test_why_of_a_subtree_lists_every_leaf(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "why", "model.trunk.layer", "block/mlp@model.trunk.layer.mlp=moe", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["model.trunk.layer.mlp.kind"]["set_by"] == "conf/block/mlp/moe.yaml:2"
    assert rows["model.trunk.layer.mlp.kind"]["shadowed"][0]["value"] == "gated_mlp"
    assert rows["model.trunk.layer.attention.mask"]["value"] == "causal"
    assert "model.trunk.layer.mlp.activation" not in rows


def test_why_shows_what_an_interpolation_was_and_hides_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hush-hush")
    assert main(["config", "why", "a", "+a=${oc.env:SOME_TOKEN}"]) == 0
    said = capsys.readouterr()
    assert "a: ${oc.env:SOME_TOKEN}" in said.out
    assert "hush" not in said.out + said.err
    assert main(["config", "why", "b", "+b=${model.trunk.depth}"]) == 0
    assert "written as ${model.trunk.depth}" in capsys.readouterr().out


def test_groups_lists_options_and_what_each_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# My own model\ndefaults: [llama, _self_]\n")
    assert main(["config", "groups", "model", "--config-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["mine", "My", "own", "model"] for line in lines)
    assert main(["config", "groups"]) == 0
    assert "block/mlp" in capsys.readouterr().out
