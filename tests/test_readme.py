"""The README does what it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_example_prints_what_stands_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0]
    exec(compile(code, "README.md", "exec"), {})
    shown = README.split(code)[1].split("```\n", 2)[2].split("```")[0]
    assert capsys.readouterr().out == shown
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_the_install_and_test_commands_are_those_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    shown = "".join(blocks("bash"))
    for command in ("ecgad screen data/samples -o", "pip install -e '.[dev]'", "pytest"):
        assert command in shown
        assert command in ci.replace('"$pip" install -q', "pip install").replace(
            '"$work/user/bin/ecgad"', "ecgad"
        )


def test_every_file_of_the_tree_is_there():
    found = re.search(r"```\necgad/\n(.*?)^tests/", README, flags=re.DOTALL | re.MULTILINE)
    assert found
    names = re.findall(r"(?<!\S)(\w+(?:\.py|/))(?=\s)", found[1])
    assert len(names) > 12
    assert not [name for name in names if not (ROOT / "ecgad" / name).exists()]


@pytest.mark.parametrize("page", ["README.md", "data/README.md", "data/leaderboard/README.md"])
def test_what_a_page_links_to_is_there(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text)
    assert links or page == "data/README.md"
    for file, heading in links:
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), file
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), flags=re.MULTILINE)
            assert heading in [
                re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings
            ]


def test_every_method_is_in_the_table_of_methods():
    from ecgad.methods import names

    assert not [name for name in names() if f"| `{name}` |" not in README]
