// Colours and axes. Colours are told apart by people of all kinds of colour vision; dashes show a curve below another.
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const DIVERGING = ["#1f4e79", "#4f86b8", "#a9c8e0", "#f2f2f0", "#f3c08a", "#cf7a30", "#7f3b08"];
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

function ramp(colours, t) {
  const at = Math.min(1, Math.max(0, t)) * (colours.length - 1), i = Math.min(colours.length - 2, Math.floor(at));
  const [one, two] = [rgb(colours[i]), rgb(colours[i + 1])];
  return one.map((v, k) => Math.round(v + (two[k] - v) * (at - i)));
}

function theme() {
  const style = getComputedStyle(document.documentElement), get = (name) => style.getPropertyValue(name).trim();
  const series = [1, 2, 3, 4, 5, 6, 7].map((i) => get(`--series-${i}`));
  return { ink: get("--ink"), muted: get("--muted"), grid: get("--grid"), paper: get("--paper"), mark: get("--mark"), series, dark: get("--dark") === "1" };
}

// How curve number `i` of `count` looks: beyond 14, colour runs along their order.
function look(i, count, colours) {
  if (count <= 14) return { colour: colours.series[i % 7], dash: DASHES[(i % 2) + 2 * Math.floor(i / 7)] };
  const t = i / (count - 1), [r, g, b] = ramp(VIRIDIS, colours.dark ? 0.2 + 0.8 * t : 0.88 * t);
  return { colour: `rgb(${r},${g},${b})`, dash: [] };
}

// A canvas of the element's width, sharp on any screen.
function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  g.font = "12px system-ui, sans-serif";
  return g;
}

function drawAxes(g, box, x, y, names, colours) {
  g.lineWidth = 1;
  g.strokeStyle = colours.grid;
  g.fillStyle = colours.muted;
  g.textBaseline = "middle";
  g.textAlign = "right";
  for (const v of y ? y.ticks(5) : []) {
    const at = Math.round(y.pixel(v)) + 0.5;
    line(g, box.left, at, box.right, at);
    g.fillText(short(v), box.left - 6, at);
  }
  g.textBaseline = "top";
  let last = -Infinity;
  for (const v of x.ticks(Math.max(2, Math.floor((box.right - box.left) / 90)))) {
    const at = x.pixel(v), text = short(v), half = g.measureText(text).width / 2;
    g.textAlign = "center";
    if (at - half < last + 8) continue;
    line(g, Math.round(at) + 0.5, box.bottom, Math.round(at) + 0.5, box.bottom + 4);
    const middle = Math.min(at, box.right + 12 - half);
    g.fillText(text, middle, box.bottom + 7);
    last = middle + half;
  }
  g.strokeStyle = colours.muted;
  line(g, box.left, box.bottom + 0.5, box.right, box.bottom + 0.5);
  g.textAlign = "right";
  if (names.x) g.fillText(names.x, box.right, box.bottom + 22);
}

function line(g, x0, y0, x1, y1) {
  g.beginPath();
  g.moveTo(x0, y0);
  g.lineTo(x1, y1);
  g.stroke();
}

// A curve with gaps where there is no value.
function drawCurve(g, points, x, y, style, width = 1.6) {
  g.strokeStyle = style.colour;
  g.fillStyle = style.colour;
  g.lineWidth = width;
  g.lineJoin = "round";
  g.setLineDash(style.dash);
  g.beginPath();
  let open = false, first = 0, count = 0;
  for (let i = 0; i < points.x.length; i++) {
    const v = points.y[i];
    if (!Number.isFinite(v) || (y.kind === "log" && v <= 0)) {
      if (open && i - first === 1) dot(g, x.pixel(points.x[first]), y.pixel(points.y[first]));
      open = false;
      continue;
    }
    const px = x.pixel(points.x[i]), py = y.pixel(v);
    if (open) g.lineTo(px, py); else { g.moveTo(px, py); first = i; }
    open = true;
    count++;
  }
  g.stroke();
  g.setLineDash([]);
  if (count === 1) dots(g, points, x, y);
}

function dot(g, px, py) { g.fillRect(px - 1.5, py - 1.5, 3, 3); }

function dots(g, points, x, y) {
  points.x.forEach((s, i) => { if (Number.isFinite(points.y[i])) dot(g, x.pixel(s), y.pixel(points.y[i])); });
}

// The band of a value's error around it.
function drawBand(g, points, x, y, style) {
  g.fillStyle = style.colour;
  g.globalAlpha = 0.18;
  for (let i = 0; i + 1 < points.x.length; i++) {
    const corners = [[i, 1], [i + 1, 1], [i + 1, -1], [i, -1]].map(([k, sign]) => [points.x[k], points.y[k] + sign * points.e[k]]);
    if (!corners.every(([, v]) => Number.isFinite(v) && (y.kind !== "log" || v > 0))) continue;
    g.beginPath();
    corners.forEach(([s, v], k) => (k ? g.lineTo(x.pixel(s), y.pixel(v)) : g.moveTo(x.pixel(s), y.pixel(v))));
    g.fill();
  }
  g.globalAlpha = 1;
}

function cut(g, text, width) {
  if (g.measureText(text).width <= width) return text;
  let kept = text.length;
  while (kept > 1 && g.measureText(`${text.slice(0, kept)}…`).width > width) kept--;
  return `${text.slice(0, kept)}…`;
}
