"""``dcbench new method``: the files of the page, which work as they are."""

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dcbench_tesla.cli import main
from dcbench_tesla.cli.new import package

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "adding-a-method.md").read_text(encoding="utf-8")


def dcbench(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_files_are_those_of_the_page(tmp_path: Path) -> None:
    method, packaging, test = package("k-means", tmp_path / "dcbench-k-means").values()
    assert (method, test) == tuple(blocks("python")[:2])
    assert packaging.startswith(blocks("toml")[0])


def test_a_new_method_has_its_own_names_everywhere(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shown = dcbench("new", "method", "my-way2", "--folder", folder)
    assert shown.exit_code == 0, shown.output
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.*")}
    assert set(files) == {"dcbench_my_way2.py", "pyproject.toml", "tests/test_my_way2.py"}
    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["entry-points"]["dcbench.methods"] == {"my-way2": "dcbench_my_way2:MyWay2"}
    source = project["tool"]["uv"]["sources"]["dcbench-tesla"]["path"]
    assert (folder / source / "dcbench_tesla").is_dir()  # the checkout, by a path that stays right for both together
    assert not Path(source).is_absolute()
    for name, text in files.items():
        assert "$" not in text
        assert "KMeans" not in text
        assert "k_means" not in text
        if name.endswith(".py"):
            compile(text, name, "exec")
    scope: dict[str, object] = {"__name__": "dcbench_my_way2"}
    exec(files["dcbench_my_way2.py"], scope)
    assert "MyWay2" in scope


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["My_Method"], "is no name of a method: small letters"),
        (["none"], "is no name of a method"),
        (["tesla"], "there is a method 'tesla' already"),
        (["mine", "--folder", "."], "exists already: remove it"),
    ],
)
def test_other_names_and_folders_are_refused(words: list[str], message: str) -> None:
    refused = dcbench("new", "method", *words)
    assert refused.exit_code == 2
    assert message in refused.stderr
