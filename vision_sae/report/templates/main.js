// Routes: #overview, #latents?query, #latent/<id>.
const scrolled = {};
let current = null;

async function route() {
  const [path, rest = ""] = location.hash.slice(1).split("?");
  const [view, id] = path.split("/");
  const shown = ["latents", "latent"].includes(view) ? view : "overview";
  hideTip();
  if (current) scrolled[current] = scrollY;
  current = shown;
  if (shown === "latent") await openLatent(id);
  if (shown === "latents" && byId("view-latents").receive) byId("view-latents").receive(rest);
  for (const name of ["overview", "latents", "latent"]) byId(`view-${name}`).hidden = name !== shown;
  for (const link of document.querySelectorAll("nav a")) link.classList.toggle("here", link.dataset.view === shown);
  if (byId("view-latents").address) document.querySelector('nav [data-view="latents"]').href = byId("view-latents").address();
  scrollTo(0, shown === "latent" ? 0 : scrolled[shown] || 0);
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && current === "latents") {
    event.preventDefault();
    byId("view-latents").focusSearch();
  }
  if (current !== "latent") return;
  const link = byId({ ArrowLeft: "previous", ArrowRight: "next" }[event.key]);
  if (link) link.click();
  if (event.key === "h") setHeat(SCALES[(SCALES.findIndex(([s]) => s === heatScale) + 1) % SCALES.length][0]);
});

history.scrollRestoration = "manual";
overviewPlots();
dictionaryMap();
latentList();
addEventListener("hashchange", route);
route();
