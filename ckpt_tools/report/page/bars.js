// Bars of an output at one step: a table, so that it can be read aloud, copied and printed.
const barsView = {
  draw(chart) {
    const { output, bars } = chart, curves = chart.curves(), rows = curves.filter((c) => !chart.hidden.has(c.cell));
    const at = rows.map((c) => output.at(c.cell, chart.place)), { low, high } = output.chart;
    const from = chart.logY && low > 0 ? Math.log(low) - 0.05 * Math.log(high / low || 2) : Math.min(0, low);
    const value = (v) => (chart.logY && low > 0 ? Math.log(v) : v), to = Math.max(value(high), from + 1e-30, chart.logY ? -Infinity : 0);
    const percent = (v) => (100 * (value(v) - from)) / (to - from), zero = chart.logY && low > 0 ? 0 : percent(0);
    if (chart.sorted) rows.forEach((r, i) => (r.v = at[i])), rows.sort((a, b) => (b.v || 0) - (a.v || 0));
    bars.replaceChildren(make("table", { class: "bars" }, make("tbody", {}, ...rows.map((curve) => {
      const v = output.at(curve.cell, chart.place), e = output.errorAt(curve.cell, chart.place);
      const bar = make("span", { class: "bar" });
      if (Number.isFinite(v)) {
        bar.style.marginLeft = `${Math.min(zero, percent(v))}%`;
        bar.style.width = `${Math.max(0.2, Math.abs(percent(v) - zero))}%`;
      }
      const error = Number.isFinite(e) ? ` ± ${short(e)}` : "";
      return make("tr", {}, make("th", { scope: "row" }, curve.name), make("td", { class: "number" }, `${short(v)}${error}${chart.unit}`), make("td", { class: "track" }, bar));
    }))));
  },

  nearest() { return null; },
  step() { return null; },
};
