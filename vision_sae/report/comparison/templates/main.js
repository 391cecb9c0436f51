// What is shown: rows (seed by seed, or together), plots of chosen scores, the table, notes.
const families = [...new Set(data.entries.map((entry) => entry.family))];
function colourOf(family) {
  const at = families.indexOf(family);
  return at < 7 ? `var(--f${at})` : `hsl(${(at * 67) % 360} 45% 48%)`;
}
const words = (name) => name.replaceAll("_", " ");
const betterOf = (name) => (data.scores[name] || { better: "neither" }).better;
function valueOf(row, name) {
  if (name === "latents") return row.latents;
  return row.scores[name] ? row.scores[name].value : null;
}

// A name that does not tell the family is told with it.
for (const entry of data.entries) {
  if (!entry.name.includes(entry.family.split(",")[0])) entry.name = `${entry.family} ${entry.name}`;
}

// Rows that differ in their seeds alone as one: means, and the range.
function together(entries) {
  const groups = new Map();
  for (const entry of entries) {
    groups.set(entry.group, [...(groups.get(entry.group) || []), entry]);
  }
  return [...groups.values()].map((some) => {
    if (some.length === 1) return some[0];
    const left = some[0].name.replace(/[-_]?seed_?\d+/, "").replace(/(^| |\/)[-_]/, "$1");
    const name = left.replace(/\/$/, "") || some[0].family;
    const scores = {};
    for (const key of Object.keys(data.scores)) {
      const values = some.map((entry) => valueOf(entry, key)).filter((value) => value !== null);
      scores[key] = values.length < some.length ? some.find((e) => valueOf(e, key) === null).scores[key]
        : { value: values.reduce((a, b) => a + b) / values.length,
            low: Math.min(...values), high: Math.max(...values), reason: null };
    }
    return { ...some[0], name: `${name} (${some.length} seeds)`, scores };
  });
}

const state = { merged: true, hidden: new Set() };
const merged = together(data.entries);
const someSeeds = merged.length < data.entries.length;
const rowsNow = () => (state.merged ? merged : data.entries).filter((r) => !state.hidden.has(r.family));

const given = (name) => data.entries.some((entry) => valueOf(entry, name) !== null);
const columns = Object.keys(data.scores).filter(given);
const plots = [["l0", "fvu"]];
for (const y of ["zero_shot", "coverage", "probe_agreement", "cknna", "monosemanticity", "morans_i",
  "stability", "uniqueness"]) {
  if (plots.length < 6 && columns.includes(y)) plots.push(["l0", y]);
}

function plotCard(chosen) {
  const host = el("div", { class: "plot" });
  const paint = () => {
    const width = Math.floor(host.clientWidth);
    if (width) scatter(host, width, rowsNow(), chosen[0], chosen[1]);
  };
  const choice = (i) => el("select", {
    "aria-label": i ? "upwards" : "to the right",
    onchange: (event) => { chosen[i] = event.target.value; paint(); },
  }, ["latents", ...columns].map((name) =>
    el("option", { value: name, selected: name === chosen[i] }, words(name))));
  const card = el("div", { class: "card" },
    el("div", { class: "head" }, choice(1), el("span", { class: "muted" }, "against"), choice(0)), host);
  new ResizeObserver(() => requestAnimationFrame(paint)).observe(host);
  return { card, paint };
}

const cards = plots.map(plotCard);
byId("plots").append(...cards.map((each) => each.card));

function paintAll() {
  cards.forEach((each) => each.paint());
  scoreTable(byId("scores"), rowsNow(), columns, paintAll);
}

function tools() {
  const legend = el("div", { class: "legend" }, families.map((family) => el("button", {
    "aria-pressed": "true",
    onclick: (event) => {
      const hide = !state.hidden.has(family);
      state.hidden[hide ? "add" : "delete"](family);
      event.currentTarget.setAttribute("aria-pressed", String(!hide));
      paintAll();
    },
  }, el("i", { style: `background: ${colourOf(family)}` }), family)));
  const button = (label, value) => el("button", {
    "aria-pressed": String(state.merged === value),
    onclick: (event) => {
      state.merged = value;
      for (const other of event.currentTarget.parentNode.children) {
        other.setAttribute("aria-pressed", String(other === event.currentTarget));
      }
      paintAll();
    },
  }, label);
  const seeds = someSeeds
    ? el("div", { class: "group" }, button("mean over seeds", true), button("each seed", false)) : null;
  byId("tools").append(...[seeds, legend].filter(Boolean));
}

tools();
paintAll();
const without = Object.keys(data.scores).filter((name) => !given(name));
const reason = (name) => data.entries.map((e) => e.scores[name]).find(Boolean).reason;
byId("notes").append(
  "The dashed line joins what nothing beats in both scores. A dash in the table says why on hover. ",
  without.length ? "Not measured: " + without.map((n) => `${words(n)} (${reason(n)})`).join("; ") + "." : "");
