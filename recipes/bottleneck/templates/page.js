// The head, run here: a concept that is switched off counts as absent, and at its mean if centred.
const off = new Set();
const { classes, concepts, rows, several } = data;
const zero = () => classes.map(() => 0);

function base() { // what every image has: intercepts, less the means of concepts that are on
  const sum = [...data.intercept];
  concepts.forEach((concept, n) => {
    if (!off.has(n)) concept.weights.forEach((w, c) => { sum[c] -= w * concept.mean; });
  });
  return sum;
}
function logits(row, start) {
  const z = [...start];
  const pairs = rows[row][1];
  for (let i = 0; i < pairs.length; i += 2) {
    if (off.has(pairs[i])) continue;
    concepts[pairs[i]].weights.forEach((w, c) => { z[c] += w * pairs[i + 1]; });
  }
  return z;
}
function chances(z) {
  const t = z.map((v) => v / data.temperature);
  if (several) return t.map((v) => 1 / (1 + Math.exp(-v)));
  const top = Math.max(...t);
  const e = t.map((v) => Math.exp(v - top));
  const total = e.reduce((a, b) => a + b, 0);
  return e.map((v) => v / total);
}
const best = (values) => values.indexOf(Math.max(...values));
const said = (p) => (several ? p.flatMap((q, c) => (q >= 0.5 ? [c] : [])) : [best(p)]);
const same = (a, b) => a.length === b.length && a.every((v, i) => v === b[i]);
const named = (list) => (list.length ? list.map((c) => classes[c]).join(", ") : "none");
const label = (n) => concepts[n].name ||
  [el("span", { class: "unnamed" }, "unnamed"), el("small", null, `${concepts[n].id}`)];

const before = (() => { // with everything on
  const start = base();
  return rows.map((_, i) => said(chances(logits(i, start))));
})();
const share = (list) =>
  list.filter((one, i) => same(one, rows[i][0])).length / Math.max(1, rows.length);

// ---- pieces

function signed(value, largest) {
  const width = 50 * Math.min(1, Math.abs(value) / (largest || 1));
  const style = value >= 0 ? `left:50%;width:${width}%` : `left:${50 - width}%;width:${width}%`;
  return el("span", { class: "signed" }, el("i", { class: value < 0 && "minus", style }));
}
const signs = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
function strip(n, count, side) {
  return el("span", { class: "strip" }, concepts[n].examples.slice(0, count).map((shot) => {
    const canvas = shot.heat && el("canvas");
    if (shot.heat) paintHeat(canvas, shot.heat, "image");
    const note = [vsae.images[shot.image][1], el("small", null, `activation ${num(shot.value)}`)];
    return el("span", pointed(() => note), thumb(shot.image, side, canvas));
  }));
}
function toggle(n) {
  if (!off.delete(n)) off.add(n);
  refresh();
}
function conceptRow(n, value, largest, { first, count = 4, side = 36 } = {}) {
  return el("button", {
    class: `concept${first ? " heated" : ""}${off.has(n) ? " gone" : ""}`,
    title: `${concepts[n].name || "unnamed"}, ${concepts[n].id}: switch ${off.has(n) ? "on" : "off"}`, onclick: () => toggle(n),
  }, first, el("span", { class: "label" }, label(n)), signed(value, largest),
  el("span", { class: "value" }, signs(value)), strip(n, count, side));
}
function plainRow(text, value) {
  return el("div", { class: "concept plain" }, el("span", { class: "label" }, text),
    el("span", { class: "value" }, signs(value)));
}

// ---- the page's parts

function drawPath() {
  const chosen = data.path[data.chosen];
  const points = data.path.filter((p) =>
    p.concepts > 0 && p.l1_ratio === chosen.l1_ratio && p.scale === chosen.scale);
  if (points.length < 2) return;
  const host = byId("path");
  const card = (title, x, note) => {
    const paint = (width, place) => {
      const height = 190, left = 44, bottom = 30, top = 10;
      const xs = points.map(x), low = Math.min(...xs), high = Math.max(...xs);
      const ys = points.map((p) => p.score), floor = Math.min(...ys), roof = Math.max(...ys);
      const log = high / Math.max(low, 1e-9) > 20;
      const f = (v) => (log ? Math.log(v) : v);
      const px = (v) => left + (width - left - 14) * (f(v) - f(low)) / (f(high) - f(low) || 1);
      const py = (v) => top + (height - top - bottom) * (1 - (v - floor) / (roof - floor || 1));
      const at = points.indexOf(data.path[data.chosen]);
      const line = points.map((p, i) => `${i ? "L" : "M"}${px(xs[i])} ${py(p.score)}`).join("");
      const ticks = [low, log ? Math.sqrt(low * high) : (low + high) / 2, high];
      place.replaceChildren(svg("svg", { height, viewBox: `0 0 ${width} ${height}` },
        [floor, (floor + roof) / 2, roof].map((v) => [
          svg("line", { class: "grid", x1: left, x2: width, y1: py(v), y2: py(v) }),
          svg("text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, percent(v))]),
        ticks.map((v, i) => svg("text", { x: px(v), y: height - 8,
          "text-anchor": ["start", "middle", "end"][i] }, num(v, 2))),
        svg("path", { class: "line", d: line }),
        points.map((p, i) => svg("circle", { class: i === at ? "chosen" : "mark",
          cx: px(xs[i]), cy: py(p.score), r: i === at ? 6 : 2.5,
          ...pointed(() => [`${percent(p.score)} with ${num(p.concepts)} concepts`,
            el("small", null, `${num(p.per_decision)} reach 95% of a logit; gap ${num(p.gap)}`)]),
        }))));
    };
    host.append(el("div", { class: "card" }, el("h2", null, title),
      el("p", { class: "note" }, note), drawn(el("div", { class: "plot" }), paint)));
  };
  card("Score and concepts per decision", (p) => p.per_decision,
    "along the path of penalties, on validation images; the large dot was chosen");
  card("Score and concepts in use", (p) => p.concepts, "the same path, by all concepts that have a weight");
}

let current = before; // predictions with what is off now

function predictedAs(c) {
  const mine = current.flatMap((one, i) => (one.includes(c) ? [rows[i][0].includes(c)] : []));
  if (!mine.length) return "predicted for no image: by weight";
  const right = mine.filter(Boolean).length;
  return `predicted for ${count(mine.length, "image")}, ${percent(right / mine.length)} right`;
}

function drawClasses() {
  const cards = classes.map((name, c) => {
    const list = data.listed[c];
    const largest = Math.max(...list.map((one) => Math.abs(one.mean)), 1e-9);
    return el("article", { class: "card" },
      el("h2", null, name, el("small", null, predictedAs(c))),
      list.map((one) => conceptRow(one.concept, one.mean, largest, { count: 5, side: 38 })),
      list.length ? null : el("p", { class: "note" }, "no concept has a weight"));
  });
  document.querySelector(".classes").replaceChildren(...cards);
}

const filter = { what: "all", of: "" };
function drawFilter() {
  const whats = [["all", "all"], ["wrong", "mistakes"], ["changed", "changed by switching off"]];
  byId("filter").replaceChildren(
    el("span", { class: "group" }, whats.map(([what, text]) => el("button", {
      "aria-pressed": String(filter.what === what),
      onclick: () => { filter.what = what; refresh(); } }, text))),
    el("select", { onchange: (event) => { filter.of = event.target.value; refresh(); } },
      el("option", { value: "" }, "every class"),
      classes.map((name, c) => el("option", { value: c, selected: filter.of === String(c) }, name))));
}

function imageCard(card, start) {
  const z = logits(card.row, start), p = chances(z), now = said(p), true_ = rows[card.row][0];
  const right = same(now, true_), moved = !same(now, before[card.row]);
  if (filter.what === "wrong" && right) return null;
  if (filter.what === "changed" && !moved) return null;
  if (filter.of !== "" && !true_.includes(Number(filter.of))) return null;
  const c = several ? best(z) : now[0];
  const pairs = rows[card.row][1], values = [];
  for (let i = 0; i < pairs.length; i += 2) {
    values.push([pairs[i], concepts[pairs[i]].weights[c] * pairs[i + 1]]);
  }
  values.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const some = values.filter(([, v]) => v).slice(0, 6);
  const rest = values.filter(([, v]) => v).slice(6).filter(([n]) => !off.has(n));
  const largest = Math.max(...some.map(([, v]) => Math.abs(v)), 1e-9);
  const shown = some.map(([n, v]) => {
    const heat = card.heats[n], canvas = heat && el("canvas");
    if (heat) paintHeat(canvas, heat, "image");
    return conceptRow(n, v, largest, { first: thumb(card.image, 40, canvas), count: 3, side: 32 });
  });
  const sum = rest.reduce((total, [, v]) => total + v, 0);
  return el("article", { class: "card image" },
    el("div", null, thumb(card.image, 104), el("div", { class: "verdict" },
      el("b", { class: right ? "holds" : "wrong" }, named(now)), percent(p[c]),
      right ? " · right" : el("span", null, ` · is ${named(true_)}`),
      moved ? el("div", null, `was ${named(before[card.row])}`) : null,
      el("div", null, vsae.images[card.image][1]),
      el("div", null, `${count(card.reach["95%"], "concept")} to 95%`))),
    el("div", null, shown, rest.length ? plainRow(`${rest.length} more`, sum) : null,
      plainRow("intercept and centring", start[c]),
      el("div", { class: "sum" }, plainRow(`logit of ${classes[c]}`, z[c]))));
}

function refresh() {
  const start = base();
  const now = rows.map((_, i) => said(chances(logits(i, start))));
  current = now;
  const moved = now.filter((one, i) => !same(one, before[i])).length;
  byId("live").replaceChildren(...(off.size
    ? [`${percent(share(before))} → `, el("b", null, percent(share(now))),
      ` right of ${count(rows.length, "image")}`]
    : [el("b", null, percent(share(now))), ` right of ${count(rows.length, "image")}`]));
  byId("off").hidden = !off.size;
  byId("off").replaceChildren(el("h2", null, `${count(off.size, "concept")} switched off`,
    el("small", null, `${count(moved, "prediction")} changed`)),
  el("div", { class: "chips" }, [...off].map((n) => el("button", { class: "chip",
    title: "switch on", onclick: () => toggle(n) }, concepts[n].name || `latent ${concepts[n].id}`,
  " ×")), el("button", { class: "chip", onclick: () => { off.clear(); refresh(); } }, "all on")));
  drawClasses();
  drawFilter();
  const cards = data.cards.map((card) => imageCard(card, start)).filter(Boolean);
  document.querySelector(".explained").replaceChildren(...(cards.length ? cards
    : [el("p", { class: "empty" }, "no such image among those that are explained")]));
}

drawPath();
refresh();
