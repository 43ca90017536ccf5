// Curves: over steps, or over a numbered dimension at one step.
const linesView = {
  // Which curves there are: cell, name, points.
  curves(chart) {
    const { output, pick } = chart, profile = chart.view === "profile";
    const last = output.shape.length - 1;
    const cells = profile ? output.chosen(pick.map((p, d) => (d === last ? 0 : p))) : output.chosen(pick);
    const except = pick.flatMap((p, d) => (p >= 0 || (profile && d === last) ? [d] : []));
    return cells.slice(0, MOST_CURVES).map((cell) => ({
      cell,
      name: output.name(cell, except),
      points: profile ? profilePoints(output, cell, chart.place) : output.curve(cell),
    }));
  },

  draw(chart, g, size) {
    const colours = theme(), every = chart.curves(), shown = every.filter((c) => !chart.hidden.has(c.cell));
    const box = { left: 58, right: size.width - 14, top: 12, bottom: size.height - 40 };
    const profile = chart.view === "profile";
    const steps = extent(shown.length ? shown.map((c) => c.points.x) : [[0, 1]], false) || [0, 1];
    const [x0, x1] = chart.zoom || steps;
    const logX = chart.logX && !profile && x0 >= 0;
    const x = new Scale(logX ? "log1" : "linear", x0, x1, box.left, box.right);
    const within = ({ x: s, y: v }) => (chart.zoom ? v.subarray(below(s, x0 - 1e-9) + 1, below(s, x1) + 1) : v);
    const inside = shown.map((curve) => within(curve.points));
    const found = extent(profile && !chart.logY ? [[chart.output.chart.low, chart.output.chart.high]] : inside, chart.logY);
    const [low, high] = found || [chart.logY ? 0.1 : 0, 1];
    const room = chart.logY ? (high / low) ** 0.04 : (high - low) * 0.05;
    const y = chart.logY ? new Scale("log", low / room, high * room, box.bottom, box.top) : new Scale("linear", low - room, high + room, box.bottom, box.top);
    Object.assign(chart.axes, { x, y, box, shown });
    const name = profile ? chart.output.dims.at(-1).replaceAll("_", " ") : "step";
    drawAxes(g, box, x, y, { x: logX ? `${name} (logarithmic)` : name }, colours);
    g.save();
    g.beginPath();
    g.rect(box.left, 0, box.right - box.left + 8, box.bottom + 1);
    g.clip();
    if (!profile) drawMarks(g, chart, x, box, colours);
    every.forEach((curve, i) => {
      if (chart.hidden.has(curve.cell)) return;
      const style = look(i, every.length, colours);
      if (curve.points.e && shown.length <= 8) drawBand(g, curve.points, x, y, style);
      drawCurve(g, curve.points, x, y, style, shown.length > 60 ? 1 : 1.7);
      if (curve.points.x.length < 2) dots(g, curve.points, x, y);
    });
    g.restore();
    if (!found) empty(g, box, colours, shown.length ? "No value in this range" : "No curve is switched on");
  },

  // What lies nearest to a pixel: the curve and its point.
  nearest(chart, px, py) {
    const { x, y, shown } = chart.axes, value = x.value(px);
    let best = null;
    for (const curve of shown) {
      const i = nearestPlace(curve.points.x, value), v = curve.points.y[i];
      if (!Number.isFinite(v)) continue;
      const distance = Math.abs(y.pixel(v) - py);
      if (!best || distance < best.distance) best = { curve, i, distance };
    }
    return best;
  },

  // Keyboard: the next point, or the next curve at the same place.
  step(chart, cursor, right, up) {
    const shown = chart.axes.shown || [];
    if (!shown.length) return null;
    const at = cursor ? Math.max(0, shown.findIndex((c) => c.cell === cursor.curve.cell)) : 0;
    const curve = shown[(at - up + shown.length) % shown.length], x = curve.points.x;
    const [x0, x1] = chart.zoom || [-Infinity, Infinity];
    const i = cursor ? nearestPlace(x, cursor.curve.points.x[Math.min(cursor.i, cursor.curve.points.x.length - 1)]) + right : x.length - 1;
    const inside = Math.min(below(x, x1), Math.max(below(x, x0 - 1e-9) + 1, i));
    return { curve, i: Math.min(x.length - 1, Math.max(0, inside)) };
  },

  // Whether there still is what a cursor stands on, after curves were switched off or the step has changed.
  holds(chart, cursor) {
    cursor.curve = chart.curves().find((c) => c.cell === cursor.curve.cell && !chart.hidden.has(c.cell));
    return Boolean(cursor.curve);
  },

  mark(chart, g, cursor, colours) {
    const { x, y, box } = chart.axes, { curve, i } = cursor;
    const px = x.pixel(curve.points.x[i]), v = curve.points.y[i];
    g.strokeStyle = colours.muted;
    line(g, px, box.top, px, box.bottom);
    const every = chart.curves(), n = every.findIndex((c) => c.cell === curve.cell);
    g.save();
    g.beginPath();
    g.rect(box.left, 0, box.right - box.left + 8, box.bottom + 1);
    g.clip();
    drawCurve(g, curve.points, x, y, { ...look(Math.max(0, n), every.length, colours), dash: [] }, 3);
    g.restore();
    if (!Number.isFinite(v)) return [px, box.top];
    g.fillStyle = colours.ink;
    g.beginPath();
    g.arc(px, y.pixel(v), 4, 0, 7);
    g.fill();
    return [px, y.pixel(v)];
  },

  tell(chart, cursor) {
    const { points, name } = cursor.curve, at = points.x[cursor.i], e = points.e && points.e[cursor.i];
    const where = chart.view === "profile" ? `${chart.output.dims.at(-1).replaceAll("_", " ")} ${short(at)}` : `step ${short(at)}`;
    const error = Number.isFinite(e) ? ` ± ${short(e)}` : "";
    return { name, value: `${short(points.y[cursor.i])}${error}${chart.unit}`, where };
  },
};

const MOST_CURVES = 2000;

function profilePoints(output, cell, place) {
  const places = output.places(cell), last = output.shape.length - 1, n = output.shape[last];
  const labels = output.labels[last], cells = Array.from({ length: n }, (_, i) => output.cellAt([...places.slice(0, last), i]));
  const y = Float32Array.from(cells, (c) => output.at(c, place));
  const e = output.errors && Float32Array.from(cells, (c) => output.errorAt(c, place));
  return { x: Float64Array.from(labels), y, e };
}

// Thin upright lines where something happened.
function drawMarks(g, chart, x, box, colours) {
  g.strokeStyle = colours.mark;
  g.fillStyle = colours.muted;
  g.setLineDash([3, 3]);
  g.lineWidth = 1;
  g.textAlign = "left";
  g.textBaseline = "top";
  let free = -Infinity;
  for (const [step, , name] of chart.marks) {
    const at = x.pixel(step);
    if (!(at >= box.left && at <= box.right)) continue;
    line(g, at, box.top, at, box.bottom);
    const text = cut(g, name, 110), width = g.measureText(text).width;
    if (at > free && at + width < box.right + 8) {
      g.fillText(text, at + 3, 0);
      free = at + width + 10;
    }
  }
  g.setLineDash([]);
}

function empty(g, box, colours, text) {
  g.fillStyle = colours.muted;
  g.textAlign = "center";
  g.textBaseline = "middle";
  g.fillText(text, (box.left + box.right) / 2, (box.top + box.bottom) / 2);
}
