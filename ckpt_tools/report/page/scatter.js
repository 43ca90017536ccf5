// One output against another of the same dimensions, at one step.
const scatterView = {
  draw(chart, g, size) {
    const colours = theme(), box = { left: 58, right: size.width - 14, top: 12, bottom: size.height - 40 };
    const { against, output, place } = chart, every = chart.curves(), across = against.chart, up = output.chart;
    const points = every.map((curve, i) => ({ curve, i, x: against.at(curve.cell, place), y: output.at(curve.cell, place) }));
    const shown = points.filter((p) => !chart.hidden.has(p.curve.cell) && Number.isFinite(p.x) && Number.isFinite(p.y) && (!chart.logY || p.y > 0));
    const room = (across.high - across.low) * 0.03, above = (up.high - up.low) * 0.05;
    const x = new Scale("linear", across.low - room, across.high + room, box.left, box.right);
    const [low, high] = chart.logY ? extent([shown.map((p) => p.y)], true) || [0.1, 1] : [up.low - above, up.high + above];
    const y = new Scale(chart.logY ? "log" : "linear", low, high, box.bottom, box.top);
    Object.assign(chart.axes, { x, y, box, points: shown });
    drawAxes(g, box, x, y, { x: cut(g, `${across.name}${across.unit ? `, in ${across.unit}` : ""}`, box.right - box.left) }, colours);
    for (const p of shown) {
      g.fillStyle = look(p.i, every.length, colours).colour;
      g.beginPath();
      g.arc(x.pixel(p.x), y.pixel(p.y), 3.5, 0, 7);
      g.fill();
    }
    if (!shown.length) empty(g, box, colours, "No value at this step");
  },

  nearest(chart, px, py) {
    const { x, y, points } = chart.axes, far = (p) => Math.hypot(x.pixel(p.x) - px, y.pixel(p.y) - py);
    const best = points.reduce((one, p) => (one && far(one) <= far(p) ? one : p), null);
    return best && { cell: best.curve.cell };
  },

  step(chart, cursor, right, up) {
    const points = [...chart.axes.points].sort((a, b) => a.x - b.x), at = points.findIndex((p) => cursor && p.curve.cell === cursor.cell);
    const next = points[Math.min(points.length - 1, Math.max(0, at + (right || up)))];
    return next ? { cell: next.curve.cell } : null;
  },

  holds(chart, cursor) { return chart.axes.points.some((p) => p.curve.cell === cursor.cell); },

  mark(chart, g, cursor, colours) {
    const { x, y, points } = chart.axes, p = points.find((one) => one.curve.cell === cursor.cell);
    g.strokeStyle = colours.ink;
    g.lineWidth = 2;
    g.beginPath();
    g.arc(x.pixel(p.x), y.pixel(p.y), 6, 0, 7);
    g.stroke();
    return [x.pixel(p.x), y.pixel(p.y)];
  },

  tell(chart, cursor) {
    const { against, output, place } = chart, unit = against.chart.unit ? ` ${against.chart.unit}` : "";
    const value = `${short(output.at(cursor.cell, place))}${chart.unit} at ${short(against.at(cursor.cell, place))}${unit}`;
    return { name: output.name(cursor.cell), value, where: `step ${short(output.shown[place])}` };
  },
};
