"""The report: content, escaping, determinism, and every way a run can be unfinished."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import HOSTILE, NLL, Page, best, events, lock, make_run, phase, steps

from sparring.cli_runs import conclude
from sparring.errors import RunError
from sparring.report.findings import last_line, verdict
from sparring.report.markdown import fenced, inline
from sparring.report.page import write_report
from sparring.report.plots import draw
from sparring.report.records import pretty, read_run
from sparring.report.tables import count, duration, fixed, result_rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report written; tests read it and change nothing."""
    players = ("base", "sft", "0", "1")
    folder = tmp_path_factory.mktemp("whole") / "demo"
    make_run(folder, events(laboratory=True), lock(), best(), players)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(whole: Path) -> str:
    return (whole / "report.html").read_text(encoding="utf-8")


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


# ---------------------------------------------------------------- content


def test_sections_come_in_order(page: str) -> None:
    wanted = [
        "Results",
        "Warnings",
        "How it went",
        "Side by side",
        "Budget",
        "How to make it again",
        "Glossary",
    ]
    assert re.findall(r"<h2>(.*?)</h2>", page) == wanted
    assert "2401.01335" in page
    plots = re.findall(r'id="plot-(\w+)"', page)
    assert plots == ["nll", "logprobs", "loss", "answers", "seconds", "exact"]


def test_verdict_names_player_difference_and_interval(whole: Path, page: str) -> None:
    said = verdict(whole)
    assert said.startswith("Best player: θ₁. Held-out NLL 1.2305 per token against 1.2480 for θ₀ (SFT)")
    assert "difference −0.0175 [−0.0235, −0.0115], 95 % over 40 prompts" in said
    assert "improvement" in said
    assert "Rolled back: θ₂ did not improve on it" in said
    assert said in page


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.02, 0.01, "no difference seen"),
        (-0.02, 0.0, "no difference seen"),
        (0.01, 0.02, "worse than θ₀"),
        (-0.02, -0.01, "an improvement"),
    ],
)
def test_verdict_is_honest_about_the_interval(tmp_path: Path, low: float, high: float, words: str) -> None:
    rows = events()
    for row in rows:
        if row["event"] == "scores" and row["player"] == "0":
            row["nll_difference"] = {"against": "sft", "mean": (low + high) / 2, "low": low, "high": high}
    said = verdict(make_run(tmp_path / "run", rows, lock(), best()))
    assert words in said
    assert ("improvement" in said) == (high < 0)


def test_verdict_when_sft_wins(tmp_path: Path) -> None:
    said = verdict(make_run(tmp_path / "run", events(), lock(), best("sft")))
    assert said.startswith("Best player: θ₀ (SFT). No self-play iteration improved on it in held-out NLL")
    assert "rolled back" in said


def test_verdict_names_another_metric(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", events(), lock(), best("0", metric="exact_kl", value=0.202))
    assert "Chosen by exact_kl (0.2020)." in verdict(folder)


def test_result_rows_for_the_terminal(whole: Path, tmp_path: Path) -> None:
    header, rows = result_rows(whole)
    assert header == [
        "player", "NLL [95 %]", "Δ vs SFT [95 %]", "KL to θ₀", "accuracy", "length", "end rate",
        "exact KL", "valid mass",
    ]  # fmt: skip
    assert rows[2] == [
        "θ₁ ★", "1.2305 [1.2005, 1.2605]", "−0.0175 [−0.0235, −0.0115]", "0.420", "71.0 %", "34.2", "97.0 %",
        "0.2020", "81.7 %",
    ]  # fmt: skip
    assert rows[-1][0] == "real answers"
    assert rows[-1][5:7] == ["34.0", "100.0 %"]
    assert all(len(row) == len(header) for row in rows)
    plain = make_run(tmp_path / "plain", events(), lock(), best())
    assert "exact KL" not in result_rows(plain)[0]


def test_warnings_logged_and_derived(page: str) -> None:
    found = re.findall(r'<li dir="auto">(.*?)</li>', page)
    assert found[0].startswith("iteration 1: learn: odd row &lt;script&gt;")
    rest = " | ".join(found[1:])
    assert "iteration 1: learn: likelihood displacement" in rest
    assert "iteration 0: learn: likelihood displacement" not in rest
    assert "θ₂: held-out NLL is worse than θ₀ (SFT) by +0.0081 [+0.0021, +0.0141]" in rest
    assert "θ₂: 80.0 % of answers end by themselves" in rest
    assert "θ₂: answers are 48.9 tokens long" in rest
    assert "base:" not in rest


def test_side_by_side_says_who_opposed_whom(page: str) -> None:
    assert "θ₁ learnt to tell real answers from those of θ₀ (SFT); θ₂ learnt" in page
    assert page.count('class="card prompt"') == 3  # evaluation.show
    assert "learnt against θ₁" in page
    assert page.split("<script")[0].count("cut at the length limit") == 3


def test_tables(whole: Path) -> None:
    with (whole / "tables" / "scores.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["player"] for row in found] == ["base", "sft", "0", "1"]
    assert float(found[2]["nll"]) == NLL["0"]
    assert float(found[2]["nll_difference_mean"]) == NLL["0"] - NLL["sft"]
    assert float(found[2]["exact_kl"]) == 0.202
    with (whole / "tables" / "phases.csv").open(encoding="utf-8", newline="") as file:
        timed = {row["phase"]: row for row in csv.DictReader(file)}
    assert timed["0/played"]["kind"] == "generation"
    assert timed["1/player"]["stopped"] == "held-out NLL rose by 0.021"
    assert timed["0/pairs"]["identical"] == "5"


def test_markdown_has_the_same_numbers(whole: Path) -> None:
    text = (whole / "report.md").read_text(encoding="utf-8")
    assert inline(verdict(whole)) in text
    assert "−0.0175 \\[−0.0235, −0.0115\\]" in text
    assert "likelihood displacement" in text
    assert "| total | 5 min 13 s |" in text
    assert "```yaml\nname: demo" in text


def test_how_to_make_it_again(page: str) -> None:
    for wanted in ("sparring run demo.yaml", "b45e", "da7a", "torch 2.13.0", "Imaginary 9000", "- 0.3"):
        assert wanted in page


# ---------------------------------------------------------------- the test split, and the last line


def a_test(which: str, player: str, **means: Any) -> dict[str, Any]:
    row = {"event": "test", "which": which, "player": player, "label": f"θ_{player}", "n": 40}
    return row | {"nll": NLL[player] + 0.01, "exact_kl": 0.31, "length": 34.5} | means


def test_the_test_split_has_its_own_table(tmp_path: Path) -> None:
    rows = [*events(), a_test("best", "0"), a_test("last", "1", length=1234.5)]
    folder = make_run(tmp_path / "run", rows, lock(), best())
    (folder / "test").mkdir()
    for which, rise in (("best", 0.0), ("last", 0.5)):
        row = {"tokens": 12}
        lines = [json.dumps({**row, "nll": 14.0 + index % 3 + rise, "prompt": f"{index}"}) for index in range(40)]
        (folder / "test" / f"{which}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    page = page_of(folder)
    table = page.split("On the test split, which chose nothing")[1].split("</section>")[0]
    assert "1.2405" in table
    assert "1.2661" in table
    assert "1234" in table or "1235" in table
    assert "win rate" not in table  # nobody measured it
    assert "NLL of θ₂ less that of the chosen player, paired by prompt: +0.0417 [+0.0417, +0.0417]." in table
    assert "## On the test split, which chose nothing" in (folder / "report.md").read_text(encoding="utf-8")


def test_without_a_test_there_is_no_table(page: str) -> None:
    assert "test split" not in page


def test_last_line_is_silent_when_the_player_is_better(whole: Path, tmp_path: Path) -> None:
    assert last_line(whole) is None
    assert last_line(make_run(tmp_path / "unfinished", events(), lock())) is None


@pytest.mark.parametrize(
    ("chosen", "extra", "wanted"),
    [
        (
            best("1"),
            [],
            "θ₂, is worse than θ₀ (SFT) in NLL on the held-out prompts that chose it: 1.2561 against 1.2480.",
        ),
        (best("1", metric="exact_kl"), [], "exact KL on the held-out prompts that chose it: 0.3600 against 0.2480."),
        (best("base", metric="nll"), [], "base, is worse than θ₀ (SFT) in NLL"),
        (
            best("0"),
            [a_test("best", "0"), a_test("start", "sft", nll=1.2)],
            "NLL on the test split: 1.2405 against 1.2000.",
        ),
    ],
)
def test_last_line_says_who_is_better(
    tmp_path: Path, chosen: dict[str, Any], extra: list[dict[str, Any]], wanted: str
) -> None:
    said = last_line(make_run(tmp_path / "run", [*events(laboratory=True), *extra], lock(), chosen))
    assert said is not None
    assert said.startswith("The player handed over, ")
    assert wanted in said


def test_last_line_counts_matches_upwards(tmp_path: Path) -> None:
    rows = events()
    for row in rows:
        if row["event"] == "scores":
            row["match"] = {"base": 0.1, "sft": 0.5, "0": 0.4, "1": 0.6}[row["player"]]
    folder = make_run(tmp_path / "run", rows, lock(), best("0", metric="match", value=0.4))
    assert "θ₀ (SFT) in matches on the held-out prompts that chose it: 0.4000 against 0.5000" in (
        last_line(folder) or ""
    )


def test_the_terminal_ends_with_it(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conclude(whole, whole / "report.html")
    assert capsys.readouterr().out.endswith("report.html\n")
    worse = make_run(tmp_path / "run", events(), lock(), best("1"))
    conclude(worse, worse / "report.html")
    assert capsys.readouterr().out.splitlines()[-1] == last_line(worse)


# ---------------------------------------------------------------- safety


def test_hostile_text_stays_text(whole: Path, page: str) -> None:
    seen = Page(page)
    assert [kind for kind, _ in seen.scripts] == ["application/json", "code"]
    assert seen.only_ours_runs()
    assert "img" not in seen.tags
    assert not seen.handlers
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in page
    markdown = (whole / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    assert "![" not in outside


def test_hostile_names_and_labels(tmp_path: Path) -> None:
    rows = events()
    for row in rows:
        if row["event"] == "scores" and row["player"] == "0":
            row["label"] = HOSTILE
    rows.append(phase(HOSTILE, 3.0, **{HOSTILE: 3}))
    folder = make_run(tmp_path / "run", rows, lock(name=HOSTILE), best())
    seen = Page(page_of(folder))
    assert seen.only_ours_runs()
    assert "img" not in seen.tags


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    seen = Page(page)
    assert all(link.startswith("#") for link in seen.links)
    assert set(seen.tags).isdisjoint({"link", "iframe", "img", "object", "form"})
    assert seen.only_ours_runs()
    assert seen.policy.startswith("default-src 'none'")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    seen = Page(page)
    assert len(seen.ids) == len(set(seen.ids))
    used = {link[1:] for link in seen.links} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used <= set(seen.ids)
    for label in re.findall(r'aria-labelledby="([^"]+)"', page):
        assert set(label.split()) <= set(seen.ids)


def test_text_that_no_file_can_hold(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", events(), lock(), best())
    place = folder / "sft-scores"
    place.mkdir()
    row = r'{"prompt": "lone \ud800 and null \u0000 \u001b[31m", "real": "r", "answer": "", "finish": "end"}'
    (place / "answers.jsonl").write_text(row + "\n", encoding="utf-8")
    page = page_of(folder)
    assert "script" not in Page(page).tags  # no iteration has been judged: there are no duels
    assert "\x00" not in page
    assert "\x1b" not in page
    assert "(empty)" in page


def test_fence_is_longer_than_any_inside() -> None:
    assert fenced("a ```` b").startswith("`````text\n")
    assert inline("a | <b>\n# c") == "a \\| &lt;b&gt; \\# c"


# ---------------------------------------------------------------- determinism and unfinished runs


def test_two_writes_give_the_same_bytes(whole: Path) -> None:
    names = ["report.html", "report.md", "tables/scores.csv", "tables/phases.csv"]
    write_report(whole)
    first = [(whole / name).read_bytes() for name in names]
    write_report(whole)
    assert [(whole / name).read_bytes() for name in names] == first
    assert not list(whole.rglob("*.tmp"))


def test_user_style_changes_nothing(whole: Path) -> None:
    import matplotlib

    plain = page_of(whole)
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.hashsalt": "other"}):
        assert page_of(whole) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_empty_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "empty", [])
    page = page_of(folder)
    assert "This run is unfinished: nothing has been recorded yet." in page
    assert result_rows(folder)[1] == []
    assert "<svg" not in page
    assert "nothing has been recorded" in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kept", [1, 3, 10, 24, 26, 28, 40, 46, 52, 60, 75])
def test_a_run_killed_anywhere_can_be_reported(tmp_path: Path, kept: int) -> None:
    folder = make_run(tmp_path / "run", events(laboratory=True)[:kept], lock(), answered=("sft",))
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "pha')
    page = page_of(folder)
    assert "unfinished" in page
    assert "could not be read" not in page


def test_unfinished_run_says_how_far_it_got(tmp_path: Path) -> None:
    rows = events()
    last = next(index for index, row in enumerate(rows) if row.get("phase") == "1/pairs")
    said = verdict(make_run(tmp_path / "run", rows[: last + 1], lock()))
    assert said.startswith("This run is unfinished: 1 of 2 iterations judged, last finished phase “iteration 1: score")
    assert "No best player has been chosen. So far the lowest NLL of self-play is θ₁'s." in said


def test_sft_off(tmp_path: Path) -> None:
    rows = [row for row in events() if "sft" not in (row.get("player"), row.get("phase"))]
    folder = make_run(tmp_path / "run", rows, lock(), best(), ("base", "0"))
    header, found = result_rows(folder)
    assert header[2] == "Δ vs base [95 %]"
    assert [row[0] for row in found] == ["base", "θ₁ ★", "θ₂", "real answers"]
    page = page_of(folder)
    assert "θ₁ learnt to tell real answers from those of base" in page
    assert "opponent of iteration 0" in page


def test_no_iterations(tmp_path: Path) -> None:
    rows = [row for row in events() if not str(row.get("phase") or row.get("player"))[0].isdecimal()]
    folder = make_run(tmp_path / "run", rows, lock(), best("sft", rolled_back=False), ("sft",))
    assert verdict(folder) == "Best player: θ₀ (SFT). No self-play iteration was judged; held-out NLL 1.2480 per token."
    page = page_of(folder)
    assert "unfinished" not in page
    assert [plot.name for plot in draw(read_run(folder))] == ["nll", "answers", "seconds"]


def test_missing_and_odd_values(tmp_path: Path) -> None:
    rows = events()
    for row in rows:
        if row["event"] in ("scores", "step"):
            row.update({key: None for key in ("kl_start", "margin", "nll_low", "real_shift")})
        if row["event"] == "scores" and row["player"] == "1":
            row["nll"] = float("nan")
    folder = make_run(tmp_path / "run", rows, None, best(), ())
    page = page_of(folder)
    assert "the config is not known" in page
    assert ">nan<" not in page.lower()


def test_a_resumed_run_counts_a_step_once(tmp_path: Path) -> None:
    again = steps("0/player", 16)
    folder = make_run(tmp_path / "run", [*again[:10], *again[5:]])
    assert [row["step"] for row in read_run(folder).steps["0/player"]] == list(range(1, 17))


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", events())
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("{broken\n[1]\n")
    assert "2 lines of metrics.jsonl could not be read" in page_of(folder)


@pytest.mark.parametrize(("name", "content"), [("run.lock.yaml", "a: [b"), ("best/best.json", "{")])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    folder = make_run(tmp_path / "run", events())
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=re.escape(Path(name).name)):
        write_report(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        write_report(tmp_path / "nowhere")


def test_many_steps_stay_small(tmp_path: Path) -> None:
    rows = [*steps("0/player", 5000), *steps("1/player", 5000)]
    page = page_of(make_run(tmp_path / "run", rows, lock()))
    assert "means of 34 steps" in page
    assert len(page) < 250_000


# ---------------------------------------------------------------- small things


def test_numbers_as_text() -> None:
    assert [fixed(-0.00001), fixed(0.5, 2, sign=True), fixed(-2, 1), fixed(None)] == [
        "0.0000",
        "+0.50",
        "−2.0",
        "–",
    ]
    assert [duration(59.94), duration(59.96), duration(61), duration(3725)] == [
        "59.9 s", "1 min 00 s", "1 min 01 s", "1 h 02 min",
    ]  # fmt: skip
    assert [count(999_999), count(2.5e12), count(0)] == ["999 999", "2.50 T", "0"]
    assert [pretty("θ_12 (SFT)"), pretty("θ_x")] == ["θ₁₂ (SFT)", "θ_x"]


def test_the_report_loads_no_torch() -> None:
    code = "import sys, sparring.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
