// Numbers of the page: base64 arrays, decoded when a chart first needs them.
const report = JSON.parse(document.getElementById("data").textContent);
const ARRAYS = { f4: Float32Array, f8: Float64Array, u2: Uint16Array, u4: Uint32Array };
const decoded = new Map();

function numbersOf(address) {
  if (!decoded.has(address.id)) {
    const bytes = bytesOf(document.getElementById(address.id).textContent.trim());
    decoded.set(address.id, new ARRAYS[address.kind](bytes.buffer));
  }
  return decoded.get(address.id);
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// One output `[step, cell]`; a cell is a combination of labels of the output's dimensions.
class Output {
  constructor(chart) {
    this.chart = chart;
    this.steps = numbersOf(chart.steps);
    this.values = numbersOf(chart.values);
    this.errors = chart.error && numbersOf(chart.error);
    this.index = chart.index && numbersOf(chart.index);
    this.dims = chart.dims;
    this.shape = chart.shape;
    this.labels = chart.labels;
    this.cells = chart.shape.reduce((a, b) => a * b, 1);
    this.byCell = chart.byCell;
    // Steps at which the output can be shown as a whole.
    this.shown = this.byCell || !this.index ? this.steps : Float64Array.from(this.index, (i) => this.steps[i]);
    this.curves = new Map();
  }

  // The points of a cell: steps x, values y, errors e.
  curve(cell) {
    if (!this.curves.has(cell)) this.curves.set(cell, this.points(cell));
    return this.curves.get(cell);
  }

  points(cell) {
    if (this.byCell) {
      const count = this.values.length / this.cells, from = cell * count;
      const x = new Float64Array(count);
      for (let i = 0; i < count; i++) x[i] = this.steps[this.index[from + i]];
      const e = this.errors && this.errors.subarray(from, from + count);
      return { x, y: this.values.subarray(from, from + count), e };
    }
    const pick = (of) => {
      const found = new Float32Array(this.shown.length);
      for (let s = 0; s < found.length; s++) found[s] = of[s * this.cells + cell];
      return found;
    };
    return { x: this.shown, y: pick(this.values), e: this.errors && pick(this.errors) };
  }

  // The value of a cell at the step number `place` of `shown`: of thinned curves the last one kept up to there.
  at(cell, place) {
    if (!this.byCell) return this.values[place * this.cells + cell];
    const { x, y } = this.curve(cell);
    return y[Math.max(0, below(x, this.shown[place]))];
  }

  errorAt(cell, place) {
    if (!this.errors) return NaN;
    if (!this.byCell) return this.errors[place * this.cells + cell];
    const { x, e } = this.curve(cell);
    return e[Math.max(0, below(x, this.shown[place]))];
  }

  places(cell) {
    const found = [];
    for (let d = this.shape.length - 1; d >= 0; d--) {
      found[d] = cell % this.shape[d];
      cell = Math.floor(cell / this.shape[d]);
    }
    return found;
  }

  cellAt(places) {
    return places.reduce((cell, place, d) => cell * this.shape[d] + place, 0);
  }

  label(dim, place) {
    const label = this.labels[dim][place];
    return typeof label === "string" ? label : `${this.dims[dim].replaceAll("_", " ")} ${short(label)}`;
  }

  // What tells a cell from the others; `except` names dimensions said elsewhere.
  name(cell, except = []) {
    const places = this.places(cell), many = this.shape.map((n, d) => n > 1 && !except.includes(d));
    const told = places.map((p, d) => (many[d] ? this.label(d, p) : "")).filter(Boolean);
    return told.join(", ") || this.dims.map((_, d) => this.label(d, places[d])).join(", ") || this.chart.output;
  }

  // All cells that fit `pick`: per dimension a place, or -1 for all.
  chosen(pick) {
    let cells = [0];
    this.shape.forEach((n, d) => {
      const places = pick[d] < 0 ? Array.from({ length: n }, (_, i) => i) : [pick[d]];
      cells = cells.flatMap((cell) => places.map((p) => cell * n + p));
    });
    return cells;
  }
}

// One number per step from each of several files.
class Beside {
  constructor(chart) {
    this.outputs = chart.beside.map((one) => new Output(one));
    this.chart = { ...chart.beside[0], views: ["lines"] };
    this.dims = ["file"];
    this.labels = [chart.beside.map((one) => one.label)];
    this.shape = [this.outputs.length];
    this.cells = this.outputs.length;
    this.shown = this.outputs[0].shown;
  }

  curve(cell) { return this.outputs[cell].curve(0); }
  name(cell) { return this.labels[0][cell]; }
  label(dim, place) { return this.labels[dim][place]; }
  chosen() { return this.outputs.map((_, i) => i); }
}

// The last place in the ascending `x` whose value is at most `value`, -1 when there is none.
function below(x, value) {
  let low = -1, high = x.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (x[middle] <= value) low = middle; else high = middle - 1;
  }
  return low;
}

function nearestPlace(x, value) {
  const before = Math.max(0, below(x, value)), after = Math.min(x.length - 1, before + 1);
  return Math.abs(x[after] - value) < Math.abs(x[before] - value) ? after : before;
}

function short(value) {
  if (value === null || Number.isNaN(value)) return "no value";
  if (!Number.isFinite(value)) return value > 0 ? "infinite" : "-infinite";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e7) return value.toLocaleString("en-US");
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace("e+", "e").replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}
