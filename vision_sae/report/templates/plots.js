// Small SVG plots: histograms and curves.
const PAD = { left: 44, right: 10, top: 8, bottom: 36 };

function steps(low, high, wanted) {
  const rough = (high - low || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-6);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}
function decades(low, high) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const length = Math.floor(Math.log10(high) + 1e-9) - first + 1;
  const ticks = Array.from({ length }, (_, i) => 10 ** (first + i));
  const every = Math.ceil(length / 5);
  return ticks.filter((_, i) => i % every === 0);
}
function short(value) {
  const units = [[1e6, "M"], [1e4, "k", 1e3], [0, ""]];
  const [from, unit, by = from || 1] = units.find(([least]) => Math.abs(value) >= least);
  return (value / by).toLocaleString("en", { maximumSignificantDigits: 3 }) + unit;
}
function scale(axis, from, to) {
  const f = axis.log ? Math.log10 : (value) => value;
  const [low, high] = [f(axis.low), f(axis.high)];
  return (value) => from + ((f(value) - low) / (high - low || 1)) * (to - from);
}
function ticksOf(axis, wanted) {
  return axis.ticks || (axis.log ? decades : steps)(axis.low, axis.high, wanted);
}

// Axes and grid; `x` and `y` are {low, high, log?, ticks?, show?, label?}.
function frame(width, height, x, y) {
  const [right, base] = [width - PAD.right, height - PAD.bottom];
  const [sx, sy] = [scale(x, PAD.left, right), scale(y, base, PAD.top)];
  const root = svg("svg", { width, height, role: "img", "aria-label": x.label });
  const text = (props, words) => svg("text", { "text-anchor": "middle", ...props }, words);
  for (const t of ticksOf(y, 4)) {
    root.append(
      svg("line", { class: "grid", x1: PAD.left, x2: right, y1: sy(t), y2: sy(t) }),
      text({ x: PAD.left - 7, y: sy(t) + 4, "text-anchor": "end" }, short(t)));
  }
  for (const t of ticksOf(x, Math.max(4, Math.floor(width / 80)))) {
    root.append(text({ x: sx(t), y: base + 16 }, (x.show || short)(t)));
  }
  root.append(
    svg("line", { class: "axis", x1: PAD.left, x2: right, y1: base, y2: base }),
    text({ x: (PAD.left + right) / 2, y: height - 3 }, x.label));
  return { root, sx, sy, base };
}

// An axis for counts. Where it is logarithmic it starts at a half, so that a 1 is seen.
function countAxis(counts, log) {
  const top = Math.max(1, ...counts);
  if (log) return { log, low: 0.5, high: Math.max(top * 1.2, 10) };
  const ticks = top < 4 ? Array.from({ length: top + 1 }, (_, i) => i) : null; // no half counts
  return { low: 0, high: top * 1.05, ticks };
}

// Bars between `edges`; `tell(i)` is what the tooltip says.
function histogram({ edges, counts, tell, x, log = false, height = 190 }) {
  return drawn(el("div", { class: "plot" }), (width, host) => {
    const along = { low: edges[0], high: edges.at(-1), ...x };
    const { root, sx, sy, base } = frame(width, height, along, countAxis(counts, log));
    counts.forEach((n, i) => {
      const [left, wide] = [sx(edges[i]), sx(edges[i + 1]) - sx(edges[i])];
      const bar = (name, top, thick, more) =>
        svg("rect", { class: name, x: left, y: top, width: thick, height: base - top, ...more });
      if (n) root.append(bar("mark", sy(n), wide > 4 ? wide - 1 : wide));
      root.append(bar("hit", PAD.top, wide, pointed(() => tell(i))));
    });
    host.replaceChildren(root);
  });
}

// A logarithmic axis for losses that fall far; everything else starts at 0.
function valueAxis(values, name) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (["loss", "fvu"].includes(name) && low > 0 && high / low > 30) return { low, high, log: true };
  const bottom = Math.min(0, low);
  return { low: bottom, high: high > bottom ? high + 0.04 * (high - bottom) : bottom + 1 };
}

// Some of the values themselves as ticks, the first and the last among them.
function ticksAmong(values, wanted = 5) {
  const among = Math.min(wanted, values.length) - 1;
  const at = (i) => values[among ? Math.round((i * (values.length - 1)) / among) : 0];
  return Array.from({ length: among + 1 }, (_, i) => at(i));
}

// One curve over steps; rows without a value are left out. `x` may say more of the axis.
function curve(xs, ys, name, { height = 150, x: more = {}, show = (y) => num(y, 4) } = {}) {
  const given = (value) => value !== null && value !== undefined;
  const points = xs.map((x, i) => [x, ys[i]]).filter((point) => point.every(given));
  if (!points.length) return null;
  const x = { low: points[0][0], high: points.at(-1)[0], label: "step", ...more };
  const y = valueAxis(points.map((point) => point[1]), name);
  return drawn(el("div", { class: "plot" }), (width, host) => {
    const { root, sx, sy } = frame(width, height, x, y);
    const path = points.map(([px, py]) => `${sx(px).toFixed(1)} ${sy(py).toFixed(1)}`).join("L");
    root.append(svg("path", { class: "line", d: `M${path}` }));
    const [[px, py]] = points;
    const dot = svg("circle", { class: "mark", r: 3, cx: sx(px), cy: sy(py) });
    if (points.length === 1) root.append(dot); // a path of one point is not seen
    root.addEventListener("pointermove", (event) => {
      const at = event.clientX - root.getBoundingClientRect().left;
      const far = (point) => Math.abs(sx(point[0]) - at);
      const [step, value] = points.reduce((a, b) => (far(b) < far(a) ? b : a));
      showTip(event, `${name} ${show(value)}`, el("small", null, `${x.label} ${num(step, 9)}`));
    });
    root.addEventListener("pointerleave", hideTip);
    host.replaceChildren(root);
  });
}
