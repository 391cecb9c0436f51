// The list of latents: search, sort, and rows that are made as one scrolls.
const SORTS = {
  id: ["ID", (l) => l.id, 1],
  score: ["name score", (l) => l.score, -1],
  name: ["Name", (l) => l.name, 1],
  frequency: ["Frequency", (l) => l.frequency, -1],
  maximum: ["Max", (l) => l.maximum, -1],
  f1: ["F1", (l) => l.detection && l.detection.f1, -1],
};
const PORTION = 60;
const DEFAULT = { q: "", factor: "", sort: "id", way: 1 };
let query = { ...DEFAULT };
let order = data.latents.map((_, i) => i); // positions in data.latents, as listed
const haystack = data.latents.map((l) =>
  [`#${l.id}`, l.name ?? "unnamed", l.detection ? `${l.detection.factor}:${l.detection.value}` : ""].join(" ").toLowerCase());

function refresh() {
  const words = query.q.toLowerCase().split(/\s+/).filter(Boolean);
  const value = SORTS[query.sort][1];
  const matches = (i) => words.every((w) => haystack[i].includes(w)) &&
    (!query.factor || (data.latents[i].detection && data.latents[i].detection.factor === query.factor));
  const missing = (v) => v === null || v === undefined;
  order = data.latents.map((_, i) => i).filter(matches).sort((a, b) => {
    const [x, y] = [value(data.latents[a]), value(data.latents[b])];
    if (missing(x) || missing(y)) return missing(x) - missing(y) || a - b; // without a value: last
    return (typeof x === "string" ? x.localeCompare(y) : x - y) * query.way || a - b;
  });
}

function listRow(position) {
  const latent = data.latents[position];
  const found = latent.detection;
  return el("a", { class: "row", href: `#latent/${latent.id}` },
    el("span", { class: "muted" }, `#${latent.id}`),
    el("span", { class: "name" }, nameOf(latent), latent.score === null ? null : el("small", null, `score ${fixed(latent.score)}`)),
    el("span", { class: "right" }, percent(latent.frequency)),
    el("span", { class: "right maximum" }, num(latent.maximum)),
    el("span", { class: "what" }, found ? [found.value, el("small", null, `${found.factor} · F1 ${fixed(found.f1)} · AUROC ${fixed(found.auroc)}`)] : "–"),
    el("span", { class: "strip" }, latent.strip.map((image) => thumb(image, 48))));
}

function latentList() {
  const host = byId("view-latents");
  if (!data.latents.length) return host.replaceChildren(el("p", { class: "empty" }, "This dictionary has no live latents."));
  const search = el("input", { type: "search", placeholder: "Search name, factor value or #id", "aria-label": "search",
    oninput: () => change({ q: search.value }) });
  const choose = el("select", { "aria-label": "factor", onchange: () => change({ factor: choose.value }) },
    el("option", { value: "" }, "all factors"), factors.map((f) => el("option", { value: f }, f)));
  const found = el("span", { class: "muted" });
  const body = el("div");
  const more = el("div");
  const head = (key) => el("button", { "data-sort": key, onclick: () =>
    change({ sort: key, way: query.sort === key ? -query.way : SORTS[key][2] }) }, SORTS[key][0]);
  const heads = el("div", { class: "row heads" }, el("span", null, head("id")),
    el("span", { class: "pair" }, head("name"), head("score")), el("span", { class: "right" }, head("frequency")),
    el("span", { class: "right maximum" }, head("maximum")),
    el("span", { class: "pair what" }, el("span", { class: "note" }, "Detects"), head("f1")),
    el("span", { class: "strip note" }, "Top images"));
  let made = 0;

  function grow() {
    body.append(...order.slice(made, made + PORTION).map(listRow));
    made = Math.min(made + PORTION, order.length);
    more.hidden = made >= order.length;
  }
  function show() {
    refresh();
    made = 0;
    body.replaceChildren();
    grow();
    found.textContent = order.length ? count(order.length, "latent") : "nothing found";
    for (const button of heads.querySelectorAll("button")) {
      const by = button.dataset.sort === query.sort;
      button.classList.toggle("by", by);
      button.textContent = SORTS[button.dataset.sort][0] + (by ? (query.way > 0 ? " ↑" : " ↓") : "");
    }
  }
  function change(part) {
    query = { ...query, ...part };
    const kept = Object.entries(query).filter(([key, value]) => value !== DEFAULT[key]);
    history.replaceState(null, "", `#latents${kept.length ? `?${new URLSearchParams(kept)}` : ""}`);
    scrollTo(0, 0);
    show();
  }

  // A link may carry a query; the same query again leaves the list as it is.
  host.receive = (text) => {
    const asked = { ...DEFAULT, ...Object.fromEntries(new URLSearchParams(text)) };
    asked.way = Number(asked.way) < 0 ? -1 : 1;
    if (!SORTS[asked.sort]) asked.sort = DEFAULT.sort;
    if (made && Object.keys(DEFAULT).every((key) => asked[key] === query[key])) return;
    query = asked;
    search.value = query.q;
    choose.value = query.factor;
    show();
  };
  host.address = () => {
    const kept = Object.entries(query).filter(([key, value]) => value !== DEFAULT[key]);
    return `#latents${kept.length ? `?${new URLSearchParams(kept)}` : ""}`;
  };
  host.focusSearch = () => search.focus();
  host.replaceChildren(el("div", { class: "tools" }, search, choose, found),
    el("div", { class: "table" }, heads, body), more);
  more.style.height = "1px";
  new IntersectionObserver((seen) => { if (seen.some((e) => e.isIntersecting)) grow(); },
    { rootMargin: "800px" }).observe(more);
}
