"""What a wrong config gets: one line each that names the key, what was given, what is allowed and where it stands.

Every row goes through `mlplatform train` itself: exit code 2, nothing built, nothing written, nothing run.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mlplatform.cli.main import main

LLAMA = "defaults: [llama_tiny, _self_]\n"
FILES = {
    "model/typo.yaml": f"{LLAMA}trunk:\n  layer:\n    mlp:\n      widht: 64\n",
    "model/shells.yaml": f"{LLAMA}trunk:\n  norm: {{_target_: os.system, command: touch ran}}\n",
    "model/round.yaml": "defaults: [about, _self_]\n",
    "model/about.yaml": "# Comes back\ndefaults:\n  - round\n",
    "model/nobody.yaml": "defaults:\n  - llamma\n",
    "model/tab.yaml": "kind: single_tower\n\ttrunk: {}\n",
    "model/twice.yaml": "kind: single_tower\nkind: single_tower\n",
    "model/tagged.yaml": "kind: !!python/object/apply:os.system [touch ran]\n",
    "model/deep.yaml": "kind: " + "[" * 10_000,
    "model/nothing.yaml": f"{LLAMA}trunk: {{depth: '${{model.trunk.deep}}'}}\n",
    "model/list.yaml": "- kind: single_tower\n",
    "model/homeless.yaml": f"{LLAMA}trunk: {{layer: {{mlp: {{kind: attention}}}}}}\n",
    "optimizer/evil.yaml": "_target_: torch.optim.os.system\ncommand: touch ran\n",
    "optimizer/outside.yaml": "_target_: subprocess.Popen\nargs: [touch, ran]\n",
}
# what is typed -> what each line of the answer must hold
ROWS: dict[str, list[str]] = {
    "model=lama": ["no model 'lama' (did you mean 'llama'?); there are", "(from the command line: model=lama)"],
    "model.trunk.dimm=64": [
        "model.trunk.dimm: transformer has no field 'dimm' (did you mean 'dim'?)",
        "(from the command line: model.trunk.dimm=64)",
    ],
    "model=typo": [
        "model.trunk.layer.mlp.widht: gated_mlp has no field 'widht' (did you mean 'width'?)",
        "model/typo.yaml:5",
    ],
    "optimizer.lr=abc": ["optimizer.lr: 'abc' is not allowed: it should be a valid number"],
    "optimizer.lr=-1": ["optimizer.lr: -1 is not allowed: it should be greater than 0"],
    "model.trunk.layer.attention.heads=8 model.trunk.layer.attention.kv_heads=3": [
        "heads=8 is not a multiple of kv_heads=3; kv_heads may be 1, 2, 4, 8",
        "(from the command line: model.trunk.layer.attention.heads=8; from the command line",
    ],
    "model.trunk.layer.mlp.dim=64": [
        "model.trunk.layer.mlp.dim: 'dim' of gated_mlp is set by what holds it; delete it here"
    ],
    "model.trunk.layer.attention.kind=cross_attention": [
        "model.trunk.layer.attention.rope: cross_attention has no field 'rope': left over from 'attention'",
        "block/attention@model.trunk.layer.attention=cross_attention",
    ],
    "model=homeless": [
        "model.trunk.layer.mlp.kind: 'attention' is a attention, not a mlp; there are",
        "homeless.yaml:2",
    ],
    "optimizer.lr=${optimizer.rate}": ["'${optimizer.rate}' refers to 'optimizer.rate', which is not there"],
    "optimizer.lr=${optimizer.lr}": ["optimizer.lr: '${optimizer.lr}' can't be resolved: Recursive interpolation"],
    "optimizer.lr=${soon:%Y}": ["optimizer.lr: '${soon:%Y}' names no resolver there is; there are oc.env"],
    "optimizer.lr=${oc.env:NO_SUCH_NAME}": ["needs the environment variable NO_SUCH_NAME"],
    "model=nothing": ["refers to 'model.trunk.deep', which is not there", "model/nothing.yaml:2"],
    "model=round": ["the defaults lists go in a circle: model/round -> model/about -> model/round"],
    "model=nobody": ["no model 'llamma' (did you mean 'llama'?)", "model/nobody.yaml:2)"],
    "data=text": ["data.path: a value is needed; give it with data.path=... (conf/data/text.yaml:"],
    "model=shells": ["model.trunk.norm._target_: 'os.system' is not allowed here", "model/shells.yaml:3"],
    "optimizer=evil": ["optimizer._target_: 'torch.optim.os.system'"],
    "optimizer=outside": ["optimizer._target_: 'subprocess.Popen' is not allowed here", "optimizer/outside.yaml:1"],
    "model.trunk.norm={_target_:builtins.eval}": ["model.trunk.norm._target_: 'builtins.eval' is not allowed here"],
    "model=tab": ["model/tab.yaml:2: a tab; YAML is indented with spaces"],
    "model=twice": ["model/twice.yaml:2: 'kind' is stated twice, first on line 1"],
    "model=tagged": ["model/tagged.yaml:1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not read"],
    "model=deep": ["model/deep.yaml:1: nested more than 64 levels deep"],
    "model=list": ["model/list.yaml: the top of a config is a mapping"],
    "optimizer.lr=1e-3,1e-4": ["a run takes one value; for a list write 'optimizer.lr=[1e-3,1e-4]'"],
    "optimizer.lr": ["'optimizer.lr' is one word too many (key=value is how a value is set)"],
    "optimizer.lr=[1": ["optimizer.lr=[1: can't be read"],
    "+optimizer.lr=1": ["optimizer.lr: is there already; leave the '+' away to change it"],
    "~model.trunk.dept": ["model.trunk: there is no 'dept' (did you mean 'depth'?)"],
    "optimizer.lr.x=1": ["optimizer.lr: 0.", "holds no 'x'; it is a value, not a mapping"],
    "optimzer=muon": ["optimzer: run has no field 'optimzer' (did you mean 'optimizer'?)"],
    "block/mpl@model.trunk.layer.mlp=moe": ["no config group 'block/mpl' (did you mean 'block/mlp'?)"],
    "block/mlp@model.trunk.layer.mpl=moe": ["model.trunk.layer.mpl: pre_norm has no field 'mpl' (did you mean 'mlp'?)"],
    "block/mlp@model.trunk.layer.mlp=meo": ["no block/mlp 'meo' (did you mean 'moe'?)"],
    "hydra.run.dir=elsewhere": ["Hydra composes only here"],
    "model=../../etc/passwd": ["no model '../../etc/passwd'"],
    "trainer.max=600": ["trainer.max: 600 is not allowed"],
    "trainer.max='600 stesp'": ["trainer.max: '600 stesp' is not allowed"],
    "task=masked_lm": [
        "task=masked_lm does not fit this single_tower (head lm_head, causal attention): causal_lm fits it",
        "(from the command line: task=masked_lm)",
    ],
    "trainer.devices=64": [
        "trainer.devices: 64 are asked for and this machine has",
        "use",
        "(from the command line: trainer.devices=64)",
    ],
    "trainer.devices=2": ["single runs on one device and trainer.devices=2; use strategy=ddp (from the command line"],
    "trainer.precision=fp4": ["trainer.precision: 'fp4' is not allowed: it should be 'fp32', 'bf16-mixed'"],
    "trainer.precision=fp8": ["trainer.precision: fp8 needs a CUDA device", "take bf16-mixed"],
    "optimizer={_target_: torch.optim.SGD, lrr: 0.1}": ["torch.optim.SGD: SGD.__init__() got an unexpected", "'lrr'"],
    "experiment=../elsewhere": ["experiment='../elsewhere' is no folder name (from the command line"],
    "batch.length=4": ["length=4 is too short"],
    "batch.length=4096": [
        "batch.length: 4096 tokens are more than model.trunk.context_length=",
        "command line: batch.length",
    ],
    "model=llama": ["model: 8.03B parameters need", "fits, with"],
    "init_from=no/such": ["'no/such' is neither a folder here"],
    "plugins=[no_such_package]": ["plugins: no package 'no_such_package' is installed"],
}


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wrong options, and an empty working folder."""
    for name, text in FILES.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MLPLATFORM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def said_by_train(user: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
    assert main(["train", "--config-dir", str(user / "mine"), *overrides]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert not list((user / "here").iterdir()), "something was written"
    assert not (user / "cache").exists(), "something was cached"
    lines = said.err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return lines


@pytest.mark.parametrize("typed", ROWS)
def test_wrong_config(typed: str, user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [typed] if typed.count("=") < 2 or " model" not in typed else typed.split()
    lines = said_by_train(user, capsys, *overrides)
    for wanted in ROWS[typed]:
        assert any(wanted in line for line in lines), lines
    if len(lines) > 1:
        assert "kind=" in typed  # one mistake is one line, but for a kind that leaves several fields behind


def test_four_mistakes_are_four_lines(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by_train(
        user, capsys, "optimizer.lr=-1", "model.trunk.depth=0", "model.trunk.layer.dropout=1.5", "data=text"
    )
    wanted = ["data.path: a value", "model.trunk.depth: 0", "model.trunk.layer.dropout: 1.5", "optimizer.lr: -1"]
    assert [line.removeprefix("error: ").split(" is")[0] for line in sorted(lines)] == wanted
