// The overview's plots.
const note = (...content) => el("p", { class: "note" }, content);
const card = (title, small, ...content) =>
  el("div", { class: "card" },
    el("h2", null, title, small ? el("small", null, small) : null), content);

function firingCard({ edges, counts, dead, total, median }) {
  if (!total) return null;
  const title = "Latents by firing frequency";
  const small = `${count(dead, "dead latent")} of ${num(total, 7)} (${percent(dead / total)})`;
  if (!counts.length) return card(title, small, el("p", { class: "empty" }, "No latent fires."));
  const tell = (i) => [count(counts[i], "latent"),
    el("small", null, `${percent(10 ** edges[i])} to ${percent(10 ** edges[i + 1])} of tokens`)];
  const first = Math.ceil(edges[0]);
  const whole = Array.from({ length: Math.floor(edges.at(-1)) - first + 1 }, (_, i) => first + i);
  const x = { label: "share of tokens, log scale", show: (t) => `${Number((100 * 10 ** t).toPrecision(2))}%` };
  if (whole.length > 1) x.ticks = whole;
  return card(title, small, histogram({ edges, counts, tell, x }),
    note(`median of the live ones ${percent(median)}`));
}

function errorsCard({ edges, counts, beyond, median, p95 }) {
  if (!counts.length) return null;
  const tell = (i) => [count(counts[i], data.noun),
    el("small", null, `FVU ${num(edges[i])} to ${num(edges[i + 1])}`)];
  return card(data.noun === "prompt" ? "Prompts by reconstruction error"
    : "Images by reconstruction error", null,
    histogram({ edges, counts, tell, x: { label: `FVU over the ${data.noun}'s own tokens` } }),
    note(`median ${num(median)}, 95% below ${num(p95)}`,
      beyond ? `; ${count(beyond, data.noun)} beyond the right edge` : ""));
}

function trainingCard({ step, ...series }) {
  const panels = Object.entries(series).map(([key, values]) => {
    const name = key.replace("_", " ");
    const plot = curve(step, values, name);
    return plot && el("div", null, note(name), plot);
  });
  if (!panels.some(Boolean)) return null;
  return card("Training", null, el("div", { class: "panels" }, panels));
}

function overviewPlots() {
  fill(byId("plots"), null, [firingCard(data.firing), errorsCard(data.imageErrors)]);
  fill(byId("training"), null, [trainingCard(data.training)]);
}
