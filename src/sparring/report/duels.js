"use strict";
// The duel browser: filters, search and pages over the JSON beside it. Links carry the state: #won=real&q=7&match=0&page=2
(() => {
  const PAGE = 20;
  const at = (name) => document.getElementById(`duels-${name}`);
  const data = JSON.parse(at("data").textContent);
  const all = data.duels.flatMap(([place, prompt, real, said, notes, won]) =>
    data.matches.map(([key, name, opponent, player], index) => ({
      place, prompt, real, key, name, won: won[index],
      sides: [opponent, player].map((who, side) => ({ title: data.speakers[who], role: data.roles[side], text: said[who], note: notes[who] })),
    })).filter((duel) => duel.sides.every((side) => side.text !== null)));
  for (const duel of all) {
    duel.words = [duel.prompt, duel.real, ...duel.sides.map((side) => side.text)].join("\n").toLowerCase();
  }
  let state;

  const make = (tag, style, ...inside) => {
    const made = document.createElement(tag);
    if (style) made.className = style;
    made.append(...inside);
    return made;
  };

  const said = (whole) => {
    const text = (words) => {
      const made = make("p", "said", words);
      made.dir = "auto";
      return made;
    };
    if (!whole) return [make("p", "muted", "(empty)")];
    const [characters, lines] = data.head;
    const head = whole.slice(0, characters).replace(/[\ud800-\udbff]$/, "").split("\n").slice(0, lines).join("\n");
    if (head.length === whole.length) return [text(whole)];
    const rest = whole.slice(head.length);
    const more = make("summary", "", `${[...rest].length} more characters`);
    return [text(head), make("details", "", more, text(rest))];
  };

  const winner = (duel) => {  // in a study the arm's own name
    if (duel.won === "tie") return "tie";
    return `${duel.won === "player" ? duel.sides[1].title : data.results[duel.won]} wins`;
  };

  const card = (duel) => {
    const title = make("h3", "", `Prompt ${duel.place}`, " ", make("small", "", duel.name));
    if (duel.won) title.append(make("span", `tag ${duel.won}`, winner(duel)));
    const columns = [{ title: "real answer", role: "", text: duel.real, note: "" }, ...duel.sides].map((side) =>
      make("div", "", make("h3", "", side.title), make("small", "", [side.role, side.note].filter(Boolean).join(" · ")), ...said(side.text)));
    return make("article", "card prompt", title, ...said(duel.prompt), make("div", "answers", ...columns));
  };

  const show = () => {
    const words = state.q.toLowerCase();
    const asked = all.filter((duel) => state.match === "all" || duel.key === state.match);
    const found = asked.filter((duel) => (!state.won || duel.won === state.won) && duel.words.includes(words));
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(Math.max(1, state.page), pages);
    const first = (state.page - 1) * PAGE;
    const part = found.slice(first, first + PAGE);
    at("list").replaceChildren(...part.map(card));
    const range = part.length ? `${first + 1}–${first + part.length} of ` : "";
    at("count").textContent = `${range}${found.length} found among ${asked.length} duels`;
    at("previous").disabled = state.page === 1;
    at("next").disabled = state.page === pages;
    for (const name of ["won", "match", "q"]) if (at(name)) at(name).value = state[name];
  };

  const read = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const known = (name, other) => (at(name) && [...at(name).options].some((o) => o.value === given.get(name)) ? given.get(name) : other);
    state = { won: known("won", ""), match: known("match", data.first), q: given.get("q") || "", page: Number.parseInt(given.get("page"), 10) || 1 };
    show();
    if (["won", "match", "q", "page"].some((name) => given.has(name))) at("browser").scrollIntoView();
  };

  const change = (changes) => {
    Object.assign(state, changes);
    show();
    history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  };

  for (const name of ["won", "match", "q"]) {
    if (at(name)) at(name).addEventListener("input", (event) => change({ [name]: event.target.value, page: 1 }));
  }
  for (const [name, by] of [["previous", -1], ["next", 1]]) {
    at(name).addEventListener("click", () => {
      change({ page: state.page + by });
      at("browser").scrollIntoView();
    });
  }
  addEventListener("hashchange", read);
  at("browser").hidden = false;
  at("few").classList.add("on-paper");
  read();
})();
