"""What is read from source equals what Python sees, for every kind; plugins; what can't be read says so."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlplatform.errors import SpecError
from mlplatform.places import PACKAGE
from mlplatform.registry import kinds, lookup, signatures, use_plugins
from mlplatform.registry.signatures import MISSING, Kind, block

EVERY = sorted(kinds())


@pytest.mark.parametrize("name", EVERY)
def test_read_from_source_equals_inspect(name: str) -> None:
    kind = kinds()[name]
    thing = getattr(importlib.import_module(kind.module), kind.qualname)
    assert (thing.group, thing.kind) == (kind.group, kind.name)
    parameters = inspect.signature(thing).parameters.values()
    handed = {p.name: p.default is p.empty for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    fields = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert kind.handed == handed
    assert len(handed) + len(fields) == len(list(parameters)), "positional-only, *args and **kwargs can't be read"
    assert list(kind.fields) == list(fields)
    for field in kind.fields.values():
        seen = fields[field.name]
        assert field.text == ast.unparse(ast.parse(seen.annotation))
        if field.required:
            assert seen.default is seen.empty
        else:
            assert field.default == seen.default
            assert type(field.default) is type(seen.default)
    assert kind.doc == inspect.cleandoc(thing.__doc__)
    assert inspect.getsourcelines(thing)[0][0].startswith("@block(")


def test_every_registration_is_found() -> None:
    """Decorators counted in another way: as text."""
    lines = [line for file in PACKAGE.rglob("*.py") for line in file.read_text().splitlines()]
    assert sum(line.startswith('@block("') for line in lines) == len(kinds())


@pytest.mark.parametrize("name", EVERY)
def test_every_kind_says_what_it_is(name: str) -> None:
    kind = kinds()[name]
    first = kind.doc.split("\n\n")[0]
    assert first, f"{name} has no docstring"
    assert len(" ".join(first.split())) <= 240


def test_reading_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom mlplatform.registry import kinds, validate\nkinds()\n"
        "try:\n    validate({'kind': 'single_tower'}, 'model')\nexcept Exception as error:\n    print(error)\n"
        "assert not {'torch', 'lightning', 'transformers', 'hydra'} & set(sys.modules), 'heavy'\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "single_tower needs 'trunk'" in out.stdout


def test_the_mark_says_its_group_and_kind() -> None:
    @block("norm/mine")
    class Mine: ...

    assert (Mine.group, Mine.kind) == ("norm", "mine")
    for wrong in ("norm", "/mine", "norm/"):
        with pytest.raises(ValueError, match="write it as 'group/kind'"):
            block(wrong)


def test_lookup() -> None:
    assert lookup("rms_norm", "norm").qualname == "RMSNorm"
    assert lookup("linear", "rope_scaling").group == "rope_scaling"
    assert lookup("linear", "schedule").group == "schedule"
    with pytest.raises(SpecError, match=r"no norm 'rms_nrm' \(did you mean 'rms_norm'\?\); there are layer"):
        lookup("rms_nrm", "norm")
    with pytest.raises(SpecError, match="'gated_mlp' is a mlp, not a norm; there are layer_norm, rms_norm"):
        lookup("gated_mlp", "norm")
    with pytest.raises(SpecError, match="no norm '7'"):
        lookup(7, "norm")
    with pytest.raises(SpecError, match="no norm"):
        lookup(["rms_norm"], "norm")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path for packages of the user's own; the registry forgets them afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    signatures._plugins.clear()
    signatures.forget()


def only(text: str, file: Path) -> Kind:
    """Write a plugin module and return the one kind it adds."""
    before = set(kinds())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("from mlplatform.registry import *\nfrom typing import Literal\n\n\n" + text)
    use_plugins([file.stem if file.stem != "__init__" else file.parent.name])
    [name] = set(kinds()) - before
    return kinds()[name]


THICK = """\
@block("norm/thick")
def thick(dim: int, wide: int = 2, *, eps: PositiveFloat = 1e-3):
    "Thick."
    return dim, wide, eps
"""


def test_a_plugin_is_a_package_or_one_file(plugin: Path) -> None:
    (plugin / "stranger.py").write_text("import broken_on_purpose  # never looked at\n@block('norm/other'\n")
    kind = only(THICK, plugin / "thick_file.py")
    assert kind.handed == {"dim": True, "wide": False}
    assert kind.module == "thick_file"
    assert getattr(importlib.import_module(kind.module), kind.qualname)(3) == (3, 2, 1e-3)


def test_a_plugin_package(plugin: Path) -> None:
    kind = only(THICK.replace("thick", "thicker"), plugin / "thick_package" / "__init__.py")
    assert kind.module == "thick_package"
    assert kind.fields["eps"].default == 1e-3
    assert kind.fields["eps"].text == "PositiveFloat"


@pytest.mark.parametrize("name", ["no_such_package", "no.such.package", "torch.no_such_part"])
def test_a_plugin_that_is_not_there(name: str, plugin: Path) -> None:
    with pytest.raises(SpecError, match=f"no package '{name}' is installed"):
        use_plugins([name])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('@block("norm/a")\ndef a(*, eps: Decimal = 1): ...', "annotation 'Decimal' of 'eps' is not in the vocabulary"),
        ('@block("norm/a")\ndef a(*, eps=1): ...', "argument 'eps' has no annotation"),
        ('@block("norm/a")\nclass A(Far): ...', "class A has no __init__ in its file"),
        ('@block("norm/a")\ndef a(): ...\n@block("norm/a")\ndef b(): ...', "'norm/a' is registered in"),
        ('@block("norm/a")\ndef a(*, eps: float = 10 * 2): ...', "default '10 \\* 2' of 'eps' is no plain value"),
        ('@block("norm/a")\ndef a(:', "can't be read as Python"),
        ("@block(NAME)\ndef a(): ...", "group/kind"),
    ],
)
def test_what_cannot_be_read_names_the_file(text: str, said: str, plugin: Path) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        only(text, plugin / "broken_plugin.py")
    assert "broken_plugin.py" in str(caught.value)


def test_an_annotation_cannot_run_anything(plugin: Path) -> None:
    ran = plugin / "ran"
    with pytest.raises(SpecError, match="not in the vocabulary"):
        only(f"@block('norm/a')\ndef a(*, eps: open({str(ran)!r}, 'w') = 1): ...", plugin / "evil_plugin.py")
    assert not ran.exists()


def test_missing_is_no_value() -> None:
    assert lookup("gated_mlp", "mlp").fields["width"].default is MISSING
    assert lookup("gated_mlp", "mlp").fields["width"].required
    assert lookup("mlp", "mlp").fields["width"].default is None
    assert not lookup("mlp", "mlp").fields["width"].required
