"""The laboratory's page: the numbers of lab.json in, one HTML file out, with no script and nothing to load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparring.files import write_atomic
from sparring.report.frame import pictures, render
from sparring.report.lab_faults import distance_plot, fault_table, lengths_plot, readouts_plot
from sparring.report.lab_plots import law_5_plot, law_7_plot, law_8_plot, law_9_plot, split_plot
from sparring.report.svg import drawing

WORLDS = {
    "A": (
        "The low-rank bandit",
        "Contexts and arms in a table; players are tables of low rank over the base. Expectations are sums and minima "
        "are exact, so every digit can be compared with theory.",
        (law_5_plot, law_7_plot, law_8_plot, law_9_plot),
    ),
    "B": (
        "Templated arithmetic",
        "Three ways to add three digits, with the tiny base that is committed: the run of sparring run.",
        (split_plot,),
    ),
    "C": (
        "The grammar, and faults",
        "A small grammar whose law of length is exact, a base of about 27k parameters made on the fly, and the "
        "whole of Algorithm 1, right and with one thing wrong at a time.",
        (lengths_plot, distance_plot, readouts_plot),
    ),
}
WHERE = "All numbers are in lab.json beside this page; docs/laboratory.md has the equations."


def write_page(numbers: Mapping[str, Any], file: Path) -> None:
    """Write the page of the worlds that `numbers` holds; the same numbers give the same bytes."""
    worlds = []
    with drawing():
        for name, world in numbers["worlds"].items():
            title, about, plots = WORLDS[name]
            drawn = [plot({**world, "seed": numbers["seed"]}) for plot in plots]
            shown = pictures(drawn)
            table = fault_table(world) if "faults" in world else None
            worlds.append({"name": name, "title": title, "about": about, "plots": shown, "table": table})
    page = render(
        "lab.html",
        "lab.css",
        worlds=worlds,
        finished=True,
        verdict="What theory says of self-play fine-tuning, and what was measured where the answer is known.",
        notes=[f"Seed {numbers['seed']}. {WHERE}"],
        facts=[],
        browser=None,
    )
    write_atomic(file, page)
