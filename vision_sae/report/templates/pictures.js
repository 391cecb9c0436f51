// Thumbnails out of the sprite sheets, and heat over them.
const sprites = data.sprites;
const PITCH = sprites.size + 2 * sprites.gutter;

function thumb(image, side, ...over) {
  const scale = side / sprites.size;
  const cell = image % sprites.per_sheet;
  const x = (cell % sprites.columns) * PITCH + sprites.gutter;
  const y = Math.floor(cell / sprites.columns) * PITCH + sprites.gutter;
  const [key, caption] = vsae.images[image];
  const node = el("span", { class: "thumb", role: "img", "aria-label": caption || key }, over);
  node.style.cssText = `width:${side}px;height:${side}px;` +
    `background-image:url("sprites/${sprites.files[Math.floor(image / sprites.per_sheet)]}");` +
    `background-size:${sprites.columns * PITCH * scale}px auto;` +
    `background-position:${-x * scale}px ${-y * scale}px`;
  return node;
}

// Hot colours that only gain opacity and depth: visible on light pictures and on dark ones.
const HOT = [[255, 214, 64], [255, 150, 20], [240, 60, 20], [190, 0, 60]];
function hot(t) {
  const at = Math.min(t, 0.9999) * (HOT.length - 1);
  const i = Math.floor(at);
  const mix = (c) => HOT[i][c] + (HOT[i + 1][c] - HOT[i][c]) * (at - i);
  return [mix(0), mix(1), mix(2), 255 * 0.82 * Math.min(1, 1.6 * t)];
}

const RAMP = Array.from({ length: 256 }, (_, i) => hot(i / 255));

// Values between patch centres are interpolated, then coloured; `scale` says what is full heat.
const FINE = 64;
function paintHeat(canvas, [rows, columns, text], scale) {
  const levels = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const full = scale === "image" ? Math.max(1, ...levels) : 255;
  const pixels = new ImageData(FINE, FINE);
  const along = (i, n) => {
    const at = Math.min(Math.max(((i + 0.5) * n) / FINE - 0.5, 0), n - 1);
    return [Math.floor(at), Math.min(Math.floor(at) + 1, n - 1), at % 1];
  };
  for (let i = 0; i < FINE; i++) {
    const [r0, r1, v] = along(i, rows);
    for (let j = 0; j < FINE; j++) {
      const [c0, c1, u] = along(j, columns);
      const upper = levels[r0 * columns + c0] * (1 - u) + levels[r0 * columns + c1] * u;
      const lower = levels[r1 * columns + c0] * (1 - u) + levels[r1 * columns + c1] * u;
      const share = (upper * (1 - v) + lower * v) / full;
      pixels.data.set(RAMP[Math.round(255 * share)], 4 * (i * FINE + j));
    }
  }
  canvas.width = canvas.height = FINE;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// Heat: off, relative to the latent's maximum, or to each image's own.
const SCALES = [["off", "off"], ["latent", "latent's scale"], ["image", "each image's"]];
let heatScale = "latent";
let heated = []; // [canvas, heat] of the page that is shown
function applyHeat() {
  for (const [canvas, heat] of heated) {
    canvas.hidden = heatScale === "off";
    if (heatScale !== "off") paintHeat(canvas, heat, heatScale);
  }
  for (const button of document.querySelectorAll("[data-scale]")) {
    button.setAttribute("aria-pressed", button.dataset.scale === heatScale);
  }
}
function setHeat(scale) {
  heatScale = scale;
  applyHeat();
}
function switchHeat() {
  const at = SCALES.findIndex(([scale]) => scale === heatScale);
  setHeat(SCALES[(at + 1) % SCALES.length][0]);
}
function heatSwitch() {
  const ramp = el("span", { class: "ramp", title: "no activation to full" });
  const stops = [0, 0.1, 0.25, 0.5, 0.75, 1].map((t) => {
    const [r, g, b, a] = hot(t);
    return `rgb(${r} ${g} ${b} / ${a / 255}) ${100 * t}%`;
  });
  ramp.style.background = `linear-gradient(90deg, ${stops})`;
  return el("div", { class: "tools" }, el("span", { class: "muted" }, "Heatmap"),
    el("span", { class: "group" }, SCALES.map(([scale, label]) =>
      el("button", { "data-scale": scale, title: "h switches", onclick: () => setHeat(scale) },
        label))), ramp);
}

const sourceOf = (image) => { // the key, and the seed of a drawn picture
  const [key, , seed] = vsae.images[image];
  return seed === undefined ? key : `seed ${seed} · ${key}`;
};

function shot({ image, value, heat, timestep }, side) {
  const canvas = heat && el("canvas");
  if (heat) heated.push([canvas, heat]);
  const [key, caption] = vsae.images[image];
  const picture = thumb(image, side, canvas);
  const words = () => [caption || key, el("small", null, sourceOf(image))];
  const when = timestep === undefined ? "" : ` · t ${timestep}`;
  return el("figure", { class: "shot", ...pointed(words) },
    picture, el("figcaption", null, num(value) + when));
}
