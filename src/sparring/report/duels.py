"""Duels: a held-out prompt, its real answer, and two answers side by side, to be looked through on the page.

In a run the two are the player's and its opponent's, once per iteration; in a study the target's and another
arm's. `duels.js` shows what stands in `island`; without a script the page shows the first few (`cards`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sparring.report.frame import island
from sparring.report.records import Answers, Run, number, read_answers, shown, text

MOST = 200  # prompts in a page
MOST_TEXT = 1_000_000  # characters of all their texts
LONGEST = 8000  # characters of one text
HEAD = 600  # characters of a text that are seen before it is opened
LINES = 12  # lines


@dataclass(frozen=True, slots=True)
class Match:
    """Who is shown against whom: places in `Browser.speakers`."""

    key: str
    name: str
    opponent: int
    player: int


@dataclass(frozen=True, slots=True)
class Duel:
    """One prompt. said, notes: by speaker, None where there is no answer; won: by match, None where not known."""

    place: int
    prompt: str
    real: str
    said: tuple[str | None, ...]
    notes: tuple[str, ...]
    won: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Browser:
    """All that the page's duel browser needs.

    results  who can win: (key, label); empty when that is not known
    first    the key of the match that is shown first
    roles    what the two sides are: the opponent's, the player's
    kind     what the matches differ in, as "iteration"
    meaning  what winning means
    total    prompts that there are, shown or not
    """

    duels: tuple[Duel, ...]
    speakers: tuple[str, ...]
    matches: tuple[Match, ...]
    results: tuple[tuple[str, str], ...]
    first: str
    roles: tuple[str, str]
    kind: str
    meaning: str
    total: int

    @property
    def data(self) -> Markup:
        """The JSON that duels.js reads."""
        return island(
            {
                "speakers": self.speakers,
                "matches": [[m.key, m.name, m.opponent, m.player] for m in self.matches],
                "results": dict(self.results),
                "roles": self.roles,
                "first": self.first,
                "head": [HEAD, LINES],
                "duels": [[d.place, d.prompt, d.real, d.said, d.notes, d.won] for d in self.duels],
            }
        )


def of_run(run: Run) -> Browser | None:
    """The duels of a run's iterations; None before the first is judged, or if `evaluation.show` is 0."""
    if not shown(run):
        return None
    rows = read_answers(run, MOST)
    players = [run.start, *(str(t) for t in run.iterations)]
    matches = tuple(
        Match(player, f"iteration {player}: {run.label(player)} against {run.label(opponent)}", place - 1, place)
        for place, player in enumerate(players)
        if (opponent := run.opponent(player)) and any({player, opponent} <= set(row.said) for row in rows)
    )
    if not matches:
        return None
    known = any(row.margins for row in rows)
    best = text(run.best.get("player")) if run.best else ""
    counts = [n for row in run.scores.values() if (n := number(row, "n")) is not None]
    return Browser(
        duels=_within(_duel_of_run(place, row, players, matches) for place, row in enumerate(rows, start=1)),
        speakers=tuple(run.label(player) for player in players),
        matches=matches,
        results=(("real", "real answer"), ("opponent", "opponent"), ("tie", "tie")) if known else (),
        first=best if best in [match.key for match in matches] else matches[-1].key,
        roles=("opponent", "player"),
        kind="iteration",
        meaning="The real answer wins where the player, measured from its opponent, has raised its log-prob more than "
        "that of the opponent's answer: the margin is above 0.",
        total=max(len(rows), int(max(counts, default=0))),
    )


def of_study(rows: Sequence[Any], labels: dict[str, str], target: str, reference: str) -> Browser | None:
    """The duels of a study: each arm that answered beside the reference, the target first; None without any."""
    read = [row for row in rows if isinstance(row, dict) and isinstance(row.get("arms"), dict)]
    seen = {name for row in read for name in row["arms"]}
    names = [name for name in labels if name in seen]
    rivals = sorted((name for name in names if name != reference), key=lambda name: name != target)
    if reference not in names or not rivals:
        return None
    places = {name: place for place, name in enumerate(names)}
    matches = tuple(
        Match(name, f"{labels[name]} beside {labels[reference]}", places[reference], places[name]) for name in rivals
    )
    duels = _within(_duel_of_study(place, row, names, matches) for place, row in enumerate(read[:MOST], start=1))
    known = any(won for duel in duels for won in duel.won)
    return Browser(
        duels=duels,
        speakers=tuple(labels[name] for name in names),
        matches=matches,
        results=(("player", "arm"), ("opponent", labels[reference]), ("tie", "tie")) if known else (),
        first=rivals[0],
        roles=("reference", ""),
        kind="arm",
        meaning="An arm wins a prompt where the real answer has the lower NLL under it. That is about the real answer, "
        "not about the two sampled ones.",
        total=len(read),
    )


def cards(run: Run, row: Answers) -> dict[str, Any]:
    """One prompt of a run with all its players, for a page without a script."""
    found = [_card("real answer", "", row.real)]
    for player, (said, finish) in row.said.items():
        opponent = run.opponent(player)
        note = f"learnt against {run.label(opponent)}" if opponent else "opponent of iteration 0"
        note = "" if run.rewarded else note
        found.append(_card(run.label(player), f"{note}{' · cut at the length limit' * (finish == 'length')}", said))
    return {"prompt": folded(row.prompt), "cards": found}


def study_cards(browser: Browser) -> list[dict[str, Any]]:
    """The first prompts of a study with the two arms of its first match."""
    match = next(match for match in browser.matches if match.key == browser.first)
    found = []
    for duel in browser.duels[:3]:
        sides = [
            _card(browser.speakers[side], duel.notes[side], said)
            for side in (match.opponent, match.player)
            if (said := duel.said[side]) is not None
        ]
        found.append({"prompt": folded(duel.prompt), "cards": [_card("real answer", "", duel.real), *sides]})
    return found


def folded(said: str) -> tuple[str, str]:
    """(what is seen at once, what is seen when opened)."""
    said = _cut(said)
    seen = len("\n".join(said[:HEAD].split("\n")[:LINES]))
    return said[:seen], said[seen:]


def _card(title: str, note: str, said: str) -> dict[str, Any]:
    return {"title": title, "note": note, "text": folded(said)}


def _cut(said: str) -> str:
    left = len(said) - LONGEST
    return said if left <= 0 else f"{said[:LONGEST]} … ({left} more characters are left out of this page)"


def _within(duels: Iterable[Duel]) -> tuple[Duel, ...]:
    """The first duels, as many as a page should hold."""
    kept: list[Duel] = []
    held = 0
    for duel in duels:
        held += sum(len(said) for said in (duel.prompt, duel.real, *duel.said) if said)
        if kept and held > MOST_TEXT:
            break
        kept.append(duel)
    return tuple(kept)


def _duel_of_run(place: int, row: Answers, players: Sequence[str], matches: Sequence[Match]) -> Duel:
    heard = [row.said.get(player) for player in players]
    return Duel(
        place,
        _cut(row.prompt),
        _cut(row.real),
        said=tuple(None if one is None else _cut(one[0]) for one in heard),
        notes=tuple("cut at the length limit" if one and one[1] == "length" else "" for one in heard),
        won=tuple(_winner(row.margins.get(match.key), "real", "opponent") for match in matches),
    )


def _duel_of_study(place: int, row: dict[str, Any], names: Sequence[str], matches: Sequence[Match]) -> Duel:
    arms = [one if isinstance(one := row["arms"].get(name), dict) else None for name in names]
    rates = [None if one is None else _rate(one) for one in arms]
    gaps = [
        None if (mine := rates[match.player]) is None or (theirs := rates[match.opponent]) is None else theirs - mine
        for match in matches
    ]
    return Duel(
        place,
        _cut(text(row.get("prompt"))),
        _cut(text(row.get("real"))),
        said=tuple(None if one is None else _cut(text(one.get("answer"))) for one in arms),
        notes=tuple("" if rate is None else f"real answer: {rate:.4f} nats per token" for rate in rates),
        won=tuple(_winner(gap, "player", "opponent") for gap in gaps),
    )


def _rate(arm: dict[str, Any]) -> float | None:
    """NLL per token of the real answer under an arm."""
    nats, tokens = number(arm, "nll"), number(arm, "tokens")
    return nats / tokens if nats is not None and tokens else None


def _winner(gap: float | None, above: str, below: str) -> str | None:
    if gap is None:
        return None
    if abs(gap) < 1e-9:
        return "tie"
    return above if gap > 0 else below
