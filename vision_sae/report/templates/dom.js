// Elements and numbers. Every text goes in as a text node or attribute: nothing is parsed as HTML.
const data = vsae.overview;
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

function fill(node, props, children) {
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, props, ...children) => fill(document.createElement(tag), props, children);
const svg = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

function num(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) >= 10 ** digits) return Math.round(value).toLocaleString("en");
  if (Math.abs(value) < 1e-4) return value.toExponential(1);
  return value >= 1 && Number.isInteger(value) ? value.toLocaleString("en") : value.toPrecision(digits);
}
const fixed = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
const count = (value, noun) => `${value.toLocaleString("en")} ${noun}${value === 1 ? "" : "s"}`;
function percent(value) {
  if (value === null || value === undefined) return "–";
  const share = 100 * value;
  if (share !== 0 && share < 0.001) return `${share.toExponential(1)}%`;
  return `${share === 0 ? 0 : share.toPrecision(share >= 99.95 ? 4 : share >= 1 ? 3 : 2)}%`;
}
// A latent without a name goes by its strongest prompt, where the pictures were drawn from prompts.
const promptOf = ({ strip }) =>
  (data.noun === "prompt" && strip.length ? `“${vsae.images[strip[0]][1]}”` : null);
const nameOf = (latent) => (latent.name === null
  ? el("span", { class: "unnamed", title: promptOf(latent) && "its strongest prompt" },
    promptOf(latent) || "unnamed")
  : latent.name);

// One tooltip for everything that can be pointed at.
const tip = byId("tip");
function showTip(event, ...content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  // after the pointer, or before it where the window ends
  const beside = (at, size, end) => Math.max(4, at + 14 + size > end ? at - 14 - size : at + 14);
  tip.style.left = `${beside(event.clientX, box.width, innerWidth)}px`;
  tip.style.top = `${beside(event.clientY, box.height, innerHeight)}px`;
}
const hideTip = () => { tip.hidden = true; };
const pointed = (content) => ({
  onpointermove: (event) => showTip(event, ...[content()].flat()),
  onpointerleave: hideTip,
});

// Draw when the place has a width, and again when it changes: hidden views have none.
function drawn(host, paint) {
  let last = 0;
  const look = () => {
    const width = Math.floor(host.clientWidth);
    if (width && width !== last) paint((last = width), host);
  };
  new ResizeObserver(() => requestAnimationFrame(look)).observe(host);
  return host;
}
