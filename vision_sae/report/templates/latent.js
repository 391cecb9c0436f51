// A latent's own page; its details come from a chunk that is loaded when first needed.
const positions = new Map(data.latents.map((l, i) => [l.id, i]));
const loads = new Map();

function details(position) {
  const name = `latents-${Math.floor(position / data.chunk)}`;
  if (!loads.has(name)) {
    loads.set(name, new Promise((done, fail) => {
      const failed = () => { loads.delete(name); fail(new Error(`data/${name}.js is missing or unreadable`)); };
      document.head.append(el("script", { src: `data/${name}.js`, onload: () => (vsae[name] ? done(vsae[name]) : failed()), onerror: failed }));
    }));
  }
  return loads.get(name).then((chunk) => chunk[position % data.chunk]);
}

function neighbour([id, cosine]) {
  const latent = data.latents[positions.get(id)];
  const words = el("div", null, latent ? nameOf(latent) : "not in the report", el("small", null, `#${id} · ${fixed(cosine)}`));
  if (!latent) return el("span", { class: "muted" }, words);
  return el("a", { href: `#latent/${id}`, ...pointed(() => latentTip(latent)) },
    latent.strip.length ? thumb(latent.strip[0], 48) : null, words);
}

function detectionCard(found) {
  if (!found) return card("Detection", null, el("p", { class: "note" }, "No factor was tested."));
  const meter = (label, value) => {
    const bar = el("i");
    bar.style.width = `${100 * Math.min(1, Math.max(0, value || 0))}%`;
    return [el("span", null, label), el("span", { class: "meter" }, bar), el("span", null, fixed(value))];
  };
  return card("Detection", `${found.factor}: ${found.value}`, el("div", { class: "meters" },
    meter("precision", found.precision), meter("recall", found.recall), meter("F1", found.f1), meter("AUROC", found.auroc)));
}

function activationCard(latent, { histogram: counts }) {
  const total = counts.reduce((a, b) => a + b, 0);
  if (!total || latent.maximum === null) return card("Activations", null, el("p", { class: "note" }, "No activations were counted."));
  const edges = Array.from({ length: counts.length + 1 }, (_, i) => (i * latent.maximum) / counts.length);
  const tell = (i) => [count(counts[i], "token"), el("small", null, `activation ${num(edges[i])} to ${num(edges[i + 1])}`)];
  return card("Activations", `${count(total, "token")} where it fires`,
    histogram({ edges, counts, tell, log: true, height: 170, x: { label: "activation (counts on a log scale)" } }));
}

function crumbs(position) {
  const listed = list.order.indexOf(position);
  const among = listed < 0 ? data.latents.map((_, i) => i) : list.order;
  const at = listed < 0 ? position : listed;
  const step = (to, label, id) => among[to] === undefined ? el("span", null, label)
    : el("a", { href: `#latent/${data.latents[among[to]].id}`, id, title: "arrow keys do the same" }, label);
  const filtered = listed >= 0 && list.order.length < data.latents.length;
  return el("div", { class: "crumbs" },
    el("span", { class: "group" }, step(at - 1, "← Previous", "previous"), step(at + 1, "Next →", "next")),
    el("span", null, `${(at + 1).toLocaleString("en")} of ${count(among.length, filtered ? "listed latent" : "latent")}`),
    el("a", { href: listAddress() }, "back to the list"));
}

const tile = (value, label) => el("div", { class: "tile" }, el("b", null, value), el("span", null, label));
const gallery = (pictures, side) => el("div", { class: "gallery" }, pictures.map((p) => shot(p, side)));

function latentPage(latent, position, more) {
  heated = [];
  const rows = more.quantiles.filter(([, pictures]) => pictures.length);
  const galleries = [
    more.top.length ? el("div", null, el("h2", null, "Top images", el("small", null, "largest activation under each")), gallery(more.top, 128))
      : el("p", { class: "note" }, "No top images were kept."),
    rows.map(([label, pictures]) => el("div", { class: "band" }, el("h2", null, label, el("small", null, "activation quantiles")), gallery(pictures, 96))),
  ];
  const about = [latent.score === null ? null : `score ${fixed(latent.score)}`, more.runnerUp && `runner-up: ${more.runnerUp}`];
  byId("view-latent").replaceChildren(crumbs(position),
    el("div", { class: "title" }, el("h1", null, nameOf(latent), " ", el("span", { class: "id" }, `#${latent.id}`)),
      el("span", { class: "muted" }, about.filter(Boolean).join(" · "))),
    el("div", { class: "tiles" }, tile(percent(latent.frequency), "of tokens"), tile(percent(more.imageShare), "of images"),
      tile(num(more.mean), "mean where it fires"), tile(num(latent.maximum), "maximum")),
    ...(heated.length ? [heatSwitch()] : []), ...galleries.flat(),
    el("div", { class: "cards band" }, activationCard(latent, more), detectionCard(latent.detection)),
    card("Nearest latents", "cosine of decoder directions", more.neighbours.length
      ? el("div", { class: "near" }, more.neighbours.map(neighbour)) : el("p", { class: "note" }, "None were kept.")));
  applyHeat();
}

async function openLatent(text) {
  const position = positions.get(Number(text));
  const host = byId("view-latent");
  const say = (message) => {
    heated = [];
    host.replaceChildren(el("p", { class: "empty" }, message));
  };
  if (position === undefined) return say(`There is no live latent ${text} in this report.`);
  try {
    const more = await details(position);
    if (location.hash !== `#latent/${text}`) return; // another page was asked for meanwhile
    latentPage(data.latents[position], position, more);
  } catch (error) {
    say(error.message);
  }
}
