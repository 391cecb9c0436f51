// A latent's own page; its details come from a chunk that is loaded when first needed.
const places = new Map(data.latents.map((l, i) => [l.id, i]));
const loads = new Map();

function load(name) {
  return new Promise((done, fail) => {
    const end = () => {
      if (vsae[name]) return done(vsae[name]);
      loads.delete(name); // so that it can be tried again
      return fail(new Error(`data/${name}.js is missing or unreadable`));
    };
    document.head.append(el("script", { src: `data/${name}.js`, onload: end, onerror: end }));
  });
}

async function details(place) {
  const name = `latents-${Math.floor(place / data.chunk)}`;
  if (!loads.has(name)) loads.set(name, load(name));
  return (await loads.get(name))[place % data.chunk];
}

function neighbour([id, cosine]) {
  const latent = data.latents[places.get(id)];
  const words = el("div", null, latent ? nameOf(latent) : "not in the report",
    el("small", null, `#${id} · ${fixed(cosine)}`));
  if (!latent) return el("span", { class: "muted" }, words);
  return el("a", { href: `#latent/${id}`, ...pointed(() => latentTip(latent)) },
    latent.strip.length ? thumb(latent.strip[0], 48) : null, words);
}

function neighboursCard(neighbours) {
  const near = neighbours.length ? el("div", { class: "near" }, neighbours.map(neighbour))
    : note("None were kept.");
  return card("Nearest latents", "cosine of decoder directions", near);
}

function meter(label, value) {
  const bar = el("i");
  bar.style.width = `${100 * Math.min(1, Math.max(0, value || 0))}%`;
  return [el("span", null, label), el("span", { class: "meter" }, bar),
    el("span", null, fixed(value))];
}

function detectionCard(found) {
  if (!found) return card("Detection", null, note("No factor value was found for it."));
  return card("Detection", `${found.factor}: ${found.value}`, el("div", { class: "meters" },
    meter("precision", found.precision), meter("recall", found.recall),
    meter("F1", found.f1), meter("AUROC", found.auroc)));
}

const VERDICTS = {
  right: "Right: at least half of the images it fires on are labelled with the name.",
  narrow: "Narrow: it fires on most images labelled with the name, and on more of others.",
  wrong: "By the labels of the images, the name is not what it fires on.",
};

// How the name does as a detector of its latent, on images that did not choose it.
function nameCard({ named }) {
  if (!named) return null;
  const score = [note(`score ${fixed(named.score)}, runner-up “${named.runner_up}”, `
    + `margin ${fixed(named.margin)}`)];
  if (named.name !== named.word && named.word) {
    score.unshift(note(`Unnamed: the nearest word, “${named.word}”, is below the threshold.`));
  }
  if (named.auroc === null) {
    return card("Name", "not tested", score, note(named.untested && `Not tested: ${named.untested}.`));
  }
  const known = named.verdict === null ? [] : [
    ...meter("its images labelled so", named.carried),
    ...meter("images labelled so found", named.found)];
  const verdict = named.verdict && note(VERDICTS[named.verdict]);
  return card("Name", `tested on ${num(named.images, 7)} held-out images, it fires on ${named.positives}`,
    score, el("div", { class: "meters" }, meter("AUROC of the name", named.auroc), known), verdict);
}

function activationCard({ maximum }, { histogram: counts }) {
  const total = counts.reduce((a, b) => a + b, 0);
  if (!total || maximum === null) return card("Activations", null, note("None were counted."));
  const edges = Array.from({ length: counts.length + 1 }, (_, i) => (i * maximum) / counts.length);
  const tell = (i) => [count(counts[i], "activation"),
    el("small", null, `of ${num(edges[i])} to ${num(edges[i + 1])}`)];
  const x = { label: "activation (counts on a log scale)" };
  return card("Activations", count(total, "positive one"),
    histogram({ edges, counts, tell, x, log: true, height: 170 }));
}

// Previous and next walk the list as it is searched and sorted, or all when this one is not in it.
function crumbs(place) {
  const listed = list.order.indexOf(place);
  const among = listed < 0 ? data.latents.map((_, i) => i) : list.order;
  const at = listed < 0 ? place : listed;
  const noun = among.length < data.latents.length ? "listed latent" : "latent";
  const step = (to, label, id) => {
    if (among[to] === undefined) return el("span", null, label);
    const href = `#latent/${data.latents[among[to]].id}`;
    return el("a", { href, id, title: "arrow keys do the same" }, label);
  };
  return el("div", { class: "crumbs" },
    el("span", { class: "group" },
      step(at - 1, "← Previous", "previous"), step(at + 1, "Next →", "next")),
    el("span", null, `${num(at + 1, 7)} of ${count(among.length, noun)}`),
    el("a", { href: listAddress() }, "back to the list"));
}

function heading(latent, more) {
  const score = latent.score === null ? null : `score ${fixed(latent.score)}`;
  const auroc = latent.auroc === null ? null : `AUROC ${fixed(latent.auroc)}`;
  const next = more.named && more.named.runner_up && `runner-up: ${more.named.runner_up}`;
  const about = [score, auroc, next].filter(Boolean);
  return el("div", { class: "title" },
    el("h1", null, nameOf(latent), " ", el("span", { class: "id" }, `#${latent.id}`)),
    el("span", { class: "muted" }, about.join(" · ")));
}

function statistics(latent, more) {
  const tile = (value, label) =>
    el("div", { class: "tile" }, el("b", null, value), el("span", null, label));
  return el("div", { class: "tiles" }, tile(percent(latent.frequency), "of tokens"),
    tile(percent(more.imageShare), `of ${data.noun}s`), tile(num(more.mean), "mean when firing"),
    tile(num(latent.maximum), "maximum"));
}

// The timesteps as they ran, from noise to the picture.
function activityCard({ activity }) {
  if (!activity) return null;
  const x = { label: "timestep, from noise to picture", ticks: ticksAmong(data.timesteps) };
  const panel = (name, values, show) =>
    el("div", null, note(name), curve(data.timesteps, values, name, { x, show })
      || el("p", { class: "empty" }, "It never fires."));
  return card("Activity over timesteps", null, el("div", { class: "panels" },
    panel("% of tokens", activity.share.map((share) => 100 * share), (y) => percent(y / 100)),
    panel("mean when firing", activity.mean)));
}

// Prompts of the top pictures; those of one text stand together, with their seeds.
function promptsCard({ top }) {
  const texts = new Map();
  for (const { image, value } of top) {
    const [, text, seed] = vsae.images[image];
    if (seed === undefined) continue;
    if (!texts.has(text)) texts.set(text, { image, value, seeds: [] });
    texts.get(text).seeds.push(seed);
  }
  if (!texts.size) return null;
  const row = ([text, { image, value, seeds }]) => el("span", null, thumb(image, 48),
    el("div", null, text, el("small", null,
      `${num(value)} · seed${seeds.length > 1 ? "s" : ""} ${seeds.join(", ")}`)));
  return card("Top prompts", "largest activation and seeds of each",
    el("div", { class: "near prompts" }, [...texts].map(row)));
}

function gallery(title, small, pictures, side) {
  return el("div", { class: "band" }, el("h2", null, title, el("small", null, small)),
    el("div", { class: "gallery" }, pictures.map((picture) => shot(picture, side))));
}

function latentPage(place, more) {
  const latent = data.latents[place];
  heated = [];
  const small = data.timesteps.length > 1 ? "largest activation and its timestep under each"
    : "largest activation under each";
  const top = more.top.length ? gallery("Top images", small, more.top, 128)
    : note("No top images were kept.");
  const bands = more.quantiles.filter(([, pictures]) => pictures.length)
    .map(([label, pictures]) => gallery(label, "activation quantiles", pictures, 96));
  fill(byId("view-latent"), null, [crumbs(place), heading(latent, more), statistics(latent, more),
    heated.length ? heatSwitch() : null, top,
    el("div", { class: "cards band" }, promptsCard(more), activityCard(more)), bands,
    el("div", { class: "cards band" },
      nameCard(more), detectionCard(latent.detection), activationCard(latent, more)),
    neighboursCard(more.neighbours)]);
  applyHeat();
}

async function openLatent(text) {
  const host = byId("view-latent");
  const place = places.get(Number(text));
  const hash = location.hash;
  try {
    if (place === undefined) throw new Error(`There is no live latent ${text} in this report.`);
    const more = await details(place);
    if (location.hash !== hash) return; // another page was asked for meanwhile
    host.replaceChildren();
    latentPage(place, more);
  } catch (error) {
    host.replaceChildren(el("p", { class: "empty" }, error.message));
  }
}
