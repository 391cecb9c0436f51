// Routes: #overview, #latents?query, #latent/<id>.
const scrolled = {};
let current = null;

async function route() {
  const hash = location.hash;
  const [path, query = ""] = hash.slice(1).split("?");
  const [first, id] = path.split("/");
  const view = ["latents", "latent"].includes(first) ? first : "overview";
  hideTip();
  if (current) scrolled[current] = scrollY;
  current = view;
  if (view === "latents") openList(query);
  if (view === "latent") await openLatent(id);
  if (location.hash !== hash) return; // another page was asked for meanwhile
  for (const name of ["overview", "latents", "latent"]) byId(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    link.classList.toggle("here", link.dataset.view === view);
  }
  document.querySelector('nav [data-view="latents"]').href = listAddress();
  scrollTo(0, view === "latent" ? 0 : scrolled[view] || 0);
}

document.addEventListener("keydown", (event) => {
  const { target, ctrlKey, metaKey, altKey } = event;
  if (target.matches("input, select") || ctrlKey || metaKey || altKey) return;
  if (event.key === "/" && current === "latents" && list.search) {
    event.preventDefault();
    list.search.focus();
  }
  if (current !== "latent") return;
  const link = byId({ ArrowLeft: "previous", ArrowRight: "next" }[event.key]);
  if (link) link.click();
  if (event.key === "h") switchHeat();
});

history.scrollRestoration = "manual";
overviewPlots();
dictionaryMap();
latentList();
addEventListener("hashchange", route);
route();
