"""The duel browser: what the page holds, that data cannot run, and in a browser, that the filters work."""

from __future__ import annotations

import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import HOSTILE, Page, best, events, lock, make_run, needs_chromium, opened

from sparring.report import duels
from sparring.report.duels import Browser, folded, of_run, of_study
from sparring.report.frame import island
from sparring.report.page import write_report
from sparring.report.records import read_run

PLAYERS = ("base", "sft", "0", "1")
EVIL = "</script><script>document.title='ran'</script><!--<script> \u2028 \u202e abc \x1b[31m"


def run_with(folder: Path, prompts: int = 5, **changes: dict[str, Any]) -> Path:
    """A finished run that judged on so many prompts; `changes` of the config's sections."""
    locked = lock()
    for section, values in changes.items():
        locked["config"][section] |= values
    rows = [row | {"n": prompts} if row["event"] == "scores" else row for row in events()]
    return make_run(folder, rows, locked, best(), PLAYERS)


def write_answers(folder: Path, player: str, rows: list[dict[str, Any]]) -> None:
    place = folder / ("sft-scores" if player == "sft" else f"{player}/scores")
    place.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"finish": "end", "real": "r", "answer": "a"} | row) + "\n" for row in rows)
    (place / "answers.jsonl").write_text("".join(lines), encoding="utf-8")


def browser_of(folder: Path) -> Browser:
    found = of_run(read_run(folder))
    assert found is not None
    return found


# ---------------------------------------------------------------- what is embedded


def test_each_iteration_is_a_match(tmp_path: Path) -> None:
    found = browser_of(run_with(tmp_path / "run"))
    assert [match.name for match in found.matches] == ["iteration 0: θ₁ against θ₀ (SFT)", "iteration 1: θ₂ against θ₁"]
    assert [(found.speakers[m.opponent], found.speakers[m.player]) for m in found.matches] == [
        ("θ₀ (SFT)", "θ₁"),
        ("θ₁", "θ₂"),
    ]
    assert found.first == "0"  # the best player's
    assert [duel.won for duel in found.duels] == [
        ("opponent", "opponent"), ("opponent", "opponent"), ("tie", "tie"), ("real", "real"), ("real", "real"),
    ]  # fmt: skip
    assert found.duels[1].notes == ("cut at the length limit",) * 3
    assert found.duels[0].said[1].startswith("0 says 0")  # type: ignore[union-attr]


def test_without_margins_nobody_wins(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run")
    for player in ("0", "1"):
        write_answers(folder, player, [{"prompt": "p", "margin": None}])
    write_answers(folder, "sft", [{"prompt": "p"}])
    found = browser_of(folder)
    assert found.results == ()
    assert 'id="duels-won"' not in write_report(folder).read_text(encoding="utf-8")


def test_show_0_embeds_no_text(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run", evaluation={"show": 0})
    assert of_run(read_run(folder)) is None
    page = write_report(folder).read_text(encoding="utf-8")
    assert "script" not in Page(page).tags
    assert "says 0" not in page
    assert "evaluation.show is 0" in page


def test_a_page_holds_some_and_says_so(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run", prompts=300)
    for player in ("sft", "0", "1"):
        write_answers(folder, player, [{"prompt": f"p{index}"} for index in range(300)])
    page = write_report(folder).read_text(encoding="utf-8")
    assert len(browser_of(folder).duels) == duels.MOST
    assert f"The page holds the first {duels.MOST} of 300 prompts" in " ".join(page.split())


def test_long_texts_do_not_swell_the_page(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run")
    for player in ("sft", "0", "1"):
        write_answers(folder, player, [{"prompt": f"p{i}", "answer": "x" * 100_000} for i in range(200)])
    found = browser_of(folder)
    assert 1 < len(found.duels) < 100
    assert len(write_report(folder).read_text(encoding="utf-8")) < 2 * duels.MOST_TEXT
    assert "(92000 more characters are left out of this page)" in (found.duels[0].said[0] or "")


def test_folded_texts_lose_nothing() -> None:
    assert folded("short") == ("short", "")
    head, rest = folded("ab" * 400)
    assert (len(head), head + rest) == (duels.HEAD, "ab" * 400)
    head, rest = folded("line\n" * 20)
    assert (head.count("\n"), head + rest) == (duels.LINES - 1, "line\n" * 20)


def test_a_study_shows_each_arm_beside_the_reference() -> None:
    def said(nll: Any) -> dict[str, Any]:
        return {"answer": "a", "nll": nll, "tokens": 10}

    rows: list[Any] = [
        {"prompt": "p", "real": "r", "arms": {"spin": said(2.0), "ref": said(3.0), "other": said(3.0)}},
        {"prompt": "q", "real": "r", "arms": {"spin": said(4.0), "ref": said(3.0), "other": said(None)}},
        {"prompt": "s", "arms": {"spin": said(1.0), "odd": None}},
        "damaged",
    ]
    found = of_study(rows, {"other": "Other", "ref": "Ref", "spin": "SPIN"}, "spin", "ref")
    assert found is not None
    assert [match.name for match in found.matches] == ["SPIN beside Ref", "Other beside Ref"]
    assert [duel.won for duel in found.duels] == [("player", "tie"), ("opponent", None), (None, None)]
    assert found.duels[2].said == (None, None, "a")
    assert found.duels[0].notes[1] == "real answer: 0.3000 nats per token"
    assert of_study(rows, {"spin": "SPIN"}, "spin", "ref") is None


# ---------------------------------------------------------------- safety


def test_nothing_in_the_data_ends_its_element() -> None:
    data = {"a": [EVIL, HOSTILE, None, 0.5]}
    written = island(data)
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == data


def test_hostile_data_stays_data(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run")
    for player in ("sft", "0", "1"):
        write_answers(folder, player, [{"prompt": EVIL, "real": EVIL, "answer": EVIL, "margin": 1.0}])
    seen = Page(write_report(folder).read_text(encoding="utf-8"))
    assert [kind for kind, _ in seen.scripts] == ["application/json", "code"]
    assert seen.only_ours_runs()
    held = json.loads(seen.scripts[0][1])["duels"][0]
    assert held[1].startswith("</script><script>document.title")
    assert not set("\x1b\u202e") & set(held[1])


def test_the_script_is_small_and_writes_only_text() -> None:
    source = resources.files("sparring.report").joinpath("duels.js").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 100
    assert not re.search(r"</|innerHTML|insertAdjacent|outerHTML|eval|Function\(|document\.write|fetch|import", source)


def test_the_first_few_stand_there_without_a_script(tmp_path: Path) -> None:
    page = write_report(run_with(tmp_path / "run")).read_text(encoding="utf-8").split("<script")[0]
    assert page.count('class="card prompt"') == 3
    assert '<div id="duels-browser" hidden>' in page


# ---------------------------------------------------------------- in a browser


@needs_chromium
class TestInABrowser:
    """Each test opens the page with a link that carries filters, and reads what it became."""

    @pytest.fixture(scope="class")
    def page(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = run_with(tmp_path_factory.mktemp("page") / "run")
        for player in ("sft", "0", "1"):
            rows = [
                {"prompt": f"{i}+1=", "real": f"{i}", "answer": f"{player} {i} {EVIL}", "margin": (i % 3) - 1.0}
                for i in range(60)
            ]
            rows[5]["answer"] = "long " * 400 + "Ζήτα"
            write_answers(folder, player, rows)
        return write_report(folder)

    @pytest.mark.parametrize(
        ("fragment", "count", "prompts"),
        [
            ("", "1–20 of 60 found among 60 duels", list(range(1, 21))),
            ("#won=real", "1–20 of 20 found among 60 duels", list(range(3, 61, 3))),
            ("#won=tie&q=59%2B1", "0 found among 60 duels", []),
            ("#won=real&q=59%2B1", "1–1 of 1 found among 60 duels", [60]),
            ("#match=all&q=3%2B1=&won=opponent", "1–4 of 4 found among 120 duels", [4, 4, 34, 34]),
            ("#q=%CE%B6%CE%AE%CF%84%CE%B1", "1–1 of 1 found among 60 duels", [6]),
            ("#page=3", "41–60 of 60 found among 60 duels", list(range(41, 61))),
            ("#page=99&match=nobody&won=%3Cb%3E", "41–60 of 60 found among 60 duels", list(range(41, 61))),
        ],
    )
    def test_filters(self, page: Path, tmp_path: Path, fragment: str, count: str, prompts: list[int]) -> None:
        seen, console = opened(page, tmp_path, fragment)
        listed = seen.split('id="duels-list"')[1].split('id="duels-few"')[0]
        assert f'role="status">{count}</span>' in seen
        assert [int(place) for place in re.findall(r"<h3>Prompt (\d+)", listed)] == prompts
        assert console == []
        assert "<title>demo · Sparring</title>" in seen

    def test_a_long_answer_is_folded_and_whole(self, page: Path, tmp_path: Path) -> None:
        seen, _ = opened(page, tmp_path, "#q=%CE%B6%CE%AE%CF%84%CE%B1")
        listed = seen.split('id="duels-list"')[1].split('id="duels-few"')[0]
        assert listed.count("<summary>1404 more characters</summary>") == 2
        texts = [html.unescape(text) for text in re.findall(r'<p class="said" dir="auto">(.*?)</p>', listed, re.DOTALL)]
        assert "".join(texts[2:4]) == "long " * 400 + "Ζήτα"

    def test_a_changed_script_does_not_run(self, page: Path, tmp_path: Path) -> None:
        changed = tmp_path / "changed.html"
        source = page.read_text(encoding="utf-8")
        changed.write_text(source.replace('"use strict";', 'document.title = "ran";', 1), encoding="utf-8")
        seen, console = opened(changed, tmp_path)
        assert "<title>demo · Sparring</title>" in seen
        assert '<div id="duels-browser" hidden' in seen
        assert any("Content Security Policy" in line for line in console)

    def test_controls_change_what_is_shown_and_the_link(self, page: Path, tmp_path: Path) -> None:
        driven = tmp_path / "driven.html"
        source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
        hand = """<script>
          const at = (name) => document.getElementById(`duels-${name}`);
          const give = (name, value) => { at(name).value = value; at(name).dispatchEvent(new Event("input")); };
          at("next").click();
          const paged = at("count").textContent;
          give("won", "real"); give("match", "all"); give("q", "+1=");
          at("next").click(); at("previous").click(); at("next").click();
          document.title = [paged, at("count").textContent, location.hash, at("next").disabled].join(" | ");
        </script></body>"""
        driven.write_text(source.replace("</body>", hand), encoding="utf-8")
        seen, console = opened(driven, tmp_path)
        title = html.unescape(re.findall(r"<title>(.*?)</title>", seen)[0])
        assert title.split(" | ") == [
            "21–40 of 60 found among 60 duels",
            "21–40 of 40 found among 120 duels",
            "#won=real&match=all&q=%2B1%3D&page=2",
            "true",
        ]
        assert console == []
