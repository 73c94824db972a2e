"""The folder is the list: names, descriptions, and models built by name and settings."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from ecgad import methods


@pytest.mark.parametrize("method", methods.names())
def test_a_method_says_what_it_is(method):
    said = methods.describe(method)
    assert said.name == method
    assert all(said)


def test_a_file_that_is_no_python_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("class Model(:")
    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    with pytest.raises(SyntaxError, match=r"mine\.py"):
        methods.describe("mine")


def test_methods_are_listed_without_torch():
    code = "import sys; from ecgad import methods as m; [m.describe(n) for n in m.names()]"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_given_as_text_are_read_by_their_type():
    text = {"segment": "8, 8", "local": "2 2", "width": "32", "ratio": ".4",
            "beside": "tokens"}  # fmt: skip
    config = methods.build("mmae", (3, 32, 32), text).config
    expected = {"segment": (8, 8), "local": (2, 2), "width": 32, "ratio": 0.4,
                "beside": ("tokens",)}  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    assert not methods.build("rcae", (1, 80), {"recordwide": "no"}).config.recordwide


def test_settings_come_back_from_json_as_they_were():
    settings = {"segment": (8, 8), "local": (2, 2), "beside": ()}
    config = methods.build("mmae", (3, 32, 32), settings).config
    card = json.loads(json.dumps(dataclasses.asdict(config)))
    assert methods.build("mmae", (3, 32, 32), card).config == config


@pytest.mark.parametrize(
    ("method", "setting"),
    [("mmae", {"width": "wide"}), ("mmae", {"segment": "4,x"}), ("rcae", {"recordwide": "maybe"})],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(method, setting):
    ((name, _),) = setting.items()
    with pytest.raises(ValueError, match=f"setting {name} is '.*', which is not of type"):
        methods.build(method, (12, 4800), setting)


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no method 'mmea'; there are: .*mahalanobis, mmae"):
        methods.build("mmea", (12, 4800))
    with pytest.raises(TypeError, match=r"no setting 'widht'; did you mean width\?"):
        methods.build("mmae", (12, 4800), {"widht": 32})
