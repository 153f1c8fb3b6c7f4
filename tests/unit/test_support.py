"""`sparring methods`, and the docs that repeat it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sparring.cli import main
from sparring.methods import METHODS
from sparring.support import HEADER, support_markdown, support_rows

DOCS = Path(__file__).parents[2] / "docs"


def test_the_docs_have_the_table_of_the_code() -> None:
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert page.split("<!-- methods -->\n")[1].split("<!-- /methods -->")[0] == support_markdown()


def test_a_row_for_every_method_and_a_line_about_it() -> None:
    assert [row[0] for row in support_rows()] == list(METHODS)
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    for name, row in METHODS.items():
        assert f"| `{name}` |" in page
        number = row.source.rpartition(" ")[2]
        assert row.whole or number in page, f"{name}: its source {number} is not in the docs"


@pytest.mark.parametrize("how", [[], ["--markdown"], ["--json"]])
def test_the_verb(how: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sparring", "methods", *how])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    said = capsys.readouterr().out
    assert all(name in said for name in METHODS)
    if how == ["--json"]:
        assert [json.loads(line)["method"] for line in said.splitlines()] == list(METHODS)
        assert set(json.loads(said.splitlines()[0])) == set(HEADER)


def test_the_table_of_methods_needs_no_torch() -> None:
    code = "import sys, sparring.config, sparring.support; sys.exit('torch' in sys.modules or 'peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
