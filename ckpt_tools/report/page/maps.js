// Heat maps: a row of cells over steps each, or the last two dimensions at one step.
const mapView = {
  overSteps(chart) { return chart.view === "stepmap"; },

  // The cells of the map, row by row, and what rows and columns are called.
  grid(chart) {
    const { output, pick } = chart;
    if (this.overSteps(chart)) {
      const rows = chart.curves().filter((c) => !chart.hidden.has(c.cell));
      return { rows: rows.map((c) => c.name), cells: rows.map((c) => c.cell), dims: [output.dims[0], "step"] };
    }
    const n = output.shape.length, [height, width] = output.shape.slice(-2);
    const fixed = pick.slice(0, n - 2).map((p) => Math.max(0, p));
    const cells = Array.from({ length: height }, (_, r) => Array.from({ length: width }, (_, c) => output.cellAt([...fixed, r, c])));
    const names = [n - 2, n - 1].map((d) => output.labels[d].map((v) => (typeof v === "string" ? v : short(v))));
    // Numbered dimensions are padded to the longest; what this step does not fill is not shown.
    const filled = (list) => list.some((cell) => Number.isFinite(output.at(cell, chart.place)));
    const used = (lists, d) => (typeof output.labels[d][0] === "string" ? lists.length : lists.findLastIndex(filled) + 1 || lists.length);
    const tall = used(cells, n - 2), wide = used(cells[0].map((_, c) => cells.map((row) => row[c])), n - 1);
    const kept = cells.slice(0, tall).map((row) => row.slice(0, wide));
    return { rows: names[0].slice(0, tall), columns: names[1].slice(0, wide), cells: kept, dims: output.dims.slice(-2) };
  },

  draw(chart, g, size) {
    const colours = theme(), grid = this.grid(chart), over = this.overSteps(chart);
    const widest = Math.max(20, ...grid.rows.map((t) => g.measureText(t).width));
    const left = Math.min(widest + 12, size.width * 0.36) + (over ? 0 : 16);
    const box = { left, right: size.width - 74, top: 8, bottom: size.height - 40 };
    const colour = colourScale(chart.output.chart, chart.logY);
    Object.assign(chart.axes, { box, grid, over });
    if (!grid.rows.length) return empty(g, box, colours, "No row is switched on");
    const image = over ? this.stepImage(chart, box, grid, colour) : this.cellImage(chart, grid, colour);
    g.imageSmoothingEnabled = false;
    g.drawImage(image, box.left, box.top, box.right - box.left, box.bottom - box.top);
    this.drawNames(g, box, grid, over, colours);
    if (over) drawAxes(g, box, chart.axes.x, null, { x: chart.logX ? "step (logarithmic)" : "step" }, colours);
    drawKey(g, size, box, colour, colours);
  },

  stepImage(chart, box, grid, colour) {
    const { output } = chart, steps = output.shown, [x0, x1] = chart.zoom || [steps[0], steps[steps.length - 1]];
    const x = (chart.axes.x = new Scale(chart.logX && x0 >= 0 ? "log1" : "linear", x0, x1, box.left, box.right));
    const width = Math.max(1, Math.round(box.right - box.left));
    const places = Array.from({ length: width }, (_, i) => Math.max(0, below(steps, x.value(box.left + i + 0.5))));
    return picture(width, grid.cells.length, (c, r) => colour.of(output.at(grid.cells[r], places[c])));
  },

  cellImage(chart, grid, colour) {
    return picture(grid.columns.length, grid.rows.length, (c, r) => colour.of(chart.output.at(grid.cells[r][c], chart.place)));
  },

  drawNames(g, box, grid, over, colours) {
    g.fillStyle = colours.muted;
    const high = (box.bottom - box.top) / grid.rows.length, every = Math.max(1, Math.ceil(14 / high));
    g.textAlign = "right";
    g.textBaseline = "middle";
    const room = box.left - 10 - (over ? 0 : 14);
    grid.rows.forEach((name, r) => { if (r % every === 0) g.fillText(cut(g, name, room), box.left - 6, box.top + (r + 0.5) * high); });
    if (over) return;
    const wide = (box.right - box.left) / grid.columns.length, widest = Math.max(...grid.columns.map((t) => g.measureText(t).width)) + 8;
    const apart = Math.max(1, Math.ceil(Math.min(widest, 90) / wide));
    g.textAlign = "center";
    g.textBaseline = "top";
    grid.columns.forEach((name, c) => { if (c % apart === 0) g.fillText(cut(g, name, apart * wide), box.left + (c + 0.5) * wide, box.bottom + 6); });
    g.textAlign = "right";
    g.fillText(grid.dims[1].replaceAll("_", " "), box.right, box.bottom + 22);
    g.save();
    g.translate(2, (box.top + box.bottom) / 2);
    g.rotate(-Math.PI / 2);
    g.textAlign = "center";
    g.fillText(grid.dims[0].replaceAll("_", " "), 0, 0);
    g.restore();
  },

  nearest(chart, px, py) {
    const { box, grid, over } = chart.axes;
    if (!grid || !grid.rows.length) return null;
    const part = (at, from, to, n) => Math.min(n - 1, Math.max(0, Math.floor(((at - from) / (to - from)) * n)));
    const row = part(py, box.top, box.bottom, grid.rows.length);
    if (!over) return { row, column: part(px, box.left, box.right, grid.columns.length) };
    return { row, column: nearestPlace(chart.output.shown, chart.axes.x.value(px)) };
  },

  step(chart, cursor, right, up) {
    const { grid, over } = chart.axes;
    if (!grid || !grid.rows.length) return null;
    const wide = over ? chart.output.shown.length : grid.columns.length, at = cursor || { row: 0, column: over ? wide - 1 : 0 };
    const within = (v, n) => Math.min(n - 1, Math.max(0, v));
    return { row: within(at.row - (cursor ? up : 0), grid.rows.length), column: within(at.column + (cursor ? right : 0), wide) };
  },

  holds(chart, { row, column }) {
    const { grid, over } = chart.axes;
    return row < grid.rows.length && (over || column < grid.columns.length);
  },

  mark(chart, g, cursor, colours) {
    const { box, grid, over, x } = chart.axes, high = (box.bottom - box.top) / grid.rows.length;
    const top = box.top + cursor.row * high, wide = over ? 3 : (box.right - box.left) / grid.columns.length;
    const left = over ? x.pixel(chart.output.shown[cursor.column]) - 1.5 : box.left + cursor.column * wide;
    g.strokeStyle = colours.paper;
    g.lineWidth = 4;
    g.strokeRect(left, top, wide, high);
    g.strokeStyle = colours.ink;
    g.lineWidth = 2;
    g.strokeRect(left, top, wide, high);
    return [left + wide / 2, top + high / 2];
  },

  tell(chart, cursor) {
    const { grid, over } = chart.axes, { output } = chart, spoken = (d, text) => `${grid.dims[d].replaceAll("_", " ")} ${text}`;
    const cell = over ? grid.cells[cursor.row] : grid.cells[cursor.row][cursor.column];
    const place = over ? cursor.column : chart.place, e = output.errorAt(cell, place);
    const value = `${short(output.at(cell, place))}${Number.isFinite(e) ? ` ± ${short(e)}` : ""}${chart.unit}`;
    const where = `step ${short(output.shown[place])}`;
    return { name: over ? grid.rows[cursor.row] : `${spoken(0, grid.rows[cursor.row])}, ${spoken(1, grid.columns[cursor.column])}`, value, where };
  },
};

function picture(width, height, colour) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const g = canvas.getContext("2d"), image = g.createImageData(width, height);
  for (let r = 0, at = 0; r < height; r++) {
    for (let c = 0; c < width; c++, at += 4) {
      const found = colour(c, r);
      if (found) image.data.set([...found, 255], at);
    }
  }
  g.putImageData(image, 0, 0);
  return canvas;
}

// Colours of the values of all steps, so that steps compare; around zero where values have both signs.
function colourScale(chart, log) {
  const both = chart.low < 0 && chart.high > 0, size = Math.max(-chart.low, chart.high);
  const [low, high] = both ? [-size, size] : [chart.low, chart.high];
  const useLog = log && low > 0, colours = both ? DIVERGING : VIRIDIS;
  const part = (v) => (high === low ? 0.5 : useLog ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
  return { low, high, colours, log: useLog, of: (v) => (Number.isFinite(v) ? ramp(colours, part(v)) : null) };
}

function drawKey(g, size, box, colour, colours) {
  const left = box.right + 12, key = picture(1, 64, (_, r) => ramp(colour.colours, 1 - r / 63));
  g.imageSmoothingEnabled = true;
  g.drawImage(key, left, box.top, 12, box.bottom - box.top);
  const scale = new Scale(colour.log ? "log" : "linear", colour.low, colour.high, box.bottom, box.top);
  g.fillStyle = colours.muted;
  g.textAlign = "left";
  g.textBaseline = "middle";
  for (const v of scale.ticks(4)) g.fillText(cut(g, short(v), size.width - left - 16), left + 16, Math.min(box.bottom - 4, Math.max(box.top + 4, scale.pixel(v))));
}
