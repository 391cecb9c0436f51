// The map of the dictionary: a canvas of points to zoom, point at and click.
const detected = data.latents.filter((latent) => latent.detection);
const factors = [...new Set(detected.map((latent) => latent.detection.factor))].sort();
const COLOURS = 7;
const HEIGHT = 520;
const MARGIN = 16;
const map = {
  canvas: null, points: [], hidden: new Set(), hover: null, drag: null,
  k: 1, x: 0, y: 0, // zoom, and where the upper left corner went
};

function colourName(latent) {
  const place = latent.detection ? factors.indexOf(latent.detection.factor) : -1;
  return place < 0 || place >= COLOURS ? "--none" : `--f${place}`;
}

function latentTip(latent) {
  const found = latent.detection;
  const lines = [`#${latent.id} · fires on ${percent(latent.frequency)} of tokens`];
  if (found) lines.push(`${found.factor}: ${found.value} · F1 ${fixed(found.f1)}`);
  const picture = latent.strip.length ? thumb(latent.strip[0], 96) : null;
  return el("div", { class: "pic" }, picture,
    el("div", null, el("b", null, nameOf(latent)), lines.map((line) => el("small", null, line))));
}

const onMap = ({ xy: [x, y] }) => [
  (MARGIN + x * (map.canvas.clientWidth - 2 * MARGIN)) * map.k + map.x,
  (MARGIN + (1 - y) * (HEIGHT - 2 * MARGIN)) * map.k + map.y,
];
const onShow = () => map.points.filter((latent) => !map.hidden.has(colourName(latent)));

function drawMap() {
  const ratio = devicePixelRatio || 1;
  map.canvas.width = map.canvas.clientWidth * ratio;
  map.canvas.height = HEIGHT * ratio;
  const pen = map.canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const radius = Math.min(7, (map.points.length > 2000 ? 2.6 : 3.6) * Math.sqrt(map.k));
  const circle = (latent, size) => {
    pen.beginPath();
    pen.arc(...onMap(latent), size, 0, 7);
  };
  pen.scale(ratio, ratio);
  for (const latent of onShow()) {
    pen.globalAlpha = latent.detection ? 0.3 + 0.6 * (latent.detection.f1 || 0) : 0.45;
    pen.fillStyle = style.getPropertyValue(colourName(latent));
    circle(latent, radius);
    pen.fill();
  }
  if (!map.hover) return;
  pen.globalAlpha = 1;
  pen.strokeStyle = style.getPropertyValue("--text");
  pen.lineWidth = 2;
  circle(map.hover, radius + 3);
  pen.stroke();
}

function nearest({ offsetX, offsetY }) {
  let [best, least] = [null, 14 ** 2];
  for (const latent of onShow()) {
    const [x, y] = onMap(latent);
    const distance = (x - offsetX) ** 2 + (y - offsetY) ** 2;
    if (distance < least) [best, least] = [latent, distance];
  }
  return best;
}

function zoom(by, x = map.canvas.clientWidth / 2, y = HEIGHT / 2) {
  const k = Math.min(40, Math.max(1, map.k * by));
  const real = k / map.k;
  const moved = { x: x - (x - map.x) * real, y: y - (y - map.y) * real };
  Object.assign(map, { k }, k === 1 ? { x: 0, y: 0 } : moved);
  drawMap();
}

function pointAt(event) {
  const found = nearest(event);
  map.canvas.classList.toggle("over", Boolean(found));
  if (found) showTip(event, latentTip(found));
  else hideTip();
  if (found === map.hover) return;
  map.hover = found;
  drawMap();
}

function dragTo(event) {
  const [dx, dy] = [event.clientX - map.drag.x, event.clientY - map.drag.y];
  map.drag.far ||= Math.hypot(dx, dy) > 4;
  if (!map.drag.far) return;
  Object.assign(map, { x: map.drag.from.x + dx, y: map.drag.from.y + dy });
  hideTip();
  drawMap();
}

const gestures = {
  onpointermove: (event) => (map.drag ? dragTo(event) : pointAt(event)),
  onpointerdown: (event) => {
    map.drag = { x: event.clientX, y: event.clientY, from: { x: map.x, y: map.y }, far: false };
  },
  onpointerup: (event) => {
    const found = map.drag && !map.drag.far && nearest(event);
    map.drag = null;
    if (found) location.hash = `latent/${found.id}`;
  },
  onpointerleave: () => {
    Object.assign(map, { hover: null, drag: null });
    hideTip();
    drawMap();
  },
};

function wheel(event) {
  if (!event.ctrlKey && !event.metaKey) return; // a plain wheel scrolls the page
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 250), event.offsetX, event.offsetY);
}

function legendEntry(variable, label) {
  const dot = el("i");
  dot.style.background = `var(${variable})`;
  const toggle = (event) => {
    if (!map.hidden.delete(variable)) map.hidden.add(variable);
    event.currentTarget.setAttribute("aria-pressed", !map.hidden.has(variable));
    drawMap();
  };
  return el("button", { "aria-pressed": "true", onclick: toggle }, dot, label);
}

function legend() {
  const entries = factors.slice(0, COLOURS).map((factor, i) => legendEntry(`--f${i}`, factor));
  if (map.points.some((latent) => colourName(latent) === "--none")) {
    entries.push(legendEntry("--none", factors.length > COLOURS ? "other or none" : "none"));
  }
  return el("div", { class: "legend" }, entries);
}

function dictionaryMap() {
  map.points = data.latents.filter((l) => l.xy[0] !== null && l.xy[1] !== null);
  if (!map.points.length) {
    const why = data.latents.length ? "No latent has a place on the map." : "No latent fires.";
    byId("map").replaceChildren(el("p", { class: "empty" }, why));
    return;
  }
  map.canvas = el("canvas", { role: "img", "aria-label": "map of the latents", ...gestures });
  map.canvas.addEventListener("wheel", wheel, { passive: false });
  const title = el("h2", null, "Map of the dictionary",
    el("small", null, "colour: best detected factor; stronger: higher F1"));
  const buttons = el("span", { class: "group" },
    el("button", { onclick: () => zoom(1.6), title: "zoom in (or Ctrl and wheel)" }, "+"),
    el("button", { onclick: () => zoom(1 / 1.6), title: "zoom out" }, "−"),
    el("button", { onclick: () => zoom(0) }, "reset"));
  byId("map").replaceChildren(el("div", { class: "card" },
    el("div", { class: "head" }, title, legend(), buttons), map.canvas));
  drawn(map.canvas, drawMap);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
}
