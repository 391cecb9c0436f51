// Small SVG plots: histograms and curves.
const PAD = { left: 44, right: 10, top: 8, bottom: 36 };

function steps(low, high, wanted) {
  const rough = (high - low || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) ticks.push(i * step);
  return ticks;
}
function decades(low, high) {
  const ticks = [];
  for (let e = Math.ceil(Math.log10(low) - 1e-9); 10 ** e <= high * 1.0001; e++) ticks.push(10 ** e);
  const every = Math.ceil(ticks.length / 5);
  return ticks.filter((_, i) => i % every === 0);
}
const short = (v) =>
  Math.abs(v) >= 1e6 ? `${v / 1e6}M` : Math.abs(v) >= 1e4 ? `${v / 1e3}k` : v.toLocaleString("en", { maximumSignificantDigits: 3 });

// Axes and grid; `x` and `y` are {low, high, log?, ticks?, show?, label?}.
function frame(width, height, x, y) {
  const scale = (axis, from, to) => {
    const f = axis.log ? Math.log10 : (v) => v;
    const [low, high] = [f(axis.low), f(axis.high)];
    return (v) => from + ((f(v) - low) / (high - low || 1)) * (to - from);
  };
  const sx = scale(x, PAD.left, width - PAD.right);
  const sy = scale(y, height - PAD.bottom, PAD.top);
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": x.label });
  const ticksOf = (axis, n) => axis.ticks || (axis.log ? decades(axis.low, axis.high) : steps(axis.low, axis.high, n));
  for (const t of ticksOf(y, 4)) {
    root.append(
      svg("line", { class: "grid", x1: PAD.left, x2: width - PAD.right, y1: sy(t), y2: sy(t) }),
      svg("text", { x: PAD.left - 7, y: sy(t) + 4, "text-anchor": "end" }, (y.show || short)(t)),
    );
  }
  const base = height - PAD.bottom;
  for (const t of ticksOf(x, Math.max(4, Math.floor(width / 80)))) {
    root.append(svg("text", { x: sx(t), y: base + 16, "text-anchor": "middle" }, (x.show || short)(t)));
  }
  root.append(
    svg("line", { class: "axis", x1: PAD.left, x2: width - PAD.right, y1: base, y2: base }),
    svg("text", { x: (PAD.left + width - PAD.right) / 2, y: height - 3, "text-anchor": "middle" }, x.label || ""),
  );
  return { root, sx, sy, base };
}

// Bars between `edges`; `tell(i)` is what the tooltip says. A log axis of counts starts at a half.
function histogram({ edges, counts, tell, x, log = false, height = 190 }) {
  return drawn(el("div", { class: "plot" }), (width, host) => {
    const top = Math.max(1, ...counts);
    const y = log ? { log, low: 0.5, high: Math.max(top * 1.2, 10) } : { low: 0, high: top * 1.05 };
    if (!log && top < 4) y.ticks = Array.from({ length: top + 1 }, (_, i) => i);
    const { root, sx, sy, base } = frame(width, height, { low: edges[0], high: edges.at(-1), ...x }, y);
    counts.forEach((n, i) => {
      const left = sx(edges[i]);
      const wide = sx(edges[i + 1]) - left;
      const gap = wide > 4 ? 1 : 0;
      if (n) root.append(svg("rect", { class: "mark", x: left, y: sy(n), width: wide - gap, height: base - sy(n) }));
      root.append(svg("rect", { class: "hit", x: left, y: PAD.top, width: wide, height: base - PAD.top,
        ...pointed(() => tell(i)) }));
    });
    host.replaceChildren(root);
  });
}

// One curve over training steps; gaps where a row has no value.
function curve(xs, ys, name, height = 150) {
  const points = xs.map((x, i) => [x, ys[i]]).filter(([x, y]) => x !== null && y !== null && y !== undefined);
  if (!points.length) return null;
  const values = points.map(([, y]) => y);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const log = ["loss", "fvu"].includes(name) && low > 0 && high / low > 30;
  if (!log) low = Math.min(0, low);
  if (high === low) high = low + 1;
  const x = { low: points[0][0], high: points.at(-1)[0], label: "step" };
  return drawn(el("div", { class: "plot" }), (width, host) => {
    const { root, sx, sy } = frame(width, height, x, { low, high: log ? high : high * 1.04, log });
    const path = points.map(([px, py], i) => `${i ? "L" : "M"}${sx(px).toFixed(1)} ${sy(py).toFixed(1)}`).join("");
    root.append(svg("path", { class: "line", d: path }));
    if (points.length === 1) root.append(svg("circle", { class: "mark", r: 3, cx: sx(x.low), cy: sy(values[0]) }));
    root.addEventListener("pointermove", (event) => {
      const at = event.clientX - root.getBoundingClientRect().left;
      const near = points.reduce((a, b) => (Math.abs(sx(b[0]) - at) < Math.abs(sx(a[0]) - at) ? b : a));
      showTip(event, `${name} ${num(near[1], 4)}`, el("small", null, `step ${near[0].toLocaleString("en")}`));
    });
    root.addEventListener("pointerleave", hideTip);
    host.replaceChildren(root);
  });
}
