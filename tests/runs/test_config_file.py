"""config.yaml: what is masked in it, and where the run gets the values from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mlplatform.errors import RunError
from mlplatform.runs.config_file import (
    CONFIG,
    check_complete,
    leaves,
    masked_paths,
    private_file,
    put,
    read_config,
    read_shown,
    write_config,
)

CONFIG_OF_A_RUN = {
    "seed": 3,
    "data": {"path": "/mnt/team/plays", "token": "tiger-tiger"},
    "logger": {"tags": ["a", "hf_" + "x1" * 12]},
    "name": "größe",
}


def test_the_run_reads_the_values_and_config_yaml_does_not_show_them(tmp_path: Path) -> None:
    scrub = write_config(tmp_path, CONFIG_OF_A_RUN, {"data.path"})
    assert read_config(tmp_path) == CONFIG_OF_A_RUN
    shown = read_shown(tmp_path)
    assert shown == {
        "seed": 3,
        "data": {"path": "***", "token": "***"},
        "logger": {"tags": ["a", "***"]},
        "name": "größe",
    }
    assert yaml.safe_load((tmp_path / CONFIG).read_text()) == shown
    assert masked_paths(shown) == ["data.path", "data.token", "logger.tags.1"]
    assert [p.name for p in tmp_path.iterdir()] == [CONFIG]
    assert scrub("no file /mnt/team/plays/1.txt") == "no file ***/1.txt"


def test_the_values_are_kept_where_only_this_user_reads(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG_OF_A_RUN)
    kept = private_file(tmp_path)
    assert not kept.is_relative_to(tmp_path)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_a_run_without_secrets_keeps_nothing_apart(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG_OF_A_RUN)
    write_config(tmp_path, {"seed": 3})
    assert not private_file(tmp_path).exists()
    assert read_config(tmp_path) == {"seed": 3}


def test_a_folder_that_went_to_another_machine_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path, CONFIG_OF_A_RUN)
    monkeypatch.setenv("MLPLATFORM_CACHE", str(tmp_path / "elsewhere"))
    config = read_config(tmp_path)
    assert config["data"] == {"path": "/mnt/team/plays", "token": "***"}
    with pytest.raises(
        RunError, match=r"data.token, logger.tags.1 was masked .* mlplatform resume .* data.token=\.\.\."
    ):
        check_complete(tmp_path, config)


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "\x00"])
def test_a_config_that_can_not_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(RunError, match=r"config\.yaml: (can't be read|holds no config)"):
        read_config(tmp_path)


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.yaml: can't be read: .*No such file"):
        read_config(tmp_path)


def test_leaves_and_put_are_each_others_reverse() -> None:
    tree = {"a": {"b": [1, {"c": 2}], "d": None}, "e": {}, "f": []}
    assert leaves(tree) == {"a.b.0": 1, "a.b.1.c": 2, "a.d": None, "e": {}, "f": []}
    for path in ("a.b.1.c", "a.d", "e"):
        put(tree, path, "new")
    assert leaves(tree) == {"a.b.0": 1, "a.b.1.c": "new", "a.d": "new", "e": "new", "f": []}


@pytest.mark.parametrize("path", ["x.y.z", "a.b.7.c", "a.d.e"])
def test_put_refuses_places_that_are_not_there(path: str) -> None:
    with pytest.raises(RunError, match="the run's config has no such key"):
        put({"a": {"b": [1], "d": None}}, path, 1)
