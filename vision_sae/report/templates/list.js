// The list of latents: search, sort, and rows that are made as one scrolls.
const SORTS = { // label, value, the way to begin with
  id: ["ID", (l) => l.id, 1],
  name: [data.noun === "prompt" ? "Name or top prompt" : "Name", (l) => l.name ?? promptOf(l), 1],
  score: ["score", (l) => l.score, -1],
  auroc: ["AUROC", (l) => l.auroc, -1],
  frequency: ["Frequency", (l) => l.frequency, -1],
  maximum: ["Max", (l) => l.maximum, -1],
  f1: ["F1", (l) => l.detection && l.detection.f1, -1],
};
const PORTION = 60;
const DEFAULT = { q: "", factor: "", sort: "id", way: 1 };
const list = { query: { ...DEFAULT }, order: data.latents.map((_, i) => i), made: 0 };
const haystack = data.latents.map((l) => {
  const found = l.detection ? `${l.detection.factor}:${l.detection.value}` : "";
  return `#${l.id} ${l.name ?? promptOf(l) ?? "unnamed"} ${found}`.toLowerCase();
});

function matching({ q, factor }) {
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = ({ detection }) => !factor || (detection && detection.factor === factor);
  return data.latents.map((_, i) => i)
    .filter((i) => fits(data.latents[i]) && words.every((word) => haystack[i].includes(word)));
}

function sorted(places, { sort, way }) {
  const values = data.latents.map(SORTS[sort][1]);
  const missing = (v) => v === null || v === undefined;
  const compare = (x, y) => (typeof x === "string" ? x.localeCompare(y) : x - y) * way;
  return places.sort((a, b) => {
    const [x, y] = [values[a], values[b]];
    // those without a value come last, whichever way
    return (missing(x) || missing(y) ? missing(x) - missing(y) : compare(x, y)) || a - b;
  });
}

function listAddress() {
  const kept = Object.entries(list.query).filter(([key, value]) => value !== DEFAULT[key]);
  return `#latents${kept.length ? `?${new URLSearchParams(kept)}` : ""}`;
}

function listRow(place) {
  const latent = data.latents[place];
  const found = latent.detection;
  const score = latent.score === null ? null : el("small", null, `score ${fixed(latent.score)}`,
    latent.auroc === null ? null : ` · AUROC ${fixed(latent.auroc)}`);
  const what = found && el("small", null,
    `${found.factor} · F1 ${fixed(found.f1)} · AUROC ${fixed(found.auroc)}`);
  return el("a", { class: "row", href: `#latent/${latent.id}` },
    el("span", { class: "muted" }, `#${latent.id}`),
    el("span", { class: "name" }, nameOf(latent), score),
    el("span", { class: "right" }, percent(latent.frequency)),
    el("span", { class: "right maximum" }, num(latent.maximum)),
    el("span", { class: "what" }, found ? found.value : "–", what),
    el("span", { class: "strip" }, latent.strip.map((image) => thumb(image, 48))));
}

function growList() {
  list.body.append(...list.order.slice(list.made, list.made + PORTION).map(listRow));
  list.made = Math.min(list.made + PORTION, list.order.length);
  list.more.hidden = list.made >= list.order.length;
}

function showList() {
  list.order = sorted(matching(list.query), list.query);
  list.made = 0;
  list.body.replaceChildren();
  growList();
  list.found.textContent = list.order.length ? count(list.order.length, "latent") : "nothing found";
  for (const button of list.heads.querySelectorAll("button")) {
    const { sort } = button.dataset;
    const by = sort === list.query.sort;
    button.classList.toggle("by", by);
    button.textContent = SORTS[sort][0] + (by ? (list.query.way > 0 ? " ↑" : " ↓") : "");
  }
}

function changeList(part) {
  list.query = { ...list.query, ...part };
  history.replaceState(null, "", listAddress());
  scrollTo(0, 0);
  showList();
}

// A link may carry a query; the same query again leaves the list as it is.
function openList(text) {
  const asked = { ...DEFAULT, ...Object.fromEntries(new URLSearchParams(text)) };
  asked.way = Number(asked.way) < 0 ? -1 : 1;
  if (!Object.hasOwn(SORTS, asked.sort)) asked.sort = DEFAULT.sort;
  const same = Object.keys(DEFAULT).every((key) => asked[key] === list.query[key]);
  if (!list.body || (list.made && same)) return;
  list.query = asked;
  list.search.value = asked.q;
  list.choose.value = asked.factor;
  showList();
}

function listHeads() {
  const head = (key) => el("button", { "data-sort": key, onclick: () => changeList({
    sort: key, way: list.query.sort === key ? -list.query.way : SORTS[key][2] }) }, SORTS[key][0]);
  return el("div", { class: "row heads" }, el("span", null, head("id")),
    el("span", { class: "pair" }, head("name"), head("score"), head("auroc")),
    el("span", { class: "right" }, head("frequency")),
    el("span", { class: "right maximum" }, head("maximum")),
    el("span", { class: "pair what" }, el("span", { class: "note" }, "Detects"), head("f1")),
    el("span", { class: "strip note" }, "Top images"));
}

function latentList() {
  const host = byId("view-latents");
  if (!data.latents.length) {
    host.replaceChildren(el("p", { class: "empty" }, "This dictionary has no live latents."));
    return;
  }
  Object.assign(list, {
    search: el("input", { type: "search", placeholder: "Search name, factor value or #id",
      "aria-label": "search", title: "/ jumps here",
      oninput: () => changeList({ q: list.search.value }) }),
    choose: el("select", { "aria-label": "factor",
      onchange: () => changeList({ factor: list.choose.value }) },
      el("option", { value: "" }, "all factors"),
      factors.map((factor) => el("option", { value: factor }, factor))),
    found: el("span", { class: "muted" }),
    heads: listHeads(),
    body: el("div"),
    more: el("div", { class: "more" }),
  });
  host.replaceChildren(el("div", { class: "tools" }, list.search, list.choose, list.found),
    el("div", { class: "table" }, list.heads, list.body), list.more);
  const end = new IntersectionObserver((seen) => {
    if (!seen.some((entry) => entry.isIntersecting)) return;
    growList();
    end.unobserve(list.more); // and once more: a tall window may still show the end
    end.observe(list.more);
  }, { rootMargin: "800px" });
  end.observe(list.more);
}
