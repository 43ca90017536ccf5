// The run at a glance: a logged metric above, and below it the segments of curves and the events of every analyzer.
const ROW = 24;

class Timeline {
  constructor(figure, spec) {
    Object.assign(this, { figure, spec, metric: 0, cursor: null });
    this.logX = report.files[spec.file].logX;
    this.outputs = spec.metrics.map((one) => new Output(one));
    this.logY = this.outputs.length ? spec.metrics[0].logY : false;
    this.bar = make("div", { class: "controls" }, ...this.switches());
    this.base = make("canvas");
    this.tip = make("div", { class: "tip", hidden: true });
    this.plot = make("div", { class: "plot", tabindex: "0", role: "img", "aria-label": "Timeline. Left and right arrow keys go from event to event; a list follows." }, this.base, this.tip);
    this.readout = make("output", { class: "readout", "aria-live": "polite" });
    figure.append(make("figcaption", {}, make("h3", {}, "Timeline")), this.bar, this.plot, this.readout);
    this.plot.addEventListener("pointermove", (event) => this.hover(event));
    this.plot.addEventListener("pointerleave", () => (this.tip.hidden = true));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  *switches() {
    const names = this.spec.metrics.map((m, i) => [String(i), m.name]);
    if (names.length > 1) yield choice("Curve", names, "0", (v) => this.set("metric", Number(v)));
    yield check("log steps", this.logX, (on) => this.set("logX", on));
    if (names.length) yield check("log values", this.logY, (on) => this.set("logY", on));
  }

  set(name, value) {
    this[name] = value;
    this.draw();
  }

  draw() {
    const width = this.plot.clientWidth, above = this.outputs.length ? 170 : 10, rows = this.spec.timeline;
    if (!width) return;
    const height = above + rows.length * ROW + 44, g = fit(this.base, width, height), colours = theme();
    this.plot.style.height = `${height}px`;
    const named = Math.max(40, ...rows.map((row) => g.measureText(row.name).width)) + 12;
    const box = { left: Math.max(58, Math.min(named, width * 0.3)), right: width - 14, top: 10, bottom: height - 40 };
    const [low, high] = this.spec.span, x = new Scale(this.logX && low >= 0 ? "log1" : "linear", low, high, box.left, box.right);
    Object.assign(this, { x, box, above, hits: [] });
    if (this.outputs.length) this.drawMetric(g, { ...box, bottom: above - 16 }, colours);
    rows.forEach((row, i) => this.drawRow(g, row, above + i * ROW, colours));
    drawAxes(g, box, x, null, { x: this.logX ? "step (logarithmic)" : "step" }, colours);
  }

  drawMetric(g, box, colours) {
    const points = this.outputs[this.metric].curve(0), found = extent([points.y], this.logY) || [0.1, 1];
    const room = (found[1] - found[0]) * 0.05;
    const y = this.logY ? new Scale("log", found[0] / 1.05, found[1] * 1.05, box.bottom, box.top) : new Scale("linear", found[0] - room, found[1] + room, box.bottom, box.top);
    g.strokeStyle = colours.grid;
    g.fillStyle = colours.muted;
    g.textAlign = "right";
    g.textBaseline = "middle";
    for (const v of y.ticks(4)) {
      line(g, box.left, y.pixel(v), box.right, y.pixel(v));
      g.fillText(short(v), box.left - 6, y.pixel(v));
    }
    drawCurve(g, points, this.x, y, { colour: colours.ink, dash: [] }, 1.8);
    g.fillStyle = colours.ink;
    g.fillText(this.spec.metrics[this.metric].name, box.right, box.top + 4);
  }

  drawRow(g, row, top, colours) {
    const { box, x } = this;
    g.fillStyle = colours.muted;
    g.textAlign = "right";
    g.textBaseline = "middle";
    g.fillText(cut(g, row.name, box.left - 10), box.left - 6, top + ROW / 2);
    row.items.forEach(([step, stop, name, text], i) => {
      const left = x.pixel(step), right = stop === null ? left : Math.max(left + 2, x.pixel(stop));
      if (stop === null) this.drawEvent(g, left, top, this.roomBehind(row.items, i), name, colours);
      else this.drawSpan(g, left, right, top, name, row.segments ? i : 0, row.segments, colours);
      const when = stop === null ? `step ${short(step)}` : `steps ${short(step)} to ${short(stop)}`;
      this.hits.push({ left: left - 6, right: right + 6, top, name, text: text === name ? "" : text, when, group: row.group });
    });
  }

  // Pixels to the right of an event that nothing else of its row takes.
  roomBehind(items, i) {
    const at = this.x.pixel(items[i][0]), ends = items.filter((_, k) => k !== i).map(([step, stop]) => [this.x.pixel(step), this.x.pixel(stop ?? step)]);
    const later = items.slice(i + 1).some(([step]) => this.x.pixel(step) < at + 8);
    if (later || ends.some(([from, to]) => from <= at + 8 && to > at)) return 0;
    return Math.min(this.box.right, ...ends.map(([from]) => from).filter((from) => from > at)) - at - 18;
  }

  drawEvent(g, at, top, room, name, colours) {
    if (room > 30) {
      g.fillStyle = colours.muted;
      g.textAlign = "left";
      g.fillText(cut(g, name, room), at + 9, top + ROW / 2);
    }
    g.fillStyle = colours.series[1];
    g.strokeStyle = colours.paper;
    g.beginPath();
    g.moveTo(at, top + 5);
    g.lineTo(at + 6, top + ROW / 2);
    g.lineTo(at, top + ROW - 5);
    g.lineTo(at - 6, top + ROW / 2);
    g.closePath();
    g.fill();
    g.stroke();
  }

  drawSpan(g, left, right, top, name, i, segment, colours) {
    g.globalAlpha = segment ? (i % 2 ? 0.42 : 0.2) : 0.45;
    g.fillStyle = segment ? colours.series[0] : colours.series[5];
    g.fillRect(left, top + 3, right - left, ROW - 6);
    g.globalAlpha = 1;
    g.fillStyle = colours.ink;
    g.textAlign = "left";
    if (right - left > 26) g.fillText(cut(g, name, right - left - 8), left + 4, top + ROW / 2);
  }

  hover(event) {
    const rect = this.plot.getBoundingClientRect(), px = event.clientX - rect.left, py = event.clientY - rect.top;
    const over = (this.hits || []).filter((h) => px >= h.left && px <= h.right && py >= h.top && py < h.top + ROW);
    this.show(over.sort((a, b) => a.right - a.left - (b.right - b.left))[0], false);
  }

  show(hit, aloud) {
    this.tip.hidden = !hit;
    if (!hit) return;
    this.tip.replaceChildren(make("b", {}, hit.name), make("span", {}, hit.text), make("span", {}, `${hit.when} · ${hit.group}`));
    this.tip.style.left = `${Math.max(0, Math.min(hit.left + 12, this.plot.clientWidth - this.tip.offsetWidth - 4))}px`;
    this.tip.style.top = `${Math.max(0, hit.top - this.tip.offsetHeight - 4)}px`;
    if (aloud) this.readout.textContent = [hit.when, hit.name, hit.text].filter(Boolean).join(", ");
  }

  key(event) {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key], hits = [...(this.hits || [])].sort((a, b) => a.left - b.left);
    if (!way || !hits.length) return;
    this.cursor = this.cursor === null ? 0 : (this.cursor + way + hits.length) % hits.length;
    this.show(hits[this.cursor], true);
    event.preventDefault();
  }
}
