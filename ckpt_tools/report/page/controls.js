// Native controls, so that keyboard and screen reader work without help.
const LISTED = { bars: "rows", stepmap: "rows", scatter: "points" };

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function button(text, title, act) {
  return make("button", { type: "button", title, "aria-label": title, onclick: act }, text);
}

function check(text, on, act) {
  const box = make("input", { type: "checkbox", onchange: () => act(box.checked) });
  box.checked = on;
  return make("label", { class: "check" }, box, " ", text);
}

function choice(text, options, value, act) {
  const select = make("select", { "aria-label": text, onchange: () => act(select.value) }, ...options.map(([key, name]) => make("option", { value: key }, name)));
  select.value = value;
  return make("label", { class: "choice" }, `${text} `, select);
}

// Checkboxes for all curves, with a filter and switches for all that pass it.
function legend(chart) {
  const curves = chart.curves(), colours = theme();
  const boxes = curves.map((curve, i) => {
    const { colour, dash } = look(i, curves.length, colours), key = make("span", { class: dash.length ? "swatch dashed" : "swatch" });
    key.style.borderTopColor = colour;
    const box = make("input", { type: "checkbox", onchange: () => chart.toggle([curve.cell], box.checked) });
    box.checked = !chart.hidden.has(curve.cell);
    return { box, curve, label: make("label", { class: "check" }, box, key, curve.name) };
  });
  const list = make("div", { class: "boxes", role: "group", "aria-label": "Curves" }, ...boxes.map((b) => b.label));
  if (curves.length <= 12) return [list];
  const filter = make("input", { type: "search", placeholder: "layers.*.attn.q", "aria-label": "Show curves whose name fits", oninput: () => {
    boxes.forEach((b) => (b.label.hidden = !fits(b.curve.name, filter.value)));
  } });
  const all = (on) => () => {
    const now = boxes.filter((b) => !b.label.hidden);
    now.forEach((b) => (b.box.checked = on));
    chart.toggle(now.map((b) => b.curve.cell), on);
  };
  const only = () => {
    boxes.forEach((b) => (b.box.checked = !b.label.hidden));
    chart.hidden = new Set(boxes.filter((b) => b.label.hidden).map((b) => b.curve.cell));
    chart.draw();
  };
  const switches = make("div", { class: "controls" }, filter, button("Only these", "Show only the curves listed", only), button("All", "Switch the curves listed on", all(true)), button("None", "Switch the curves listed off", all(false)));
  const folded = make("details", {}, make("summary", {}, `${curves.length.toLocaleString("en-US")} ${LISTED[chart.view] || "curves"}`), switches, list);
  return [folded];
}

// Whether a name holds a text, or fits it as a pattern with * for anything.
function fits(name, pattern) {
  const parts = pattern.trim().toLowerCase().split("*").map((p) => p.replace(/[.+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(parts.length > 1 ? `^${parts.join(".*")}$` : parts[0]).test(name.toLowerCase());
}
