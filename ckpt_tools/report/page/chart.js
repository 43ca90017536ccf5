// One output with its controls: views, curves, zoom, a slider for the step, values under the pointer or the keyboard.
const VIEWS = { lines: linesView, profile: linesView, map: mapView, stepmap: mapView, scatter: scatterView, bars: barsView };
const VIEW_NAMES = { lines: "over steps", map: "heat map", stepmap: "heat map over steps", profile: "profile", scatter: "scatter", bars: "bars" };
const FEW_CURVES = 12;

class Chart {
  constructor(figure, spec) {
    this.figure = figure;
    this.output = spec.beside ? new Beside(spec) : new Output(spec);
    this.against = spec.against && new Output({ ...spec, ...spec.against });
    const { chart } = this.output, file = report.files[spec.file];
    this.unit = chart.unit ? ` ${chart.unit}` : "";
    this.views = chart.views;
    this.view = this.views[0];
    this.pick = firstPick(this.output, chart.at || {}, chart.lines, this.view === "scatter");
    this.logX = chart.logX ?? file.logX;
    this.logY = chart.logY;
    this.hidden = new Set();
    this.place = this.output.shown.length - 1;
    this.marks = spec.beside ? [] : marksOf(spec.file, chart.group);
    this.axes = {};
    this.build(chart, spec);
    this.choose(this.view);
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  build(chart, spec) {
    const title = spec.beside ? `${chart.group}: ${chart.name}` : chart.name;
    const caption = make("figcaption", {}, make("h3", {}, title), make("small", {}, make("code", {}, chart.output), chart.unit ? `, in ${chart.unit}` : ""));
    this.bar = make("div", { class: "controls" });
    this.base = make("canvas");
    this.over = make("canvas", { class: "over" });
    this.tip = make("div", { class: "tip", hidden: true });
    this.plot = make("div", { class: "plot", tabindex: "0", role: "img", "aria-label": `${title}. Arrow keys read values, plus and minus zoom, 0 shows all.` }, this.base, this.over, this.tip);
    this.bars = make("div", { class: "barbox wide", tabindex: "0" });
    this.slide = make("div", { class: "slide" });
    this.readout = make("output", { class: "readout", "aria-live": "polite" });
    this.legend = make("div", { class: "legend" });
    const thinned = chart.total > this.output.shown.length || chart.byCell;
    const note = chart.byCell
      ? "Thinned: of each stretch of steps the lowest and the highest value are drawn. The results file has all."
      : `Thinned: ${this.output.shown.length.toLocaleString("en-US")} of ${chart.total.toLocaleString("en-US")} steps are drawn. The results file has all.`;
    this.table = make("details", { ontoggle: () => this.fillTable() }, make("summary", {}, "Numbers"));
    this.figure.append(caption, this.bar, this.plot, this.bars, this.slide, this.readout, this.legend, this.table);
    if (thinned && !spec.beside) this.figure.append(make("p", { class: "note" }, note));
    listen(this);
  }

  curves() {
    if (!this.known || this.view === "profile") this.known = linesView.curves(this);
    return this.known;
  }

  choose(view) {
    this.view = view;
    this.known = this.cursor = null;
    this.zoom = null;
    this.plot.hidden = view === "bars";
    this.bars.hidden = view !== "bars";
    this.bar.replaceChildren(...this.switches());
    this.slide.replaceChildren(...this.slider());
    this.legend.replaceChildren(...(this.hasLegend() ? legend(this) : []));
    this.draw();
  }

  hasLegend() {
    return this.view !== "map" && this.curves().length > 1 && !(this.view === "bars" && this.curves().length <= 12);
  }

  *switches() {
    if (this.views.length > 1) yield choice("View", this.views.map((v) => [v, VIEW_NAMES[v]]), this.view, (v) => this.choose(v));
    yield* this.dimChoices();
    const overSteps = this.view === "lines" || this.view === "stepmap";
    if (overSteps) yield check("log steps", this.logX, (on) => this.set("logX", on));
    yield check(VIEWS[this.view] === mapView ? "log colours" : "log values", this.logY, (on) => this.set("logY", on));
    if (this.view === "bars" && this.curves().length > 2) yield check("sorted", Boolean(this.sorted), (on) => this.set("sorted", on));
    if (overSteps) {
      yield make("span", { class: "zoom" }, button("+", "Zoom in", () => this.zoomBy(0.5)), button("−", "Zoom out", () => this.zoomBy(2)), button("All", "Show all steps", () => this.set("zoom", null)));
    }
  }

  *dimChoices() {
    const { output, view } = this, last = output.shape.length - 1;
    for (let d = 0; d <= last; d++) {
      const across = (view === "map" && d >= last - 1) || (view === "profile" && d === last);
      if (output.shape[d] < 2 || across || last < 1) continue;
      const all = view === "map" ? [] : [["-1", "all"]];
      const options = [...all, ...output.labels[d].map((v, i) => [String(i), typeof v === "string" ? v : short(v)])];
      const now = String(view === "map" ? Math.max(0, this.pick[d]) : this.pick[d]);
      yield choice(output.dims[d].replaceAll("_", " "), options, now, (v) => {
        this.pick[d] = Number(v);
        this.hidden.clear();
        this.choose(view);
      });
    }
  }

  *slider() {
    const steps = this.output.shown, still = this.view === "lines" || this.view === "stepmap";
    if (still || steps.length < 2) return;
    const said = make("output", {}, `step ${short(steps[this.place])}`);
    const range = make("input", { type: "range", min: 0, max: steps.length - 1, step: 1, "aria-label": "Step", oninput: () => {
      this.place = Number(range.value);
      said.textContent = `step ${short(steps[this.place])}`;
      range.setAttribute("aria-valuetext", said.textContent);
      this.draw();
    } });
    range.value = this.place;
    yield make("label", {}, "Step ", range);
    yield said;
  }

  set(name, value) {
    this[name] = value;
    this.draw();
  }

  toggle(cells, on) {
    cells.forEach((cell) => (on ? this.hidden.delete(cell) : this.hidden.add(cell)));
    this.draw();
  }

  zoomBy(factor) {
    const { x } = this.axes, [a, b] = [x.a, x.b], steps = extent(this.curves().map((c) => c.points.x)) || [0, 1];
    const focus = this.cursor ? FORWARD[x.kind](this.focusStep()) : (a + b) / 2;
    const ends = [a, b].map((end) => BACK[x.kind](focus + (end - focus) * factor));
    const low = Math.max(steps[0], ends[0]), high = Math.min(steps[1], ends[1]);
    this.set("zoom", low <= steps[0] && high >= steps[1] ? null : high > low ? [low, high] : this.zoom);
  }

  focusStep() {
    return this.cursor.curve ? this.cursor.curve.points.x[this.cursor.i] : this.output.shown[this.cursor.column];
  }

  draw() {
    if (this.view === "bars") return barsView.draw(this);
    const width = this.plot.clientWidth;
    if (!width) return undefined;
    const size = { width, height: this.height() };
    this.plot.style.height = `${size.height}px`;
    VIEWS[this.view].draw(this, fit(this.base, size.width, size.height), size);
    return this.point(this.cursor, false);
  }

  height() {
    if (VIEWS[this.view] !== mapView) return 300;
    const rows = mapView.grid(this).rows.length;
    return Math.min(640, Math.max(220, 48 + rows * 15));
  }

  // Show what is under the cursor, a place in the view; null for nothing.
  point(cursor, aloud) {
    const g = fit(this.over, this.plot.clientWidth, this.height()), view = VIEWS[this.view];
    this.cursor = cursor && view.holds(this, cursor) ? cursor : null;
    this.tip.hidden = !this.cursor;
    if (!this.cursor) return;
    const [px, py] = view.mark(this, g, this.cursor, theme()), told = view.tell(this, this.cursor);
    this.tip.replaceChildren(make("b", {}, told.value), make("span", {}, told.name), make("span", {}, told.where));
    this.tip.style.left = `${Math.max(0, Math.min(px + 12, this.plot.clientWidth - this.tip.offsetWidth - 4))}px`;
    this.tip.style.top = `${Math.max(0, py - this.tip.offsetHeight - 10)}px`;
    if (aloud) this.readout.textContent = `${told.name}, ${told.where}: ${told.value}`;
  }

  fillTable() {
    if (!this.table.open || this.table.children.length > 1) return;
    const cells = Array.from({ length: Math.min(this.output.cells, MOST_CURVES) }, (_, i) => i);
    const rows = cells.map((cell) => {
      const known = this.output.curve(cell).y.filter((v) => !Number.isNaN(v)), ends = extent([known]) || [NaN, NaN];
      const told = this.output.shown.length > 1 ? [known[0] ?? NaN, known.at(-1) ?? NaN, ...ends] : [known[0] ?? NaN];
      return [this.output.name(cell), ...told.map((v) => short(v))];
    });
    const names = this.output.shown.length > 1 ? ["first", "last", "lowest", "highest"] : ["value"];
    const head = ["", ...names].map((t) => make("th", { scope: "col" }, t));
    const body = rows.map(([name, ...values]) => make("tr", {}, make("th", { scope: "row" }, name), ...values.map((v) => make("td", { class: "number" }, v))));
    this.table.append(make("div", { class: "wide", tabindex: "0" }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body))));
  }
}

// All cells when they are few; else one label of the last dimensions, but for the one an analyzer wants as curves.
function firstPick(output, at, lines, every) {
  const pick = output.shape.map((_, d) => (output.dims[d] in at ? output.labels[d].findIndex((v) => String(v) === String(at[output.dims[d]])) : -1));
  const count = () => output.shape.reduce((n, size, d) => (pick[d] < 0 ? n * size : n), 1);
  if (every) return pick;
  const kept = lines ? output.dims.indexOf(lines) : 0;
  for (let d = output.shape.length - 1; d >= 0 && count() > FEW_CURVES; d--) if (d !== kept) pick[d] = Math.max(0, pick[d]);
  return pick;
}

// The events of an analyzer, for its own charts.
function marksOf(file, group) {
  const rows = report.charts.filter((c) => c.timeline && c.file === file).flatMap((c) => c.timeline);
  const marks = rows.filter((row) => !row.segments && row.group === group).flatMap((row) => row.items);
  return marks.length <= 12 ? marks : [];
}

function listen(chart) {
  const at = (event) => {
    const box = chart.plot.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const zooms = () => chart.view === "lines" || chart.view === "stepmap";
  let from = null;
  chart.plot.addEventListener("pointerdown", (event) => { from = zooms() ? at(event)[0] : null; });
  chart.plot.addEventListener("pointermove", (event) => {
    chart.point(VIEWS[chart.view].nearest(chart, ...at(event)), false);
    if (from !== null && event.buttons && event.pointerType === "mouse") {
      const g = chart.over.getContext("2d"), [x] = at(event);
      g.fillStyle = theme().mark;
      g.globalAlpha = 0.3;
      g.fillRect(Math.min(from, x), 0, Math.abs(x - from), chart.height());
      g.globalAlpha = 1;
    }
  });
  chart.plot.addEventListener("pointerup", (event) => {
    const [to] = at(event), { box, x } = chart.axes;
    if (from !== null && Math.abs(to - from) > 8 && event.pointerType === "mouse") {
      const ends = [from, to].map((p) => x.value(Math.min(box.right, Math.max(box.left, p)))).sort((a, b) => a - b);
      chart.set("zoom", ends);
    }
    from = null;
  });
  chart.plot.addEventListener("pointerleave", () => { from = null; chart.point(null, false); });
  chart.plot.addEventListener("dblclick", () => chart.set("zoom", null));
  chart.plot.addEventListener("keydown", (event) => key(chart, event, zooms()));
}

const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function key(chart, event, zooms) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const far = event.shiftKey ? 10 : 1;
  if (event.key in ARROWS) chart.point(VIEWS[chart.view].step(chart, chart.cursor, ...ARROWS[event.key].map((n) => n * far)), true);
  else if (event.key === "Escape") chart.point(null, false);
  else if (zooms && (event.key === "+" || event.key === "=")) chart.zoomBy(0.5);
  else if (zooms && event.key === "-") chart.zoomBy(2);
  else if (zooms && event.key === "0") chart.set("zoom", null);
  else return;
  event.preventDefault();
}
