"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  let parsed;
  const data = () => (parsed ??= JSON.parse(at("data").textContent));

  function element(name, text, properties = {}) {
    const made = Object.assign(document.createElement(name), properties);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // Theme
  const root = document.documentElement;
  const screen = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : screen.matches);
  const nameTheme = () => {
    at("theme").textContent = isDark() ? "Light theme" : "Dark theme";
  };
  at("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("advbench-theme", root.dataset.theme);
    } catch {
      /* it holds for this visit */
    }
    nameTheme();
  });
  screen.addEventListener("change", nameTheme);
  nameTheme();

  // The main table: sorting, filters, eps
  const board = at("board");
  const heads = all("thead th", board);
  const say = (text) => {
    at("said").textContent = text;
  };

  function sortBy(place, direction) {
    const numeric = all("tbody td, tbody th", board).some((cell) => cell.cellIndex === place && cell.dataset.v);
    const keyOf = (row) => {
      const cell = row.cells[place];
      if (!numeric) return cell.textContent;
      const value = Number(cell.dataset.v);
      return cell.dataset.v === "" || Number.isNaN(value) ? null : value;
    };
    for (const body of board.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("heading"));
      const keyed = rows.map((row) => [keyOf(row), row]);
      // What is missing stays last, whichever way.
      keyed.sort(([one], [other]) => {
        if (one === null || other === null) return (one === null) - (other === null);
        const order = numeric ? one - other : one.localeCompare(other);
        return direction === "ascending" ? order : -order;
      });
      body.append(...keyed.map(([, row]) => row));
    }
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[place].setAttribute("aria-sort", direction);
  }

  board.tHead.addEventListener("click", (event) => {
    const button = event.target.closest(".sort");
    if (!button) return;
    const head = button.closest("th");
    const was = head.getAttribute("aria-sort");
    const ups = ["rank", "defense", "net", "flags"];
    const first = ups.includes(button.dataset.column) && !head.dataset.attack ? "ascending" : "descending";
    const next = was ? (was === "ascending" ? "descending" : "ascending") : first;
    sortBy(head.cellIndex, next);
    say(`Sorted by ${button.textContent}, ${next}.`);
  });

  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("find").addEventListener("input", () => {
    const words = at("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = all("tbody tr", board).filter((row) => !row.classList.contains("heading"));
    for (const row of rows) {
      const text = row.dataset.text.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    say(words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows are shown.` : "");
  });

  for (const box of all("input[data-attack]")) {
    box.addEventListener("change", () => {
      for (const cell of all(`[data-attack="${box.dataset.attack}"]`, board)) cell.hidden = !box.checked;
    });
  }

  const accuracyOf = ([parts, note]) => [...parts, data().notes[note]].filter(Boolean).join(" ");

  at("eps")?.addEventListener("change", () => {
    const { cells, eps, attacks, defenses, notes } = data();
    const chosen = at("eps").value;
    for (const span of all(".eps", board)) span.textContent = eps[chosen][0];
    for (const button of all("td[data-attack] .number", board)) {
      const [defense, attack] = button.dataset.cell.split(",");
      const key = `${defense},${attack},${chosen}`;
      const [parts, note, accuracy] = cells[key];
      button.dataset.cell = key;
      button.classList.toggle("bad", accuracy === null);
      button.closest("td").dataset.v = accuracy ?? "";
      button.title = notes[note];
      const label = `${defenses[defense].name}, ${attacks[attack].name}`;
      button.setAttribute("aria-label", `${label}: ${accuracyOf(cells[key])}, what lies behind it`);
      button.replaceChildren(element("strong", parts[0]));
      for (const part of parts.slice(1)) button.append(" ", element("small", part));
    }
    const sorted = heads.find((head) => head.hasAttribute("aria-sort"));
    if (sorted?.dataset.attack) sortBy(sorted.cellIndex, sorted.getAttribute("aria-sort"));
    say(`Attacks at eps ${eps[chosen][0]}; rank and lowest stay those at the largest.`);
  });

  // What lies behind a number
  const decimals = (value, digits = 4) => (value === null ? "n/a" : value.toFixed(digits));

  function list(pairs) {
    const made = element("dl");
    for (const [term, text] of pairs) made.append(element("dt", term), element("dd", text));
    return made;
  }

  function paper({ paper: [text, link] }) {
    if (!text) return [];
    const made = element("p", `${text} `);
    made.append(element("a", link, { href: link, rel: "noopener" }));
    return [made];
  }

  function command(chosen, attack, eps, seeds) {
    const { command: base, attacks, eps: radii, defenses } = data();
    const options = chosen.map((defense) => defenses[defense].option).join(" ");
    const attacked = attack < 0 ? "--attack none" : `${attacks[attack].option} --eps ${radii[eps][1]}`;
    const code = element("pre");
    code.append(element("code", `${base} ${options} ${attacked} --seeds ${seeds.join(",")}`));
    return [element("h3", "The command that repeats it"), code];
  }

  function open(title, parts) {
    at("behind-title").textContent = title;
    at("behind-body").replaceChildren(...parts);
    at("behind").showModal();
    at("behind").scrollTop = 0;
  }

  function seedTable(rows) {
    const titles = ["seed", "source", "images", "draws", "accuracy", "one draw", "draws from, to", "passes", "seconds"];
    const table = element("table");
    const head = element("tr");
    for (const title of titles) head.append(element("th", title, { scope: "col" }));
    head.firstChild.className = "first";
    const caption = element("caption");
    caption.append(element("span", "For each seed; passes are forward and backward ones of the attack, for an image."));
    table.append(caption);
    table.append(element("thead"), element("tbody"));
    table.tHead.append(head);
    for (const row of rows) {
      const [seed, source, images, draws, mean, low, high, one, oneLow, oneHigh, least, most, forward, backward, spent] = row;
      const line = element("tr");
      line.append(element("th", seed, { scope: "row" }));
      const texts = [
        source, images ?? "n/a", draws ?? "n/a",
        `${decimals(mean)} [${decimals(low)}, ${decimals(high)}]`,
        `${decimals(one)} [${decimals(oneLow)}, ${decimals(oneHigh)}]`,
        `${decimals(least)}, ${decimals(most)}`,
        `${forward ?? "n/a"}, ${backward ?? "n/a"}`, decimals(spent, 2),
      ];
      line.append(...texts.map((text) => element("td", text)));
      table.tBodies[0].append(line);
    }
    const scroll = element("div", undefined, { className: "scroll", tabIndex: 0, role: "region" });
    scroll.setAttribute("aria-label", "Seeds");
    scroll.append(table);
    return scroll;
  }

  function behind(key) {
    const [defense, attack, eps] = key.split(",").map(Number);
    const { cells, rows, notes, defenses, attacks, eps: radii, dataset, norm } = data();
    const [start, end] = cells[key].slice(3);
    const target = defenses[defense];
    const which = attack < 0 ? "clean" : `${attacks[attack].name}, ${norm} eps ${radii[eps][0]}`;
    const mine = rows.slice(start, end);
    const parts = [
      list([
        ["accuracy", accuracyOf(cells[key])],
        ["dataset", dataset], ["net", `${target.net}, ${target.weights} weights`],
        ["norm, eps", attack < 0 ? "none" : `${norm}, ${radii[eps][0]}`],
      ]),
    ];
    if (mine.length) {
      parts.push(...command([defense], attack, eps, mine.map((row) => row[0])), seedTable(mine));
    }
    for (const row of mine) {
      const about = [["key", row[16]], ["versions", target.versions || "not known"]];
      if (notes[row[15]]) about.push(["flags", notes[row[15]]]);
      parts.push(element("h3", `Seed ${row[0]}`), list(about));
    }
    parts.push(element("h3", `Defense ${target.name}`), ...paper(target), list(target.params));
    for (const [seed, posterior, spent, trained] of target.models) {
      const about = [["posterior", posterior || "not known"], ["seconds", decimals(spent, 2)], ["key", trained]];
      parts.push(element("h3", `Training, seed ${seed}`), list(about));
    }
    if (attack >= 0) {
      const used = attacks[attack];
      parts.push(element("h3", `Attack ${used.name}`), ...paper(used), list(used.params));
    }
    open(`${target.name}, ${which}`, parts);
  }

  board.addEventListener("click", (event) => {
    const button = event.target.closest("[data-cell]");
    if (button) behind(button.dataset.cell);
  });
  at("behind").addEventListener("click", (event) => {
    if (event.target === at("behind")) at("behind").close();
  });

  // Figures: one at a time
  for (const select of all("select[data-shows]")) {
    const figures = all(`figure[data-of="${select.dataset.shows}"]`);
    const show = () => {
      for (const figure of figures) figure.hidden = figure.dataset.at !== select.value;
    };
    select.addEventListener("change", show);
    show();
  }

  // Affinity
  function drawAffinity() {
    const { eps: radii, affinity } = data();
    const { attacks, eps, reasons } = affinity;
    const place = Number(at("affinity-eps").value);
    const { name, values, lows, highs } = attacks[at("affinity-attack").value];
    const table = at("affinity");
    at("affinity-which").textContent = `${name} ${radii[eps[place]][0]}`;
    const size = table.tBodies[0].rows.length;
    [...table.tBodies[0].rows].forEach((row, from) => {
      for (let to = 0; to < size; to += 1) {
        const index = from * size + to;
        const value = values[place][index];
        const cell = row.cells[to + 1];
        const low = place === eps.length - 1 ? lows[index] : null;
        const known = typeof value === "number";
        const why = known ? low : value; // a list holds the position of a reason
        cell.className = known ? `a${Math.min(10, Math.max(0, Math.floor(value * 10 + 0.5)))}` : "none";
        cell.removeAttribute("title");
        if (Array.isArray(why)) cell.title = reasons[why[0]];
        if (value === null) {
          cell.textContent = "not run";
          cell.title = "not run: not part of this run";
          continue;
        }
        const button = element("button", undefined, { type: "button", className: "number" });
        button.append(element("strong", known ? value.toFixed(2) : "n/a"));
        if (typeof low === "number") {
          button.append(element("small", `[${low.toFixed(2)}, ${highs[index].toFixed(2)}]`));
        }
        cell.replaceChildren(button);
      }
    });
  }

  function between(cell) {
    const { affinity, attacks, cells, rows, defenses, eps: radii, dataset, norm } = data();
    const [source, target] = [cell.parentElement.sectionRowIndex, cell.cellIndex - 1];
    const [from, to] = [defenses[source].name, defenses[target].name];
    const attack = attacks.findIndex(({ name }) => name === affinity.attacks[at("affinity-attack").value].name);
    const eps = affinity.eps[at("affinity-eps").value];
    const [clean, own] = [cells[`${target},-1,-1`], cells[`${target},${attack},${eps}`]];
    const keys = ([, , , start, end]) => rows.slice(start, end);
    const pair = `rows of results.csv with defense ${to} and source ${from}`;
    const parts = [
      list([
        ["affinity", [...cell.querySelectorAll("strong, small")].map((part) => part.textContent).join(" ")],
        ...(cell.title ? [["why", cell.title]] : []),
        ["is", "(clean accuracy - transferred) / (clean accuracy - own), mean over seeds"],
        ["clean accuracy", `${accuracyOf(clean)}, ${to}`],
        ["transferred", `on examples crafted on ${from}; for each seed in affinity.csv`],
        ["own", `${accuracyOf(own)}, on examples crafted on ${to} itself`],
        ["dataset", dataset], ["norm, eps", `${norm}, ${radii[eps][0]}`],
      ]),
      ...command([...new Set([source, target])], attack, eps, keys(clean).map((row) => row[0])),
    ];
    for (const row of keys(clean)) {
      const mine = keys(own).find((other) => other[0] === row[0]);
      const about = [["key, clean", row[16]], ["key, transferred", pair], ["key, own", mine?.[16] ?? "not known"]];
      about.push(["versions", defenses[target].versions || "not known"]);
      parts.push(element("h3", `Seed ${row[0]}`), list(about));
    }
    parts.push(element("h3", `Attack ${attacks[attack].name}`), list(attacks[attack].params));
    open(`${attacks[attack].name} from ${from} to ${to}`, parts);
  }

  at("affinity")?.addEventListener("click", (event) => {
    const button = event.target.closest(".number");
    if (button) between(button.closest("td"));
  });
  at("affinity-attack")?.addEventListener("change", drawAffinity);
  at("affinity-eps")?.addEventListener("change", drawAffinity);

  root.dataset.ready = "yes";
})();
