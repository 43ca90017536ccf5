// Charts are made when they come near the screen, or all of them before printing.
const made = new Map();

function show(figure) {
  if (made.has(figure)) return made.get(figure);
  const spec = report.charts[Number(figure.dataset.chart)];
  const chart = spec.timeline ? new Timeline(figure, spec) : new Chart(figure, spec);
  made.set(figure, chart);
  chart.draw();
  return chart;
}

const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (!entry.isIntersecting) return;
  near.unobserve(entry.target);
  show(entry.target);
}), { rootMargin: "300px" });
const figures = [...document.querySelectorAll("figure[data-chart]")];
figures.forEach((figure) => near.observe(figure));

const redraw = () => made.forEach((chart) => {
  chart.draw();
  if (chart.legend) chart.legend.replaceChildren(...(chart.hasLegend() ? legend(chart) : []));
});
const root = document.documentElement;
const THEMES = { auto: "light", light: "dark", dark: "auto" };
const switcher = button("Theme: auto", "Change between light and dark", () => paint(THEMES[root.dataset.theme || "auto"]));

function paint(name) {
  if (name === "auto") delete root.dataset.theme; else root.dataset.theme = name;
  switcher.textContent = `Theme: ${name}`;
  redraw();
}

document.querySelector(".tools").append(switcher);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// Paper is white: everything that is unfolded is drawn in light colours first.
let before = null;
function toPaper() {
  if (before !== null) return;
  before = root.dataset.theme || "auto";
  figures.filter((f) => !f.closest("details:not([open])")).forEach(show);
  paint("light");
}
function fromPaper() {
  if (before === null) return;
  const name = before;
  before = null;
  paint(name);
}
addEventListener("beforeprint", toPaper);
addEventListener("afterprint", fromPaper);
matchMedia("print").addEventListener("change", (event) => {
  if (event.matches) toPaper(); else fromPaper();
  redraw();
});
