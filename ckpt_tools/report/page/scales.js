// From numbers to pixels and back, linear or logarithmic, and where ticks belong.
const FORWARD = { linear: (v) => v, log: (v) => Math.log10(v), log1: (v) => Math.log10(v + 1) };
const BACK = { linear: (v) => v, log: (v) => 10 ** v, log1: (v) => 10 ** v - 1 };

class Scale {
  // `kind`: linear, log, or log1, the logarithm of a step plus one, which has room for step 0.
  constructor(kind, low, high, from, to) {
    if (low === high) {
      const room = kind === "log" ? null : Math.abs(low) * 0.05 || 1;
      [low, high] = room === null ? [low / 2, high * 2] : [kind === "log1" ? low : low - room, high + room];
    }
    Object.assign(this, { kind, low, high, from, to });
    this.a = FORWARD[kind](low);
    this.b = FORWARD[kind](high);
  }

  pixel(value) {
    return this.from + ((FORWARD[this.kind](value) - this.a) / (this.b - this.a)) * (this.to - this.from);
  }

  value(pixel) {
    return BACK[this.kind](this.a + ((pixel - this.from) / (this.to - this.from)) * (this.b - this.a));
  }

  ticks(count) {
    const found = this.kind === "linear" ? linearTicks(this.low, this.high, count) : this.decades(count);
    return found.length > 1 ? found : linearTicks(this.low, this.high, count);
  }

  decades(count) {
    const first = this.kind === "log" ? Math.floor(this.a) : 0, last = Math.ceil(this.b);
    const every = Math.max(1, Math.ceil((last - first) / count));
    const found = this.kind === "log1" ? [0] : [];
    const within = last - first <= 2 ? [1, 2, 5] : [1];
    for (let p = first; p <= last; p += every) found.push(...within.map((m) => m * 10 ** p));
    return found.filter((v) => v >= this.low && v <= this.high);
  }
}

function linearTicks(low, high, count) {
  const rough = (high - low) / Math.max(1, count), size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * size).find((s) => s >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-12); k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

// The smallest and the largest finite number, positive ones only for a logarithmic scale.
function extent(lists, log) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) {
    for (const v of list) {
      if (Number.isFinite(v) && (!log || v > 0)) {
        if (v < low) low = v;
        if (v > high) high = v;
      }
    }
  }
  return low <= high ? [low, high] : null;
}
