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

  for (const link of all("nav a")) {
    link.addEventListener("click", () => {
      const section = at(link.hash.slice(1));
      if (section instanceof HTMLDetailsElement) section.open = true;
    });
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

  // Tables: sorting, the choice of eps, filter
  const board = at("board");
  const say = (text) => {
    at("said").textContent = text;
  };

  function sortBy(head, direction) {
    const table = head.closest("table");
    const place = head.cellIndex;
    const body = table.tBodies[0];
    const cells = [...body.rows].map((row) => row.cells[place]);
    const numeric = cells.some((cell) => cell.dataset.v);
    const keyOf = (cell) => {
      if (!numeric) return cell.textContent.trim();
      return cell.dataset.v ? Number(cell.dataset.v) : null;
    };
    const keyed = cells.map((cell) => [keyOf(cell), cell.parentElement]);
    // Missing values stay last in both directions.
    keyed.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null);
      const order = numeric ? one - other : one.localeCompare(other);
      return direction === "ascending" ? order : -order;
    });
    body.append(...keyed.map(([, row]) => row));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".sort");
    if (!button) return;
    const head = button.closest("th");
    const was = head.getAttribute("aria-sort");
    const next = was ? (was === "ascending" ? "descending" : "ascending") : button.dataset.first;
    sortBy(head, next);
    say(`Sorted by ${button.textContent}, ${next}.`);
  });

  at("eps")?.addEventListener("change", ({ target }) => {
    for (const cell of all("[data-eps]")) cell.hidden = cell.dataset.eps !== target.value;
    for (const was of all("th[aria-sort][hidden]")) {
      const now = all("th[data-column]", was.parentElement).find(
        (head) => !head.hidden && head.dataset.column === was.dataset.column,
      );
      sortBy(now, was.getAttribute("aria-sort"));
    }
    say(`Worst cases at eps ${data().eps[target.value][0]}; rank and area are over all eps.`);
  });

  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("find").addEventListener("input", () => {
    const words = at("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...board.tBodies[0].rows];
    for (const row of rows) {
      const text = row.dataset.text.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    say(words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows are shown.` : "");
  });

  const accuracyOf = ([parts, note]) => [...parts, data().notes[note]].filter(Boolean).join(" ");

  // Details of a number
  const decimals = (value, digits = 4) => (value === null ? "n/a" : value.toFixed(digits));

  function list(pairs) {
    const made = element("dl");
    for (const [term, text] of pairs) made.append(element("dt", term), element("dd", text));
    return made;
  }

  function paper({ paper: [text, link] }) {
    if (!text) return [];
    const made = element("p", `${text} `);
    if (/^https?:/.test(link)) made.append(element("a", link, { href: link, rel: "noopener" }));
    return [made];
  }

  function command(chosen, attack, eps, seeds) {
    const { command: base, attacks, eps: radii, defenses } = data();
    const options = chosen.map((defense) => defenses[defense].option).join(" ");
    const attacked = attack < 0 ? "--attack none" : `${attacks[attack].option} --eps ${radii[eps][1]}`;
    const code = element("pre");
    code.append(element("code", `${base} ${options} ${attacked} --seeds ${seeds.join(",")}`));
    return [element("h3", "Command to reproduce it"), code];
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
    caption.append(element("span", "Values per seed; passes are the attack's forward + backward passes per image."));
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
        forward === null ? "n/a" : `${Math.round(forward)} + ${Math.round(backward)}`, decimals(spent, 2),
      ];
      line.append(...texts.map((text) => element("td", text)));
      table.tBodies[0].append(line);
    }
    const scroll = element("div", undefined, { className: "scroll", tabIndex: 0, role: "region" });
    scroll.setAttribute("aria-label", "Seeds");
    scroll.append(table);
    return scroll;
  }

  // Differences of a defense from the others, of the area (eps -1) or of the lowest accuracies at an eps
  function compared(defense, eps) {
    const { differences, defenses, eps: radii } = data();
    const which = radii.length > 1 ? eps : -1; // with one eps the area is the accuracy there
    const mine = differences.filter(([one, other, place]) => place === which && (one === defense || other === defense));
    if (!mine.length) return [];
    const title = "Differences from others on the same images; significant if the interval excludes 0";
    const pairs = mine.map(([one, other, , ...numbers]) => [
      `${defenses[one].name} - ${defenses[other].name}`, numbers.join(" "),
    ]);
    return [element("h3", title), list(pairs)];
  }

  function behind(key, what, text) {
    const [defense, attack, eps] = key.split(",").map(Number);
    const { cells, rows, notes, defenses, attacks, eps: radii, dataset, norm, worst } = data();
    const [start, end] = cells[key].slice(3);
    const target = defenses[defense];
    const which = attack < 0 ? "clean" : `${attacks[attack].name}, ${norm} eps ${radii[eps][0]}`;
    const mine = rows.slice(start, end);
    const lowest = attack >= 0 && worst[defense][eps]?.[0] === attack;
    const parts = [
      list([
        ...(what ? [[what, text]] : []),
        ["accuracy", accuracyOf(cells[key])],
        ...(lowest && attacks.length > 1 ? [["worst case", `the lowest of ${attacks.length} attacks`]] : []),
        ["dataset", dataset], ["net", `${target.net}, ${target.weights} weights`],
        ["norm, eps", attack < 0 ? "none" : `${norm}, ${radii[eps][0]}`],
      ]),
    ];
    if (mine.length) {
      parts.push(...command([defense], attack, eps, mine.map((row) => row[0])), seedTable(mine));
    }
    for (const row of mine) {
      const about = [["key", row[16]], ["versions", target.versions || "unknown"]];
      if (notes[row[15]]) about.push(["flags", notes[row[15]]]);
      parts.push(element("h3", `Seed ${row[0]}`), list(about));
    }
    parts.push(element("h3", `Defense ${target.name}`), ...paper(target), list(target.params));
    for (const [seed, posterior, spent, trained] of target.models) {
      const about = [["posterior", posterior || "unknown"], ["seconds", decimals(spent, 2)], ["key", trained]];
      parts.push(element("h3", `Training, seed ${seed}`), list(about));
    }
    if (attack >= 0) {
      const used = attacks[attack];
      parts.push(element("h3", `Attack ${used.name}`), ...paper(used), list(used.params));
    }
    if (lowest) parts.splice(1, 0, ...compared(defense, eps));
    open(`${target.name}, ${which}`, parts);
  }

  function behindArea(defense) {
    const { worst, attacks, eps: radii, defenses } = data();
    const lowest = worst[defense].map(([attack, parts], place) => [
      `eps ${radii[place][0]}`, `${parts.join(" ")}${attack < 0 ? "" : `, ${attacks[attack].name}`}`,
    ]);
    const { name, area, ranks } = defenses[defense];
    open(`${name}, area`, [
      list([
        ["area", area.join(" ")],
        ["definition", "area under the lowest accuracies over the attacks, by the trapezoidal rule over eps, divided by the range"],
        ...(ranks ? [["rank", `${ranks} are possible`]] : []),
      ]),
      element("h3", "The lowest accuracies"), list(lowest),
      ...compared(defense, -1),
    ]);
  }

  document.addEventListener("click", (event) => {
    const { cell: key, what, text } = event.target.closest("[data-cell]")?.dataset ?? {};
    if (key?.endsWith("area")) behindArea(Number(key.split(",")[0]));
    else if (key) behind(key, what, text);
  });
  at("behind").addEventListener("click", (event) => {
    if (event.target === at("behind")) at("behind").close();
  });

  // Figures, shown one at a time
  for (const select of all("select[data-shows]")) {
    const figures = all(`figure[data-of="${select.dataset.shows}"]`);
    const show = () => {
      for (const figure of figures) figure.hidden = figure.dataset.at !== select.value;
    };
    select.addEventListener("change", show);
    show();
  }

  // Curves: the Tab key selects a chart, arrow keys select its curves
  for (const chart of all("svg.curves")) {
    const curves = all(".line", chart).reverse();
    curves.forEach((curve, place) => {
      curve.tabIndex = place ? -1 : 0;
      curve.addEventListener("keydown", (event) => {
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const next = curves[(place + step + curves.length) % curves.length];
        curve.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      });
    });
  }

  // Affinity
  function drawAffinity() {
    const { eps: radii, affinity } = data();
    const { attacks, eps, reasons } = affinity;
    const place = Number(at("affinity-eps").value);
    const { name, values, lows } = attacks[at("affinity-attack").value];
    const table = at("affinity");
    at("affinity-which").textContent = `${name} ${radii[eps[place]][0]}`;
    const size = table.tBodies[0].rows.length;
    [...table.tBodies[0].rows].forEach((row, from) => {
      for (let to = 0; to < size; to += 1) {
        const index = from * size + to;
        const value = values[place][index];
        const cell = row.cells[to + 1];
        const known = typeof value === "number";
        const why = known && place === eps.length - 1 ? lows[index] : value; // a list contains the position of a reason
        cell.className = known ? `a${Math.min(10, Math.max(0, Math.floor(value * 10 + 0.5)))}` : "none";
        cell.title = value === null ? "not run: not part of this run" : Array.isArray(why) ? reasons[why[0]] : "";
        if (!cell.title) cell.removeAttribute("title");
        const button = element("button", known ? value.toFixed(2) : "n/a", { type: "button", className: "number" });
        cell.replaceChildren(...(value === null ? [] : [button]));
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
    const { lows, highs } = affinity.attacks[at("affinity-attack").value];
    const index = source * defenses.length + target;
    const last = Number(at("affinity-eps").value) === affinity.eps.length - 1; // only these have intervals
    const known = last && typeof lows[index] === "number";
    const interval = known ? [`[${lows[index].toFixed(2)}, ${highs[index].toFixed(2)}]`] : [];
    const pair = `rows of results.csv with defense ${to} and source ${from}`;
    const parts = [
      list([
        ["affinity", [cell.textContent, ...interval].join(" ")],
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
      const about = [["key, clean", row[16]], ["key, transferred", pair], ["key, own", mine?.[16] ?? "unknown"]];
      about.push(["versions", defenses[target].versions || "unknown"]);
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
