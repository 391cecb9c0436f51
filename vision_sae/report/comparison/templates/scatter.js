// Scatter plots of two scores, with the front of those that nothing beats in both.
const LOG = new Set(["l0", "latents", "zero_shot_kl", "probe_kl"]);

// The axis of a score: logarithmic for counts and divergences, with a little air at both ends.
function axisOf(values, name) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (LOG.has(name) && low > 0) {
    const ticks = [1, 2, 5].flatMap((m) => [-3, -2, -1, 0, 1, 2, 3, 4].map((p) => m * 10 ** p));
    const axis = { low: low / 1.25, high: high * 1.25, log: true };
    const inside = ticks.filter((t) => t >= axis.low && t <= axis.high).sort((a, b) => a - b);
    const every = Math.ceil(inside.length / 8);
    return inside.length > 1 ? { ...axis, ticks: inside.filter((_, i) => i % every === 0) } : axis;
  }
  const air = 0.05 * (high - low || Math.abs(high) || 1);
  return { low: low >= 0 && low - air < 0 ? 0 : low - air, high: high + air };
}

// Points that no other beats in both scores, in order of x; empty where a score has no better.
function front(points, betterX, betterY) {
  if (betterX === "neither" || betterY === "neither") return [];
  const sign = (better) => (better === "higher" ? -1 : 1);
  const order = [...points].sort((a, b) =>
    sign(betterX) * (a.x - b.x) || sign(betterY) * (a.y - b.y));
  const kept = [];
  let best = Infinity;
  for (const point of order) {
    if (sign(betterY) * point.y < best) {
      best = sign(betterY) * point.y;
      kept.push(point);
    }
  }
  return kept;
}

function mark(point, x, y, size = 5) {
  const look = { class: "point", fill: colourOf(point.entry.family), "data-key": point.entry.name };
  if (point.entry.kind === "sae") return svg("circle", { ...look, cx: x, cy: y, r: size });
  const d = `M${x} ${y - size - 1}l${size + 1} ${size + 1}l${-size - 1} ${size + 1}l${-size - 1} ${-size - 1}z`;
  return svg("path", { ...look, d });
}

// The SAEs of a family as a line, one point for each of its settings.
function familyLines(points, sx, sy) {
  const groups = new Map();
  for (const point of points.filter((p) => p.entry.kind === "sae")) {
    const settings = groups.get(point.entry.family) || new Map();
    const some = settings.get(point.entry.group) || [];
    settings.set(point.entry.group, [...some, point]);
    groups.set(point.entry.family, settings);
  }
  const mean = (some, of) => some.reduce((sum, p) => sum + p[of], 0) / some.length;
  return [...groups].map(([family, settings]) => {
    const means = [...settings.values()].map((some) => [mean(some, "x"), mean(some, "y")]);
    means.sort((a, b) => a[0] - b[0]);
    const d = "M" + means.map(([x, y]) => `${sx(x).toFixed(1)} ${sy(y).toFixed(1)}`).join("L");
    return svg("path", { class: "family", d, stroke: colourOf(family) });
  });
}

// What a plot draws: the rows in which both scores have a value.
function pointsOf(rows, nameX, nameY) {
  return rows
    .map((entry) => ({ entry, x: valueOf(entry, nameX), y: valueOf(entry, nameY) }))
    .filter((point) => point.x !== null && point.y !== null);
}

function scatter(host, width, rows, nameX, nameY) {
  const points = pointsOf(rows, nameX, nameY);
  if (!points.length) {
    host.replaceChildren(el("p", { class: "empty" }, `nothing here has both ${nameX} and ${nameY}`));
    return;
  }
  const [xs, ys] = [points.map((p) => p.x), points.map((p) => p.y)];
  const { root, sx, sy } = frame(width, 320, { ...axisOf(xs, nameX), label: words(nameX) },
    axisOf(ys, nameY));
  const edge = front(points, betterOf(nameX), betterOf(nameY));
  const path = edge.map((p) => `${sx(p.x).toFixed(1)} ${sy(p.y).toFixed(1)}`).join("L");
  if (edge.length > 1) root.append(svg("path", { class: "front", d: `M${path}` }));
  root.append(...familyLines(points, sx, sy));
  for (const point of points) {
    const shape = mark(point, sx(point.x), sy(point.y));
    shape.addEventListener("pointermove", (event) => {
      showTip(event, el("b", null, point.entry.name),
        el("small", null, `${words(nameX)} ${num(point.x)}`),
        el("small", null, `${words(nameY)} ${num(point.y)}`),
        el("small", null, `${count(point.entry.latents, "latent")}, ${point.entry.family}`));
      light(point.entry.name);
    });
    shape.addEventListener("pointerleave", () => { hideTip(); light(null); });
    root.append(shape);
  }
  host.replaceChildren(root);
}

// The same row in all plots.
function light(name) {
  for (const shape of document.querySelectorAll(".point")) {
    shape.classList.toggle("on", name !== null && shape.dataset.key === name);
  }
}
