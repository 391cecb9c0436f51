// The map of the dictionary: a canvas of points to zoom, point at and click.
const factors = [...new Set(data.latents.map((l) => l.detection && l.detection.factor).filter(Boolean))].sort();
const COLOURS = 7;
const colourName = (latent) => {
  const place = latent.detection ? factors.indexOf(latent.detection.factor) : -1;
  return place < 0 || place >= COLOURS ? "--none" : `--f${place}`;
};

function latentTip(latent) {
  const found = latent.detection;
  const lines = [el("small", null, `#${latent.id} · fires on ${percent(latent.frequency)}`)];
  if (found) lines.push(el("small", null, `${found.factor}: ${found.value} · F1 ${fixed(found.f1)}`));
  const text = el("div", null, el("b", null, nameOf(latent)), lines);
  return el("div", { class: "pic" }, latent.strip.length ? thumb(latent.strip[0], 96) : null, text);
}

function dictionaryMap() {
  const points = data.latents.filter((l) => l.xy[0] !== null && l.xy[1] !== null);
  if (!points.length) return;
  const canvas = el("canvas", { "aria-label": "map of the latents", role: "img" });
  const hidden = new Set();
  let view = { k: 1, x: 0, y: 0 };
  let hover = null;
  let drag = null;
  const HEIGHT = 520;
  const MARGIN = 16;

  const place = ({ xy: [x, y] }) => [
    (MARGIN + x * (canvas.clientWidth - 2 * MARGIN)) * view.k + view.x,
    (MARGIN + (1 - y) * (HEIGHT - 2 * MARGIN)) * view.k + view.y,
  ];
  const visible = () => points.filter((l) => !hidden.has(colourName(l)));

  function draw() {
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = HEIGHT * ratio;
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    pen.scale(ratio, ratio);
    const radius = Math.min(7, (points.length > 2000 ? 2.6 : 3.6) * Math.sqrt(view.k));
    for (const latent of visible()) {
      const [x, y] = place(latent);
      pen.globalAlpha = latent.detection ? 0.3 + 0.6 * (latent.detection.f1 || 0) : 0.45;
      pen.fillStyle = style.getPropertyValue(colourName(latent));
      pen.beginPath();
      pen.arc(x, y, radius, 0, 7);
      pen.fill();
    }
    if (hover) {
      pen.globalAlpha = 1;
      pen.strokeStyle = style.getPropertyValue("--text");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(...place(hover), radius + 3, 0, 7);
      pen.stroke();
    }
  }

  function nearest(event) {
    let best = null;
    let least = 14 ** 2;
    for (const latent of visible()) {
      const [x, y] = place(latent);
      const distance = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2;
      if (distance < least) [best, least] = [latent, distance];
    }
    return best;
  }
  function zoom(by, x = canvas.clientWidth / 2, y = HEIGHT / 2) {
    const k = Math.min(40, Math.max(1, view.k * by));
    const real = k / view.k;
    view = k === 1 ? { k, x: 0, y: 0 } : { k, x: x - (x - view.x) * real, y: y - (y - view.y) * real };
    draw();
  }

  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      drag.far = drag.far || Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 4;
      view = { ...view, x: drag.from.x + event.clientX - drag.x, y: drag.from.y + event.clientY - drag.y };
      hideTip();
      return draw();
    }
    const found = nearest(event);
    canvas.classList.toggle("over", Boolean(found));
    if (found) showTip(event, latentTip(found));
    else hideTip();
    if (found !== hover) {
      hover = found;
      draw();
    }
  });
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, from: view, far: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", (event) => {
    const found = drag && !drag.far && nearest(event);
    drag = null;
    if (found) location.hash = `latent/${found.id}`;
  });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("pointerleave", () => {
    hideTip();
    hover = null;
    draw();
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // a plain wheel scrolls the page
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 250), event.offsetX, event.offsetY);
  }, { passive: false });

  const entry = (variable, label) => {
    const dot = el("i");
    dot.style.background = `var(${variable})`;
    return el("button", { "aria-pressed": true, onclick: (event) => {
      if (!hidden.delete(variable)) hidden.add(variable);
      event.currentTarget.setAttribute("aria-pressed", !hidden.has(variable));
      draw();
    } }, dot, label);
  };
  const legend = factors.slice(0, COLOURS).map((factor, i) => entry(`--f${i}`, factor));
  if (points.some((l) => colourName(l) === "--none")) legend.push(entry("--none", factors.length > COLOURS ? "other or none" : "none"));
  byId("map").replaceChildren(el("div", { class: "card" },
    el("div", { class: "head" },
      el("h2", null, "Map of the dictionary", el("small", null, "colour: best detected factor; stronger: higher F1")),
      el("div", { class: "legend" }, legend),
      el("span", { class: "group" },
        el("button", { onclick: () => zoom(1.6), "aria-label": "zoom in" }, "+"),
        el("button", { onclick: () => zoom(1 / 1.6), "aria-label": "zoom out" }, "−"),
        el("button", { onclick: () => zoom(0) }, "reset"))),
    canvas));
  drawn(canvas, draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
