// The table: a row per dictionary, a column per score; a head sorts, a dash says why on hover.
const sorting = { by: null, down: false };

function heads(columns, repaint) {
  const head = (name, tell) => el("th", null, el("button", {
    class: sorting.by === name ? "by" : "",
    "aria-label": `sort by ${name || "name"}`,
    ...(tell ? pointed(tell) : {}),
    onclick: () => {
      const best = betterOf(name) === "higher";
      sorting.down = sorting.by === name ? !sorting.down : best;
      sorting.by = name;
      hideTip();
      repaint();
    },
  }, (name ? words(name) : "name") + (sorting.by === name ? (sorting.down ? " ↓" : " ↑") : "")));
  const about = (name) => () => [
    el("b", null, words(name)),
    el("small", null, { higher: "more is better", lower: "less is better", neither: "" }[betterOf(name)]),
    el("small", null, (data.scores[name] || {}).about || ""),
  ];
  return el("thead", null, el("tr", null, head(""), head("latents"),
    columns.map((name) => head(name, about(name)))));
}

function inOrder(rows) {
  if (sorting.by === null) return rows;
  const value = (row) => (sorting.by === "" ? row.name : valueOf(row, sorting.by));
  const sign = sorting.down ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null); // without a value: last
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  });
}

function cell(row, name, best) {
  const score = row.scores[name];
  if (!score || score.value === null) {
    const why = (score && score.reason) || "not measured";
    return el("td", { class: "none", "data-reason": why, ...pointed(() => why) }, "–");
  }
  const spread = score.low === undefined || score.low === score.high ? null
    : el("small", null, ` ${num(score.low)}–${num(score.high)}`);
  return el("td", { class: score.value === best ? "best" : "" }, num(score.value), spread);
}

function bestOf(rows, name) {
  const values = rows.map((row) => valueOf(row, name)).filter((value) => value !== null);
  const better = betterOf(name);
  if (better === "neither" || values.length < 2 || name === "l0" || name === "zeros") return null;
  return better === "higher" ? Math.max(...values) : Math.min(...values);
}

function scoreTable(host, rows, columns, repaint) {
  const best = Object.fromEntries(columns.map((name) => [name, bestOf(rows, name)]));
  const body = inOrder(rows).map((row) => el("tr", {
    onpointerenter: () => light(row.name), onpointerleave: () => light(null),
  },
    el("td", { title: row.name },
      el("i", { class: row.kind, style: `background: ${colourOf(row.family)}` }), row.name),
    el("td", null, num(row.latents, 9)),
    columns.map((name) => cell(row, name, best[name]))));
  host.replaceChildren(el("table", null, heads(columns, repaint), el("tbody", null, body)));
}
